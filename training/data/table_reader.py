"""A CSV or Parquet file as rows in series, in time order.

Owns the reading and checking of columns. Knows nothing of what they are learnt for. Every error names the file, and the
row and the column where there is one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onward.training.config import Data
from onward.training.data import calendar
from onward.training.errors import DataError

ROW, _FIRST = "__row of the file", "__first row of the series"


@dataclass(frozen=True, slots=True)
class Table:
    """The rows that a configuration asks for, each series' together and in order, series in the file's order."""

    file: Path
    rows: pl.DataFrame
    sizes: tuple[int, ...]
    """Rows of each series."""

    @staticmethod
    def read(file: Path, data: Data) -> "Table":
        """Raises DataError."""
        told = filter(None, (data.series, data.time, data.label, data.part))
        rows = _read(file, list(dict.fromkeys([*data.columns, *told]))).with_row_index(ROW, offset=1)
        if not rows.height:
            raise DataError(f"{file}: has no rows")
        for column in rows.columns:
            if column not in data.missing:
                _no_nulls(file, rows, column)
        if data.calendar and data.time is not None:
            rows = _with_calendar(file, rows, data.time, data.calendar)
        rows = rows.with_columns(pl.col(ROW).min().over(data.series or pl.lit(0)).alias(_FIRST))
        if data.time is not None:
            _has_order(file, rows, data.time)
        rows = rows.sort([_FIRST, *([data.time] if data.time else []), ROW])
        if data.time is not None and data.predicts == "numbers":
            _no_moment_twice(file, rows, data.time, data.series)
        sizes = rows.group_by(_FIRST, maintain_order=True).len()["len"]
        return Table(file, rows, tuple(sizes.to_list()))

    def fail(self, row: int, column: str, what: str) -> DataError:
        """row: the place among `rows`."""
        return DataError(f"{self.file}: row {self.rows[ROW][row]}, column {column}: {what}")

    def numbers(self, column: str, *, nullable: bool) -> NDArray[np.float32]:
        """(rows,) NaN where a value is missing."""
        kind, rows = self.rows.schema[column], self.rows
        if not (kind.is_numeric() or kind in (pl.Boolean, pl.Null)):
            place = 0
            if kind == pl.String:
                wrong = rows[column].cast(pl.Float64, strict=False).is_null() & rows[column].is_not_null()
                place = wrong.arg_max() or 0
            raise self.fail(place, column, f"{rows[column].to_list()[place]!r} is not a number")
        values = rows[column].cast(pl.Float64).to_numpy()
        wrong_at = np.abs(values) > float(np.finfo(np.float32).max)
        if not nullable:
            wrong_at |= np.isnan(values)
        if wrong_at.any():
            place = int(wrong_at.argmax())
            raise self.fail(place, column, f"{values[place]} is no finite 32-bit number")
        return values.astype(np.float32)

    def constant(self, column: str, what: str) -> None:
        """Raises DataError where the column changes within a series."""
        values = self.rows[column]
        changed = values.ne_missing(values.shift(1)) & (self.rows[_FIRST] == self.rows[_FIRST].shift(1))
        if changed.any():
            raise self.fail(changed.arg_max() or 0, column, f"{what} changes within its series")


def _read(file: Path, columns: list[str]) -> pl.DataFrame:
    try:
        if file.suffix == ".parquet":
            lazy = pl.scan_parquet(file)
        elif file.suffix == ".csv":
            lazy = pl.scan_csv(file, try_parse_dates=True, infer_schema_length=None)
        else:
            raise DataError(f"{file}: expected a file that ends in .csv or .parquet")
        have = lazy.collect_schema().names()
        if missing := [column for column in columns if column not in have]:
            raise DataError(f"{file}: no column {', '.join(missing)}; it has {', '.join(have)}")
        return lazy.select(columns).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error


def _no_nulls(file: Path, rows: pl.DataFrame, column: str) -> None:
    empty = rows.filter(pl.col(column).is_null())
    if empty.height:
        raise DataError(
            f"{file}: row {empty[ROW][0]}, column {column}: no value ({empty.height} such rows); "
            "a feature that may be missing is listed under missing"
        )


def _with_calendar(file: Path, rows: pl.DataFrame, column: str, units: tuple[str, ...]) -> pl.DataFrame:
    kind = rows.schema[column]
    if kind not in (pl.Date, pl.Datetime):
        raise DataError(f"{file}: column {column}: a calendar needs dates or times, as 2012-01-31T12:00:00, not {kind}")
    if kind == pl.Date and (within := [unit for unit in units if unit in {"hour", "day"}]):
        raise DataError(f"{file}: column {column}: dates have no place in the {' or the '.join(within)}")
    if taken := [name for name in calendar.names(column, units) if name in rows.columns]:
        raise DataError(f"{file}: column {taken[0]} is in the way of the calendar feature of that name")
    return rows.with_columns(calendar.expressions(column, units))


def _has_order(file: Path, rows: pl.DataFrame, column: str) -> None:
    if not (rows.schema[column].is_numeric() or rows.schema[column].is_temporal()):
        raise DataError(
            f"{file}: row {rows[ROW][0]}, column {column}: {rows[column][0]!r} has no place in time; "
            "write numbers, or dates as 2012-01-31 or 2012-01-31T12:00:00"
        )


def _no_moment_twice(file: Path, rows: pl.DataFrame, column: str, series: str | None) -> None:
    """Of measurements; events may share a moment, and keep the file's order."""
    same = (pl.col(column) == pl.col(column).shift(1)) & (pl.col(_FIRST) == pl.col(_FIRST).shift(1))
    twice = rows.filter(same)
    if twice.height:
        of = f" in series {twice[series][0]}" if series else ""
        raise DataError(f"{file}: row {twice[ROW][0]}, column {column}: {twice[column][0]} appears twice{of}")
