"""Cells as typed columns: numbers are 64-bit floats, categories are text as written, or whole numbers of typed files.

Owns the conversion of text, NDJSON and typed frames, a block of rows at a time. Knows nothing of files and of time.
"""

import csv
import io
import json
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import orjson
import polars as pl

from onward.model.errors import DataError
from onward.model.tables import numerals, text_files
from onward.model.tables.refusals import UNITS, Refusal
from onward.model.tables.settings import TableSettings

Kind = Literal["number", "category", "text", "integer"]
"""The kind of a column: a category is text as written, unless the file's own type is whole numbers. `text` and
`integer` are categories of a bundle, which the file's type does not change."""

TIME_CELLS = "__cells of the time"
NOT_A_NUMBER = "is not a number"


class AbsentColumnsError(DataError):
    """A table without required columns: `absent` are their names, `present` those of the columns that it has."""

    def __init__(self, message: str, absent: Sequence[str], present: Sequence[str]) -> None:
        super().__init__(message)
        self.absent, self.present = frozenset(absent), frozenset(present)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the frame that is read; `source` is the file's name of it, if it has another one."""

    name: str
    kind: Kind = "number"
    nullable: bool = False
    source: str | None = None

    @property
    def file_name(self) -> str:
        """The name of the column in the file."""
        return self.name if self.source is None else self.source


class Parser(Protocol):
    """The rows of a format, as blocks of whole records arrive."""

    rows: int
    """The number of rows so far."""

    def parse(self, block: bytes) -> pl.DataFrame | None:
        """Returns the columns of the block, by the names of the frame. Raises DataError for what is no table."""

    def check(self) -> None:
        """Raises DataError for the rows and cells that are refused so far, with their number."""


class CellRefusals:
    """The cells and rows that are refused in a file: those of its structure, and those of each column."""

    def __init__(self, name: str, settings: TableSettings) -> None:
        self._name, self._settings = name, settings
        self._structure: dict[str, Refusal] = {}
        self._columns: dict[tuple[str, str], Refusal] = {}

    def add_row(self, what: str, row: int, cells: str = "") -> None:
        """Adds a row whose structure is refused."""
        self._structure.setdefault(what, Refusal(self._name, None)).add([0], [cells], row)

    def add_cells(self, column: str, what: str, indices: Sequence[int], cells: Any, first_row: int) -> None:
        """Adds cells of a column."""
        if indices:
            key = (column, what)
            self._columns.setdefault(key, Refusal(self._name, column)).add(indices, cells, first_row)

    def numbers(self, cells: pl.Series, column: Column, markers: Sequence[str], first_row: int) -> pl.Series:
        """Returns the numbers of texts, null where there is none; texts that are no numbers are added."""
        numbers, wrong = numerals.parse(cells, self._settings, markers)
        self.add_cells(column.file_name, NOT_A_NUMBER, wrong.arg_true().to_list(), cells, first_row)
        return numbers

    def check(self) -> None:
        """Raises DataError for the first reason."""
        for what, refusal in self._structure.items():
            raise refusal.error(what)
        for (_, what), refusal in self._columns.items():
            cells = [cell.strip() for _, cell in refusal.first]
            hint = numerals.hint(cells, refusal.column, self._settings) if what == NOT_A_NUMBER else ""
            if what == NOT_A_NUMBER and refusal.count == 1 == refusal.first[0][0]:
                hint = f"{hint}{'; ' if hint else ''}{UNITS}"
            raise refusal.error(what, hint)


