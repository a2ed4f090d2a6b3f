"""A look at the first rows of a table whose columns are not known yet: their names, and what their cells may be.

Owns the kinds that are found in cells. A reading that refuses what is wrong is that of `onward.model.tables.reader`.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
import polars as pl

from onward.model.errors import DataError
from onward.model.tables import text_files
from onward.model.tables.cells import require_columns
from onward.model.tables.settings import TableSettings
from onward.model.tables.text_files import Decoder, Records
from onward.model.tables.times import TimeParser

Kind = Literal["number", "whole", "time", "time of day", "text", "empty"]
"""The kind of a column's cells; `whole` is a whole number, which may be a category, a count or a position."""

ROWS = 5000
"""The most rows that are looked at."""

MOST_ODD = 0.05
"""The share of cells that may be of another kind, such as a marker of missing values, which the reader then refuses."""

_TIME_OF_DAY = r"\d{1,2}:\d\d(:\d\d([.,]\d+)?)?( ?[AaPp][Mm])?"
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_COMMA_NUMBER = r"[+-]?\d+(,\d+)?"


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of a table: texts as written, or the types of the file; with the kind of each column."""

    rows: pl.DataFrame
    kinds: dict[str, Kind]
    settings: TableSettings
    """The settings of the preview, with a decimal comma if numbers are written with it."""
    odd: dict[str, list[str]]
    """The cells that are no numbers, such as markers of missing values, by the column of numbers that has them."""


def look(file: Path, settings: TableSettings) -> Preview:
    """Returns a preview of the table in `file`. Raises DataError for what is no table."""
    name = str(file)
    form = text_files.format_of(name)
    with text_files.reading(name):
        if form == "text":
            rows = _text_rows(file, settings)
        elif form == "ndjson":
            rows = _ndjson_rows(file, settings)
        else:
            try:
                rows = pl.read_parquet(file, n_rows=ROWS) if form == "parquet" else pl.read_ipc(file, n_rows=ROWS)
            except pl.exceptions.PolarsError as error:
                raise DataError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from error
    if not rows.height:
        raise DataError(f"{name}: has no rows")
    if _has_decimal_commas(rows, settings):
        settings = settings.model_copy(update={"decimal": ","})
    kinds, odd = {}, {}
    for column in rows.columns:
        kinds[column], cells = _kind(rows[column], settings)
        if cells:
            odd[column] = cells
    return Preview(rows, kinds, settings, odd)


def _block(file: Path, settings: TableSettings) -> bytes:
    """Returns the first records of a text file, in UTF-8."""
    name = str(file)
    decoder, records = Decoder(name, settings.encoding), Records(name)
    block = b""
    with file.open("rb") as opened:
        for chunk in text_files.chunks(opened, name):
            block += records.feed(decoder.feed(chunk))
            if len(block) >= text_files.CHUNK:
                return block
        return block + records.feed(decoder.feed(b"", final=True), final=True)


def _text_rows(file: Path, settings: TableSettings) -> pl.DataFrame:
    name, block = str(file), _block(file, settings)
    separator = settings.separator
    header, rest = text_files.split_header(block)
    if (announced := text_files.announced_separator(header)) is not None:
        separator = separator or announced
        header, rest = text_files.split_header(rest)
    if not header.strip():
        raise DataError(f"{name}: is empty: a table begins with the names of its columns")
    separator = separator or text_files.find_separator(name, header, rest, (), settings.decimal)
    names = text_files.cells(header, separator)
    require_columns(name, names, names, separator=separator)
    records = csv.reader(io.StringIO(rest.decode(), newline=""), delimiter=separator)
    rows = [row for row, _ in zip(records, range(ROWS), strict=False) if len(row) == len(names)]
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def _ndjson_rows(file: Path, settings: TableSettings) -> pl.DataFrame:
    lines = [line for line in _block(file, settings).split(b"\n")[:ROWS] if line.strip()]
    try:
        objects = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    if not all(isinstance(row, dict) for row in objects):
        raise DataError(f"{file}: a line is no object with the columns by name")
    return pl.from_dicts(objects, infer_schema_length=None, strict=False) if objects else pl.DataFrame()


def _present(cells: pl.Series, settings: TableSettings) -> pl.Series:
    cells = cells.drop_nulls()
    if cells.dtype != pl.String:
        return cells
    cells = cells.str.strip_chars()
    return cells.filter(~cells.is_in(["", *map(str, settings.missing_values)]))


def _has_decimal_commas(rows: pl.DataFrame, settings: TableSettings) -> bool:
    """Returns whether numbers have a decimal comma: some column has commas in numbers, and none has points in them."""
    if settings.decimal == ",":
        return False
    commas = False
    for column in rows.columns:
        cells = _present(rows[column], settings)
        if cells.dtype != pl.String or not len(cells):
            continue
        if _share(cells, _NUMBER) > 1 - MOST_ODD and cells.str.contains(".", literal=True).any():
            return False
        commas |= _share(cells, _COMMA_NUMBER) > 1 - MOST_ODD and bool(cells.str.contains(",", literal=True).any())
    return commas


def _share(cells: pl.Series, pattern: str) -> float:
    return float(cells.str.contains(f"^(?:{pattern})$").mean() or 0)  # type: ignore[arg-type]


def _kind(column: pl.Series, settings: TableSettings) -> tuple[Kind, list[str]]:
    """Returns the kind of a column, and the cells of a column of numbers that are none."""
    cells = _present(column, settings)
    if not len(cells):
        return "empty", []
    if cells.dtype == pl.String:
        return _written_kind(cells, settings)
    if cells.dtype.is_temporal():
        return ("time of day" if cells.dtype == pl.Time else "time"), []
    return ("whole" if cells.dtype.is_integer() else "number" if cells.dtype.is_numeric() else "text"), []


def _written_kind(cells: pl.Series, settings: TableSettings) -> tuple[Kind, list[str]]:
    pattern = _COMMA_NUMBER if settings.decimal == "," else _NUMBER
    if _share(cells, pattern) > 1 - MOST_ODD:
        odd = cells.filter(~cells.str.contains(f"^(?:{pattern})$"))
        whole = _share(cells, r"[+-]?\d+") > 1 - MOST_ODD
        return ("whole" if whole else "number"), odd.unique(maintain_order=True).to_list()
    if _share(cells, _TIME_OF_DAY) > 1 - MOST_ODD:
        return "time of day", []
    return ("time" if _are_times(cells, settings) else "text"), []


def _are_times(cells: pl.Series, settings: TableSettings) -> bool:
    if not re.search(r"\d", str(cells[0])):
        return False
    parser = TimeParser("", "", settings.model_copy(update={"time": "time"}))
    try:
        parser.feed(cells, 1)
        parser.take()
    except DataError as error:
        return "time_format" in str(error) and "could be" in str(error)
    return True


def joined_times(preview: Preview) -> Sequence[tuple[str, ...]]:
    """Returns the columns that may be the time: one, or a date with the time of day in another column."""
    dates = [name for name, kind in preview.kinds.items() if kind == "time"]
    of_day = [name for name, kind in preview.kinds.items() if kind == "time of day"]
    if len(dates) == 1 and len(of_day) == 1:
        return [(dates[0], of_day[0])]
    return [(name,) for name in dates]
