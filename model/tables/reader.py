"""The one reader of tables: a file or a live stream becomes a frame of typed columns, its rows in order of arrival.

Owns the way from a name to a frame. Policies of order, duplicates and gaps come after it; `onward.model.tables.table`
joins both.
"""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import polars as pl

from onward.model.calendar import NEEDS_TIME_OF_DAY, WRITTEN
from onward.model.errors import DataError
from onward.model.tables import text_files, times
from onward.model.tables.cells import TIME_CELLS, Column, NdjsonParser, Parser, TextParser, TypedCells, require_columns
from onward.model.tables.intervals import Interval, TimeAxis
from onward.model.tables.refusals import NAMED_ROWS, Refusal, Refusals
from onward.model.tables.settings import TableSettings
from onward.model.tables.text_files import Decoder, Format, Records

signal.siginterrupt(signal.SIGINT, True)  # the import of polars lets a read go on after Ctrl-C

ROW, SERIES, CLOCK = "__row of the file", "__series of the row", "__clock of the row"
"""Columns of the frame: the number of the row in the file from 1 on, its series, and the clock as it was written."""
LEAD_ROW = "__row of the values ahead"
"""A column of a frame whose values have a lead: the number of the row that they are from."""

STREAM = "standard input"

_LEAST_DATE = 10_000_000
"""The least number of a time that is more probably a date than a count."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table in order of arrival, with the columns that were asked for, ROW, and SERIES and CLOCK if any.

    `settings` are those of the reading, with what was found about times in the file: their format, and the zone of the
    clock. `found` says in words what was found and not set, by its name.
    """

    name: str
    frame: pl.DataFrame
    axis: TimeAxis | None
    settings: TableSettings
    found: Mapping[str, str] = field(default_factory=dict)
    dates_only: bool = False

    def with_calendar(self, frame: pl.DataFrame, lead: Interval | None = None) -> pl.DataFrame:
        """Returns the frame, which has this one's columns and other rows, with the calendar features of its times.

        lead: the interval after which the predicted step is, if the features are those of its time. Raises DataError
        if the times have no such features.
        """
        entries, name = self.settings.calendar, self.settings.time_name
        if not entries or self.axis is None or name is None:
            return frame
        kind = frame.schema[self.axis.time]
        if not isinstance(kind, pl.Datetime):
            form = times.number_format(frame[self.axis.time]) if kind.is_numeric() else None
            proposed = f'if they are dates, set data.time_format = "{form}"' if form else "set data.time_format"
            raise DataError(
                f"{self.name}: column {name}: a calendar needs dates or times, as 2012-01-31T12:00:00, not numbers as "
                f"{frame[self.axis.time][0]}; {proposed}"
            )
        if self.dates_only and (of_day := [entry for entry in entries if entry in NEEDS_TIME_OF_DAY]):
            raise DataError(
                f"{self.name}: column {name}: calendar {' and '.join(of_day)} needs a time of day; the column has "
                "only dates"
            )
        axis = {column: frame[column] for column in (self.axis.time, self.axis.clock) if column is not None}
        if lead is not None:
            axis |= lead.times_after(frame, self.axis, pl.Series([1]).new_from_index(0, frame.height))
        zone = None if self.settings.time_zone == WRITTEN else self.settings.time_zone
        clock = times.clock_seconds(axis[self.axis.time], axis.get(self.axis.clock or ""), zone)
        columns = times.calendar_columns(name, entries, clock)
        if taken := [column.name for column in columns if column.name in frame.columns]:
            raise DataError(f"{self.name}: column {taken[0]} has the name of a calendar feature; rename the column")
        return frame.with_columns(columns)


def read(
    source: str | Path | IO[bytes],
    settings: TableSettings,
    columns: Sequence[Column],
    *,
    form: Format | None = None,
) -> Rows:
    """Returns all rows of a file, or of a binary stream until its end. Raises DataError.

    form: by default by the end of the file's name, and for a stream that of its first character.
    """
    if not isinstance(source, (str, Path)):
        return _read_stream(source, STREAM, settings, columns, form)
    name = str(source)
    form = form or text_files.format_of(name)
    with text_files.reading(name), Path(source).open("rb") as opened:
        if form in ("text", "ndjson"):
            return _read_stream(opened, name, settings, columns, form)
    return _read_typed(Path(source), form, settings, columns)