class TextParser:
    """The rows of a text with separators."""

    def __init__(self, name: str, settings: TableSettings, columns: Sequence[Column]) -> None:
        self.rows = 0
        self.separator: str | None = settings.separator
        self.width = 0
        self._name, self._settings, self._columns = name, settings, columns
        self._required = list(dict.fromkeys([*(column.file_name for column in columns), *settings.time_columns]))
        self._labels: dict[str, str] = {}
        self._schema: dict[str, pl.DataType | type[pl.DataType]] = {}
        self._text_schema: dict[str, pl.DataType | type[pl.DataType]] = {}
        self._blank_lines = 0
        self._above, self._below = settings.lines_above_header, settings.lines_below_header
        self._may_be_empty = not settings.time_columns and all(column.nullable for column in columns)
        self._markers, self._numbers = _missing(settings)
        self._refusals = CellRefusals(name, settings)
        self._is_ragged = False

    def parse(self, block: bytes) -> pl.DataFrame | None:
        if self._above:
            self._above, block = text_files.without_lines(self._above, block)
            if not block:
                return None
        if not self.width:
            block = self._begin(block)
        if self._below:
            self._below, block = text_files.without_lines(self._below, block)
        assert self.separator is not None
        if not self._may_be_empty:
            block = text_files.without_empty_end(block, self.separator)
        block = b"\n" * self._blank_lines + block
        if not block:
            return None
        shape = text_files.shape(block, self.separator, self.width)
        self._blank_lines = shape.trailing
        first_row, self.rows = self.rows + 1, self.rows + shape.rows
        self._refuse_structure(shape, first_row, block)
        if self._is_ragged or not shape.rows:
            return None
        raw = self._read(block, first_row, shape.rows + shape.trailing)
        raw = raw.head(shape.rows)
        frame = {column.name: self._converted(column, raw, first_row) for column in self._columns}
        return pl.DataFrame(frame | self._time_cells(raw))

    def check(self) -> None:
        self._refusals.check()

    def _begin(self, block: bytes) -> bytes:
        header, rest = text_files.split_header(block)
        if (announced := text_files.announced_separator(header)) is not None:
            self.separator = self.separator or announced
            header, rest = text_files.split_header(rest)
        if not header.strip():
            raise DataError(f"{self._name}: is empty: a table begins with the names of its columns")
        if self.separator is None:
            self.separator = text_files.find_separator(self._name, header, rest, self._required, self._settings.decimal)
        names = text_files.cells(header, self.separator)
        self._refuse_other_texts(header)
        if set(self._required) - set(names):
            self._refuse_lines_above(rest)
        require_columns(self._name, names, self._required, separator=self.separator)
        self.width = len(names)
        self._labels = {name: f"column_{names.index(name) + 1}" for name in self._required}
        text_names = {column.file_name for column in self._columns if column.kind != "number"}
        text_names.update(self._settings.time_columns)
        self._text_schema = {f"column_{index + 1}": pl.String for index in range(self.width)}
        is_number = {self._labels[name]: name not in text_names for name in self._required}
        self._schema = {
            label: pl.Float64 if is_number.get(label) and self._settings.decimal == "." else pl.String
            for label in self._text_schema
        }
        return rest

    def _refuse_lines_above(self, rest: bytes) -> None:
        """Raises DataError if one of the next lines has the names of the columns."""
        assert self.separator is not None
        separators = {*text_files.SEPARATORS, self.separator}
        for number, line in enumerate(rest.split(b"\n", text_files.MOST_ABOVE)[: text_files.MOST_ABOVE], 1):
            if any(set(self._required) <= set(text_files.cells(line, mark)) for mark in separators):
                above = self._settings.lines_above_header + number
                raise DataError(
                    f"{self._name}: line {above + 1} has the names of the columns, and not line {above + 1 - number}: "
                    f"set data.lines_above_header = {above}"
                )

    def _refuse_other_texts(self, header: bytes) -> None:
        if header.startswith(b"{") and header.rstrip().endswith(b"}"):
            raise DataError(f"{self._name}: is NDJSON: let its name end in .ndjson")
        if header.startswith((b"<!", b"<html", b"<HTML", b"<?xml")):
            raise DataError(
                f"{self._name}: is a page of the web or XML, not a table: its first line is {header[:60]!r}"
            )

    def _refuse_structure(self, shape: text_files.Shape, first_row: int, block: bytes) -> None:
        if self.width > 1:
            self._is_ragged |= bool(len(shape.blank))
            for index in shape.blank.tolist():
                self._refusals.add_row(
                    "is empty; only the end of a file may have empty rows: remove it", first_row + index
                )
        if shape.ragged:
            assert self.separator is not None
            self._is_ragged = True
            if b'"' in block:  # the reason may be a quote that is not closed
                self._requoted(block, first_row)
            lines = [] if b'"' in block else block.split(b"\n")
            for index, count in shape.ragged.items():
                line = lines[index].decode().rstrip("\r") if lines else ""
                what = f"has {_counted(count, 'cell')}, the header has {self.width:,}"
                if count == self.width + 1 and line.endswith(self.separator):
                    what += ": the separator at its end is one too many"
                elif count > self.width:
                    what += (
                        f"; the separator is the {text_files.separator_name(self.separator)}: a cell that has it "
                        "needs quotes; otherwise set data.separator"
                    )
                self._refusals.add_row(what, first_row + index)

    def _read(self, block: bytes, first_row: int, height: int) -> pl.DataFrame:
        """Returns the required columns; numbers are text if one of them is no number."""
        for schema in (self._schema, self._text_schema):
            try:
                raw = self._read_csv(block, schema)
            except pl.exceptions.PolarsError:
                continue
            if raw.height == height:
                return raw
        return self._read_csv(self._requoted(block, first_row), self._text_schema)

    def _requoted(self, block: bytes, first_row: int) -> bytes:
        """Returns the records with the quotes that polars needs: it reads none within a cell that is not quoted."""
        assert self.separator is not None
        lines, written = io.StringIO(block.decode(), newline=""), io.StringIO()
        writer = csv.writer(written, delimiter=self.separator, lineterminator="\n")
        row = first_row
        try:
            for record in csv.reader(lines, delimiter=self.separator, strict=True):
                writer.writerow(record)
                row += 1
        except csv.Error as error:
            raise DataError(
                f"{self._name}: row {row}: a quote is not closed, or not doubled in a quoted cell"
            ) from error
        return written.getvalue().encode()

    def _read_csv(self, block: bytes, schema: dict[str, Any]) -> pl.DataFrame:
        return pl.read_csv(
            block,
            has_header=False,
            schema=schema,
            columns=sorted(set(self._labels.values()), key=lambda label: int(label.removeprefix("column_"))),
            separator=self.separator or ",",
            null_values=self._markers or None,
        )

    def _converted(self, column: Column, raw: pl.DataFrame, first_row: int) -> pl.Series:
        cells = raw[self._labels[column.file_name]]
        if column.kind != "number":
            words = _without_empty(cells)
            return words if column.kind != "integer" else self._integers(words, column, first_row)
        if cells.dtype == pl.String:
            cells = self._refusals.numbers(cells, column, self._markers, first_row)
        return without_values(cells, self._numbers)

    def _integers(self, words: pl.Series, column: Column, first_row: int) -> pl.Series:
        return integers(words, column, self._refusals, first_row)

    def _time_cells(self, raw: pl.DataFrame) -> dict[str, pl.Series]:
        names = self._settings.time_columns
        if not names:
            return {}
        parts = [_without_empty(raw[self._labels[name]].str.strip_chars()) for name in names]
        return {TIME_CELLS: joined(parts)}


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def require_columns(
    name: str, present: Sequence[str], required: Collection[str], *, separator: str | None = None
) -> None:
    """Raises AbsentColumnsError if a required column is absent, and DataError if a name occurs twice."""
    if absent := [column for column in required if column not in present]:
        similar = {_folded(column): column for column in present}
        near = [similar[_folded(column)] for column in absent if _folded(column) in similar]
        hint = f"; did you mean {', '.join(map(ascii, near))}?" if near else ""
        if separator is not None and len(present) == 1:
            hint += (
                f"; the separator is the {text_files.separator_name(separator)}: if it is another, set data.separator"
            )
        message = f"{name}: no column {', '.join(absent)}; it has {', '.join(present)}{hint}"
        raise AbsentColumnsError(message, absent, present)
    counts = {column: present.count(column) for column in present}
    if repeated := [column for column, count in counts.items() if count > 1 and (column or column in required)]:
        raise DataError(f"{name}: two columns have one name: {', '.join(repeated)}; rename one of them")


