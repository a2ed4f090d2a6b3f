"""Series from a CSV or Parquet file, checked, ordered and split by time.

Owns what a table must be to be learnt from. Knows nothing of networks.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training import calendar
from training.config import Data

VALIDATION, TEST = 0.15, 0.15
"""The share of each series' steps, at its end, that stops the training and that is held out."""

ONLY = "series"
"""The name of a table's one series, where no column tells series apart."""

_ROW = "__row of the file"


class DataError(Exception):
    """A table that cannot be learnt from; the message names the file, and the row and column where there is one."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series in time order, (time, features): trained on, then validated on, then held out for the test."""

    name: str
    values: NDArray[np.float32]
    validation_from: int
    test_from: int

    @property
    def train(self) -> NDArray[np.float32]:
        return self.values[: self.validation_from]


@dataclass(frozen=True, slots=True)
class Dataset:
    series: tuple[Series, ...]
    sha256: str
    """Of the file's bytes."""

    @property
    def steps(self) -> int:
        return sum(len(one.values) for one in self.series)


def load(file: Path, data: Data) -> Dataset:
    """The series in `file`. Raises DataError."""
    wanted = list(dict.fromkeys([*data.columns, *filter(None, (data.series, data.time))]))
    table = _read(file, wanted).with_row_index(_ROW, offset=1)
    if not table.height:
        raise DataError(f"{file}: has no rows")
    for column in wanted:
        _no_nulls(file, table, column)
    for column in data.columns:
        table = _numbers(file, table, column)
    if data.calendar and data.time is not None:
        table = _with_calendar(file, table, data.time, data.calendar)
    series = tuple(_series(file, name, one, data) for name, one in _by_series(table, data.series))
    return Dataset(series, hashlib.sha256(file.read_bytes()).hexdigest())


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


def _no_nulls(file: Path, table: pl.DataFrame, column: str) -> None:
    empty = table.filter(pl.col(column).is_null())
    if empty.height:
        raise DataError(f"{file}: row {empty[_ROW][0]}, column {column}: no value ({empty.height} such rows)")


def _numbers(file: Path, table: pl.DataFrame, column: str) -> pl.DataFrame:
    kind = table.schema[column]
    if not (kind.is_numeric() or kind == pl.Boolean):
        row = table
        if kind == pl.String:
            wrong = table.filter(pl.col(column).cast(pl.Float64, strict=False).is_null())
            row = wrong if wrong.height else table
        raise DataError(f"{file}: row {row[_ROW][0]}, column {column}: {row[column].to_list()[0]!r} is not a number")
    table = table.with_columns(pl.col(column).cast(pl.Float64))
    wrong = table.filter(~pl.col(column).is_finite() | (pl.col(column).abs() > float(np.finfo(np.float32).max)))
    if wrong.height:
        raise DataError(f"{file}: row {wrong[_ROW][0]}, column {column}: {wrong[column][0]} is no finite 32-bit number")
    return table


def _with_calendar(file: Path, table: pl.DataFrame, column: str, units: tuple[str, ...]) -> pl.DataFrame:
    kind = table.schema[column]
    if kind not in (pl.Date, pl.Datetime):
        raise DataError(f"{file}: column {column}: a calendar needs dates or times, as 2012-01-31T12:00:00, not {kind}")
    if kind == pl.Date and (within := [unit for unit in units if unit in {"hour", "day"}]):
        raise DataError(f"{file}: column {column}: dates have no place in the {' or the '.join(within)}")
    if taken := [name for name in calendar.names(column, units) if name in table.columns]:
        raise DataError(f"{file}: column {taken[0]} is in the way of the calendar feature of that name")
    return table.with_columns(calendar.expressions(column, units))


def _by_series(table: pl.DataFrame, column: str | None) -> Iterator[tuple[str, pl.DataFrame]]:
    if column is None:
        yield ONLY, table
    else:
        for (name,), one in table.group_by([column], maintain_order=True):
            yield str(name), one


def _series(file: Path, name: str, table: pl.DataFrame, data: Data) -> Series:
    if data.time is not None:
        if not (table.schema[data.time].is_numeric() or table.schema[data.time].is_temporal()):
            row, value = table[_ROW][0], table[data.time][0]
            raise DataError(
                f"{file}: row {row}, column {data.time}: {value!r} has no place in time; "
                "write numbers, or dates as 2012-01-31 or 2012-01-31T12:00:00"
            )
        table = table.sort(data.time, maintain_order=True)
        twice = table.filter(pl.col(data.time) == pl.col(data.time).shift(1))
        if twice.height:
            row, value = twice[_ROW][0], twice[data.time][0]
            raise DataError(f"{file}: row {row}, column {data.time}: {value} appears twice in series {name}")
    values = table.select(data.inputs).to_numpy().astype(np.float32)
    total = len(values)
    test_from = total - max(1, int(total * TEST))
    validation_from = test_from - max(1, int(total * VALIDATION))
    if validation_from < 2:
        raise DataError(f"{file}: series {name} has {total} steps; training, validation and test need at least 4")
    if data.period is not None and data.period > test_from:
        raise DataError(
            f"{file}: series {name} has {test_from} steps before its test part, fewer than period {data.period}"
        )
    return Series(name, np.ascontiguousarray(values), validation_from, test_from)