def _read_stream(
    opened: IO[bytes], name: str, settings: TableSettings, columns: Sequence[Column], form: Format | None
) -> Rows:
    reader = Reader(name, settings, columns, form)
    for chunk in text_files.chunks(opened, name):
        reader.feed(chunk)
    reader.feed(b"", final=True)
    rows = reader.take()
    if not rows.frame.height:
        raise DataError(f"{name}: has no rows")
    return rows


def _read_typed(file: Path, form: Format, settings: TableSettings, columns: Sequence[Column]) -> Rows:
    name = str(file)
    required = list(dict.fromkeys([*(column.file_name for column in columns), *settings.time_columns]))
    try:
        scan = pl.scan_parquet(file) if form == "parquet" else _scan_arrow(file)
        require_columns(name, scan.collect_schema().names(), required)
        raw = scan.select(required).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from error
    if not raw.height:
        raise DataError(f"{name}: has no rows")
    cells = TypedCells(name, settings, columns)
    frame = cells.convert(raw, 1)
    del raw
    cells.refusals.check()
    return _Assembly(name, settings, columns).assemble(frame, {})


def _scan_arrow(file: Path) -> pl.LazyFrame:
    try:
        scan = pl.scan_ipc(file)
        scan.collect_schema()
    except pl.exceptions.PolarsError:
        return pl.read_ipc_stream(file).lazy()
    return scan


