"""Table reader: a CSV or Parquet file as rows grouped by series, in time order.

Owns the reading and checking of columns. Knows nothing of what they are used for. Every error names the file, and the
row and the column where there is one.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onward.model import calendar
from onward.model.tables import policies, summary
from onward.model.tables.intervals import TimeAxis
from onward.model.tables.policies import Findings
from onward.model.tables.summary import Summary
from onward.training.config import Data
from onward.training.errors import DataError

ROW, _FIRST = "__row of the file", "__first row of the series"


@dataclass(frozen=True, slots=True)
class Table:
    """The columns that a configuration names, with the rows of each series together and ordered by time."""

    file: Path
    rows: pl.DataFrame
    sizes: tuple[int, ...]
    """The number of rows of each series."""
    summary: Summary

    @staticmethod
    def read(file: Path, data: Data) -> "Table":
        """Returns the table in `file`. Raises DataError."""
        structure = filter(None, (data.series, data.time_name, data.label, data.part))
        rows = _read(file, list(dict.fromkeys([*data.columns, *structure]))).with_row_index(ROW, offset=1)
        if not rows.height:
            raise DataError(f"{file}: has no rows")
        for column in rows.columns:
            if column not in data.missing:
                _refuse_nulls(file, rows, column)
        if data.time_name is not None:
            _require_order(file, rows, data.time_name)
        arranged, findings = _arrange(file, rows, data)
        if data.calendar and data.time_name is not None:
            arranged = _add_calendar(file, arranged, data.time_name, data.calendar)
        arranged = arranged.with_columns(pl.col(ROW).min().over(data.series or pl.lit(0)).alias(_FIRST))
        sizes = arranged.group_by(_FIRST, maintain_order=True).len()["len"]
        return Table(file, arranged, tuple(sizes.to_list()), _summarise(file, rows, data, findings))

    def without(self, series: Collection[int]) -> "Table":
        """Returns the table without some series, by their positions."""
        remains = np.repeat([position not in series for position in range(len(self.sizes))], self.sizes)
        sizes = tuple(size for position, size in enumerate(self.sizes) if position not in series)
        return replace(self, rows=self.rows.filter(pl.Series(remains)), sizes=sizes)

    def error_at(self, row: int, column: str, what: str) -> DataError:
        """Returns an error that names the file's row and column. row: the index in `rows`."""
        return DataError(f"{self.file}: row {self.rows[ROW][row]}, column {column}: {what}")

    def numbers(self, column: str, *, nullable: bool) -> NDArray[np.float64]:
        """Returns a column of numbers (rows,), NaN where a value is missing. Raises DataError."""
        kind, rows = self.rows.schema[column], self.rows
        if not (kind.is_numeric() or kind in (pl.Boolean, pl.Null)):
            row = 0
            if kind == pl.String:
                wrong = rows[column].cast(pl.Float64, strict=False).is_null() & rows[column].is_not_null()
                row = wrong.arg_max() or 0
            raise self.error_at(row, column, f"{rows[column].to_list()[row]!r} is not a number")
        values = rows[column].cast(pl.Float64).to_numpy()
        not_finite = np.abs(values) > float(np.finfo(np.float32).max)
        if not nullable:
            not_finite |= np.isnan(values)
        if not_finite.any():
            row = int(not_finite.argmax())
            raise self.error_at(row, column, f"{values[row]} is not a finite 32-bit number")
        return values

    def require_constant(self, column: str, what: str) -> None:
        """Raises DataError if the column changes within a series."""
        values = self.rows[column]
        changed = values.ne_missing(values.shift(1)) & (self.rows[_FIRST] == self.rows[_FIRST].shift(1))
        if changed.any():
            raise self.error_at(changed.arg_max() or 0, column, f"{what} changes within its series")


def _read(file: Path, columns: list[str]) -> pl.DataFrame:
    try:
        if file.suffix == ".parquet":
            lazy = pl.scan_parquet(file)
        elif file.suffix == ".csv":
            lazy = pl.scan_csv(file, try_parse_dates=True, infer_schema_length=None)
        else:
            raise DataError(f"{file}: expected a file that ends in .csv or .parquet")
        present = lazy.collect_schema().names()
        if missing := [column for column in columns if column not in present]:
            raise DataError(f"{file}: no column {', '.join(missing)}; it has {', '.join(present)}")
        return lazy.select(columns).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error