def _folded(name: str) -> str:
    """Returns a name without what is hardly seen: case, blanks around it, and the form of its characters."""
    return unicodedata.normalize("NFKC", name).strip("\ufeff \t\r\n").casefold()


def joined(parts: Sequence[pl.Series]) -> pl.Series:
    """Returns the texts of several columns, joined by a blank; null where one of them is."""
    if len(parts) == 1:
        return parts[0]
    frame = pl.DataFrame({f"part {index}": part for index, part in enumerate(parts)})
    return frame.select(pl.concat_str(pl.all(), separator=" ").alias(TIME_CELLS))[TIME_CELLS]


def _missing(settings: TableSettings) -> tuple[list[str], list[float]]:
    """Returns the texts that stand for a missing value, and the numbers that do."""
    numbers = [marker for marker in settings.missing_values if not isinstance(marker, str)]
    texts = [marker for marker in settings.missing_values if isinstance(marker, str)]
    return [*texts, *map(str, numbers)], [float(number) for number in numbers]


def _without_empty(cells: pl.Series) -> pl.Series:
    if not (cells == "").any():
        return cells
    return cells.to_frame("cells").select(pl.when(pl.col("cells") != "").then("cells"))["cells"]


def without_values(cells: pl.Series, markers: Sequence[float]) -> pl.Series:
    """Returns numbers, null where they are NaN, or equal one of the markers."""
    if cells.dtype.is_float():
        cells = cells.fill_nan(None)
    if not markers:
        return cells
    return cells.to_frame("cells").select(pl.when(~pl.col("cells").is_in(list(markers))).then("cells"))["cells"]