class Reader:
    """A text or NDJSON, as its bytes arrive: `feed` takes them, and `take` returns the rows that are complete.

    A live stream calls `take` after each `feed`, and a file at its end, so that a refusal counts all such rows.
    """

    def __init__(
        self, name: str, settings: TableSettings, columns: Sequence[Column], form: Format | None = None
    ) -> None:
        self._name, self._settings, self._columns, self._form = name, settings, columns, form
        self._decoder = Decoder(name, settings.encoding)
        self._records = Records(name)
        self._parser: Parser | None = None
        self._frames: list[pl.DataFrame] = []
        self._assembly = _Assembly(name, settings, columns)

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Takes bytes as they come; `final` says that none follow. Raises DataError for what is no table."""
        block = self._records.feed(self._decoder.feed(data, final=final), final=final)
        if not block and not (final and self._parser is None):
            return
        if self._parser is None:
            if self._form is None:
                self._form = "ndjson" if block.lstrip()[:1] == b"{" else "text"
            kind = NdjsonParser if self._form == "ndjson" else TextParser
            self._parser = kind(self._name, self._settings, self._columns)
        first_row = self._parser.rows + 1
        frame = self._parser.parse(block)
        if frame is not None:
            self._assembly.read_times(frame, first_row)
            self._frames.append(frame.drop(TIME_CELLS, strict=False))

    def take(self) -> Rows:
        """Returns the rows since the last call. Raises DataError for all that is refused in them."""
        if self._parser is not None:
            self._parser.check()
        frames, self._frames = self._frames, []
        if not frames:
            return Rows(self._name, pl.DataFrame(), None, self._settings)
        try:
            frame = pl.concat(frames, rechunk=False)
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{self._name}: columns change their type: {str(error).splitlines()[0]}") from error
        return self._assembly.assemble(frame, self._found())

    def _found(self) -> dict[str, str]:
        found = {}
        if isinstance(self._parser, TextParser) and self._settings.separator is None and self._parser.width > 1:
            assert self._parser.separator is not None
            found["separator"] = text_files.separator_name(self._parser.separator)
        if self._settings.encoding is None and self._decoder.encoding != "utf-8":
            found["encoding"] = f"{self._decoder.encoding}, by the byte-order mark"
        return found


@dataclass(slots=True)
class _Assembly:
    """The frame of a table: cells with their rows, series and times, of which the required ones are present."""

    name: str
    settings: TableSettings
    columns: Sequence[Column]
    _rows: int = 0
    _parser: times.TimeParser | None = None
    _repeated: times.RepeatedHours = field(default_factory=times.RepeatedHours)
    _without_time: Refusal | None = None

    def read_times(self, frame: pl.DataFrame, first_row: int) -> None:
        """Reads the cells of the time in a part of the frame, which begins with that row of the file."""
        if TIME_CELLS not in frame.columns:
            return
        label = self.settings.time_name or ""
        if self._parser is None:
            self._parser = times.TimeParser(self.name, label, self.settings)
            self._without_time = Refusal(self.name, label)
        cells = frame[TIME_CELLS]
        if cells.null_count():
            assert self._without_time is not None
            self._without_time.add(cells.is_null().arg_true().to_list(), [""] * len(cells), first_row)
        if cells.null_count() == len(cells):
            return  # refused when the rows are taken, after a column that is absent
        self._parser.feed(cells, first_row)

    def assemble(self, frame: pl.DataFrame, found: dict[str, str]) -> Rows:
        """Returns the rows of the frame, which follow those of the last call. Raises DataError."""
        first_row, self._rows = self._rows + 1, self._rows + frame.height
        self.read_times(frame, first_row)
        rows = pl.int_range(first_row, first_row + frame.height, dtype=pl.Int64, eager=True).alias(ROW)
        refuse_missing(self.name, self.columns, frame, rows)
        columns = {column: frame[column] for column in frame.columns if column != TIME_CELLS}
        if self._parser is None:
            return Rows(self.name, pl.DataFrame(columns | {ROW: rows}), None, self.settings, found)
        return self._with_times(columns, rows, first_row, found)

    def _with_times(
        self, columns: dict[str, pl.Series], rows: pl.Series, first_row: int, found: dict[str, str]
    ) -> Rows:
        assert self._parser is not None
        label = self.settings.time_name or ""
        if self._without_time is not None and self._without_time.count:
            raise self._without_time.error("has no value: each row needs a time")
        parsed = self._parser.take()
        refusals = Refusals(self.name, label, first_row)
        axis, clock, zone = times.locate(parsed, self.settings, columns.get(SERIES), refusals, self._repeated)
        refusals.raise_first()
        settings = self.settings.model_copy(
            update={
                "time_zone": zone,
                "time_format": self.settings.time_format or (parsed.form.setting if parsed.form else None),
            }
        )
        if settings.time_format != self.settings.time_format:
            found["time format"] = f'"{settings.time_format}": no row fits another order of day and month'
        if axis.dtype.is_temporal():
            found["clock"] = "as written" if zone == WRITTEN else f"{zone}"
        elif (form := times.number_format(axis)) is not None and float(axis.max()) >= _LEAST_DATE:  # type: ignore[arg-type]
            found["clock"] = f'none, the times are numbers; if they are dates, set data.time_format = "{form}"'
        columns[label] = axis
        if clock is not None:
            columns[CLOCK] = clock
        frame = pl.DataFrame(columns | {ROW: rows})
        time_axis = TimeAxis(ROW, label, SERIES if SERIES in columns else None, CLOCK if clock is not None else None)
        return Rows(self.name, frame, time_axis, settings, found, parsed.dates_only)


def refuse_missing(name: str, columns: Sequence[Column], frame: pl.DataFrame, rows: pl.Series) -> None:
    """Raises DataError for a missing value in a column that is not nullable. rows: the numbers of the frame's rows."""
    for column in columns:
        cells = frame[column.name]
        if column.nullable or not cells.null_count():
            continue
        if cells.null_count() == len(cells) > 1:
            raise DataError(
                f"{name}: column {column.file_name}: has no value in any of {len(cells):,} rows: all of its "
                "cells are empty, or among data.missing_values"
            )
        refusal = Refusal(name, column.file_name)
        refused = rows.filter(cells.is_null()).sort()
        for row in refused.head(NAMED_ROWS):
            refusal.add([0], [""], row)
        refusal.count = len(refused)
        is_feature = not column.name.startswith("__")
        hint = "in training, list a feature that may be missing under data.missing" if is_feature else ""
        raise refusal.error("no value" if is_feature else "no value, which each row needs", hint)