def _refuse_nulls(file: Path, rows: pl.DataFrame, column: str) -> None:
    empty = rows.filter(pl.col(column).is_null())
    if empty.height:
        raise DataError(
            f"{file}: row {empty[ROW][0]}, column {column}: no value ({empty.height} such rows); "
            "list a feature that may be missing under data.missing"
        )


def _add_calendar(file: Path, rows: pl.DataFrame, column: str, units: tuple[calendar.Cycle, ...]) -> pl.DataFrame:
    kind = rows.schema[column]
    if kind not in (pl.Date, pl.Datetime):
        raise DataError(f"{file}: column {column}: a calendar needs dates or times, as 2012-01-31T12:00:00, not {kind}")
    if kind == pl.Date and (cycles := [unit for unit in units if unit in {"hour", "day"}]):
        raise DataError(
            f"{file}: column {column}: the cycle {' and '.join(cycles)} needs a time of day; the column has only dates"
        )
    if taken := [name for name in calendar.names(column, units) if name in rows.columns]:
        raise DataError(f"{file}: column {taken[0]} has the name of a calendar feature; rename the column")
    return rows.with_columns(_expressions(column, units))


def _expressions(column: str, units: tuple[calendar.Cycle, ...]) -> list[pl.Expr]:
    time = pl.col(column).cast(pl.Datetime)
    hours = time.dt.hour() + time.dt.minute() / 60 + time.dt.second() / 3600
    phases = {
        "hour": (time.dt.minute() + time.dt.second() / 60) / 60,
        "day": hours / 24,
        "week": (time.dt.weekday() - 1 + time.dt.hour() / 24) / 7,
        "year": (time.dt.ordinal_day() - 1) / 365.25,
    }
    columns = []
    for unit in units:
        angle = phases[unit] * 2 * math.pi
        columns += [angle.sin().alias(f"{column}_{unit}_sin"), angle.cos().alias(f"{column}_{unit}_cos")]
    return columns


def _require_order(file: Path, rows: pl.DataFrame, column: str) -> None:
    if not (rows.schema[column].is_numeric() or rows.schema[column].is_temporal()):
        raise DataError(
            f"{file}: row {rows[ROW][0]}, column {column}: {rows[column][0]!r} is neither a number nor a date; "
            "write times as numbers, or dates as 2012-01-31 or 2012-01-31T12:00:00"
        )


def _arrange(file: Path, rows: pl.DataFrame, data: Data) -> tuple[pl.DataFrame, Findings]:
    """Returns the rows by series and time, as the policies say. Raises DataError."""
    if data.time_name is None:
        ordered, _ = policies.order(str(file), rows, TimeAxis(ROW, ROW, data.series), "sort")
        return ordered, Findings()
    numbers = [name for name in data.columns if name not in data.categories and rows.schema[name].is_integer()]
    rows = rows.with_columns(pl.col(numbers).cast(pl.Float64))
    constant = [*data.static, *filter(None, (data.part, data.label if data.per == "sequence" else None))]
    return policies.apply(
        str(file),
        rows,
        TimeAxis(ROW, data.time_name, data.series),
        unsorted=data.unsorted,
        duplicates=data.duplicates,
        gaps=data.gaps,
        interval=data.interval,
        events=data.predicts != "numbers",
        carried=constant,
        nullable=data.missing,
    )


def _summarise(file: Path, rows: pl.DataFrame, data: Data, findings: Findings) -> Summary:
    columns = list(dict.fromkeys([*data.columns, *((data.label,) if data.label else ())]))
    numbers = [name for name in data.columns if name not in data.categories and rows.schema[name].is_numeric()]
    return summary.summarise(
        file.name,
        rows,
        row=ROW,
        series=data.series,
        time=data.time_name,
        columns=columns,
        numbers=numbers,
        settings={},
        findings=findings,
        duplicates=data.duplicates,
        gaps=data.gaps,
    )