def integers(words: pl.Series, column: Column, refusals: CellRefusals, first_row: int) -> pl.Series:
    """Returns texts as the whole numbers that they write."""
    numbers, large = (words.str.strip_chars().cast(kind, strict=False) for kind in (pl.Int64, pl.UInt64))
    if large.null_count() == words.null_count() < numbers.null_count():
        return large
    wrong = numbers.is_null() & large.is_null() & words.is_not_null()
    what = "is not a whole number, as the model's categories are"
    refusals.add_cells(column.file_name, what, wrong.arg_true().to_list(), words, first_row)
    return numbers


class NdjsonParser:
    """The rows of a text that has one JSON object in each line."""

    def __init__(self, name: str, settings: TableSettings, columns: Sequence[Column]) -> None:
        self.rows = 0
        self._name, self._settings, self._columns = name, settings, columns
        self._required = list(dict.fromkeys([*(column.file_name for column in columns), *settings.time_columns]))
        self._absent = set(self._required)
        self._present: dict[str, None] = {}
        self._categories = {column.file_name for column in columns if column.kind != "number"}
        self._typed = TypedCells(name, settings, columns)

    def parse(self, block: bytes) -> pl.DataFrame | None:
        objects, first_row = [], self.rows + 1
        for line in block.split(b"\n"):
            if not line.strip():
                continue
            self.rows += 1
            row = self._loaded(line)
            if not isinstance(row, dict):
                raise DataError(
                    f"{self._name}: row {self.rows}: {line[:60]!r} is no object with the columns by name; each line "
                    "has one such object, and no list is around them"
                )
            objects.append(row)
            self._absent.difference_update(row)
            self._present.update(dict.fromkeys(row))
        if not objects:
            return None
        columns = {name: self._series(name, [row.get(name) for row in objects], first_row) for name in self._required}
        return self._typed.convert(pl.DataFrame(columns), first_row)

    def check(self) -> None:
        if self._absent and self.rows:
            require_columns(self._name, list(self._present), self._required)
        self._typed.refusals.check()

    def _loaded(self, line: bytes) -> Any:
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError as error:
            try:  # Python writes NaN and Infinity, which are no JSON
                return json.loads(line, parse_int=_json_integer)
            except ValueError:
                raise DataError(f"{self._name}: row {self.rows}: not JSON: {error}; each row is one line") from error

    def _series(self, name: str, values: list[Any], first_row: int) -> pl.Series:
        kinds = {type(value) for value in values} - {type(None)}
        if kinds <= {int, float} and len(kinds) > 1:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1 and kinds <= ({int, str} if name in self._categories else {int, float, str}):
            values = [None if value is None else str(value) for value in values]
        elif len(kinds) > 1 or kinds & {dict, list}:
            first = next(iter(type(value) for value in values if value is not None))
            wrong = [
                index for index, value in enumerate(values)
                if value is not None and (type(value) is not first or first in (dict, list))
            ]  # fmt: skip
            what = "is not of the kind of the cells before it" if first not in (dict, list) else "is no cell"
            self._typed.refusals.add_cells(name, what, wrong, values, first_row)
            values = [None if index in set(wrong) else value for index, value in enumerate(values)]
        if kinds == {int} and max(value for value in values if value is not None) > 2**63 - 1:
            return pl.Series(name, values, pl.Int128)
        return pl.Series(name, values, strict=True)


def _json_integer(digits: str) -> int | float:
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else float(number)


class TypedCells:
    """The columns of a file that has types of its own."""

    def __init__(self, name: str, settings: TableSettings, columns: Sequence[Column]) -> None:
        self._name, self._settings, self._columns = name, settings, columns
        self._markers, self._numbers = _missing(settings)
        self.refusals = CellRefusals(name, settings)

    def convert(self, raw: pl.DataFrame, first_row: int) -> pl.DataFrame:
        """Returns the columns of the frame; refused cells are added to `refusals`. Raises DataError for a type."""
        frame = {}
        for column in self._columns:
            cells = raw[column.file_name]
            if column.kind == "number":
                frame[column.name] = self._as_numbers(cells, column, first_row)
            else:
                frame[column.name] = self._as_category(cells, column, first_row)
        if names := self._settings.time_columns:
            frame[TIME_CELLS] = self._as_time([raw[name] for name in names])
        return pl.DataFrame(frame)

    def _as_numbers(self, cells: pl.Series, column: Column, first_row: int) -> pl.Series:
        if cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null):
            return without_values(cells.cast(pl.Float64), self._numbers)
        if cells.dtype in (pl.String, pl.Categorical, pl.Enum):
            numbers = self.refusals.numbers(cells.cast(pl.String), column, self._markers, first_row)
            return without_values(numbers, self._numbers)
        present = cells.is_not_null().arg_true().to_list()
        self.refusals.add_cells(column.file_name, NOT_A_NUMBER, present, cells, first_row)
        return pl.Series([None] * len(cells), dtype=pl.Float64)

    def _as_category(self, cells: pl.Series, column: Column, first_row: int) -> pl.Series:
        kind = cells.dtype
        if kind == pl.Null:
            return cells.cast(pl.Int64 if column.kind == "integer" else pl.String)
        if kind.is_numeric() and (whole := _whole(cells)) is not None:
            whole = without_integers(whole, self._numbers)
            return whole.cast(pl.String) if column.kind == "text" else whole
        if kind in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date):
            words = _without_markers(cells.cast(pl.String), self._markers)
            return words if column.kind != "integer" else integers(words, column, self.refusals, first_row)
        what = "is neither a word nor a whole number of 64 bits, so it cannot be a category"
        wrong = cells.is_not_null()
        if kind.is_float():  # some are whole, as those of a data frame that has missing values
            wrong &= ~_is_whole(cells)
        self.refusals.add_cells(column.file_name, what, wrong.arg_true().to_list(), cells, first_row)
        return pl.Series([None] * len(cells), dtype=pl.String)

    def _as_time(self, parts: Sequence[pl.Series]) -> pl.Series:
        if len(parts) > 1:
            return joined([part.cast(pl.String) for part in parts])
        (cells,) = parts
        if cells.dtype == pl.String:
            return _without_markers(cells.str.strip_chars(), self._markers)
        return without_values(cells, self._numbers) if cells.dtype.is_numeric() else cells


def _whole(cells: pl.Series) -> pl.Series | None:
    """Returns numbers as whole ones of the narrowest of two types that has them; None if none has.

    Floats are whole if they are as written: so are those of a data frame whose whole numbers have missing values.
    """
    if not cells.dtype.is_integer():
        cells = cells.cast(pl.Float64).fill_nan(None)
        if not _is_whole(cells).all():
            return None
    for kind in (pl.Int64, pl.UInt64):
        whole = cells.cast(kind, strict=False)
        if whole.null_count() == cells.null_count():
            return whole
    smallest, largest = cells.min(), cells.max()
    return cells if smallest >= -(2**63) and largest < 2**64 else None  # type: ignore[operator]


def _is_whole(cells: pl.Series) -> pl.Series:
    return ((cells == cells.floor()) & (cells.abs() <= 2**53)).fill_null(value=True)


def _without_markers(cells: pl.Series, markers: Sequence[str]) -> pl.Series:
    return cells.to_frame("cells").select(pl.when(~pl.col("cells").is_in(["", *markers])).then("cells"))["cells"]


def without_integers(cells: pl.Series, markers: Sequence[float]) -> pl.Series:
    """Returns whole numbers, null where they equal one of the markers."""
    whole = [int(marker) for marker in markers if marker.is_integer() and (marker >= 0 or cells.dtype != pl.UInt64)]
    return without_values(cells, whole)
