"""Policies for the rows of a table: their order, repeated times, and gaps between times, within each series.

Owns what happens to such rows, and how messages name them. All functions are pure: they take a frame and return a frame
with what they found in it. Knows nothing of files.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onward.model.errors import DataError
from onward.model.tables import intervals
from onward.model.tables.intervals import Interval, Sampling, TimeAxis

Unsorted = Literal["refuse", "sort"]
Duplicates = Literal["refuse", "first", "last", "mean"]
Gaps = Literal["refuse", "missing", "ignore"]

NAMED_ROWS = 3
"""The number of rows that a message names, of all that it is about."""

MOST_INSERTED = 10
"""The most rows that are inserted for missing times, as a multiple of the rows of the file."""

_STEPS, _GROUP = "__steps after the row", "__rows of one time"


@dataclass(frozen=True, slots=True)
class Affected:
    """Rows that a policy concerns: how many they are, and the first of them in words."""

    count: int = 0
    first: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return ", ".join(self.first) + (f" and {more:,} more" if more else "")


@dataclass(frozen=True, slots=True)
class GapsFound:
    """Gaps between the times: the rows after which they are, and the number of rows that are missing."""

    affected: Affected = Affected()
    missing: int = 0
    longest: int = 0
    """The number of rows that are missing in the longest gap."""
    uneven: int = 0
    """The number of steps that are no whole number of intervals."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of the policies in a table, with the number of rows that they inserted."""

    unsorted: Affected = Affected()
    duplicates: Affected = Affected()
    sampling: Sampling | None = None
    gaps: GapsFound = GapsFound()
    inserted: int = 0


def apply(
    file: str,
    frame: pl.DataFrame,
    axis: TimeAxis,
    *,
    unsorted: Unsorted = "sort",
    duplicates: Duplicates = "refuse",
    gaps: Gaps = "ignore",
    interval: float | str | None = None,
    events: bool = False,
    carried: Collection[str] = (),
    nullable: Collection[str] = (),
) -> tuple[pl.DataFrame, Findings]:
    """Returns the rows by series and time, as the policies say, and what was found. Raises DataError.

    file: its name in messages. frame: rows in the file's order. events: rows of equal times are different events.
    carried: columns that are constant within a series. nullable: columns that may be missing. A column that is derived
    from the time is derived afterwards, from the times that are returned.
    """
    frame, out_of_order = order(file, frame, axis, unsorted)
    repeated = Affected()
    if not events:
        frame, repeated = resolve_duplicates(file, frame, axis, duplicates)
    sampling = _sampling(file, frame, axis, interval)
    frame, found, inserted = resolve_gaps(file, frame, axis, gaps, sampling, carried=carried, nullable=nullable)
    return frame, Findings(out_of_order, repeated, sampling, found, inserted)


def order(file: str, frame: pl.DataFrame, axis: TimeAxis, policy: Unsorted) -> tuple[pl.DataFrame, Affected]:
    """Returns the rows of each series together and by time, and the rows that were earlier than the row before them.

    Series are in the order of their first rows, and rows of equal times in the order of the file. Raises DataError.
    """
    before = pl.col(axis.time).shift(1)
    earlier = pl.col(axis.time) < (before if axis.series is None else before.over(axis.series))
    late = _affected(frame, axis, frame.select(earlier.fill_null(value=False).alias("late"))["late"])
    if late.count and policy == "refuse":
        raise DataError(
            f"{file}: {_rows(late)} an earlier time than the row before {'them' if late.count > 1 else 'it'}"
            f'{_in_series(axis)}: {late}; set data.unsorted = "sort"'
        )
    if not late.count and _is_together(frame, axis):
        return frame, late
    begins = [] if axis.series is None else [pl.col(axis.row).min().over(axis.series)]
    return frame.sort(*begins, axis.time, axis.row), late


def _is_together(frame: pl.DataFrame, axis: TimeAxis) -> bool:
    """Returns whether the rows of each series follow each other."""
    return axis.series is None or frame[axis.series].rle().len() == frame[axis.series].n_unique()


def resolve_duplicates(
    file: str, frame: pl.DataFrame, axis: TimeAxis, policy: Duplicates
) -> tuple[pl.DataFrame, Affected]:
    """Returns a row for each time of a series, and the rows whose time an earlier row has. Raises DataError.

    frame: the ordered rows. The mean is that of the numbers that are present; of other columns the first row counts.
    """
    same = (pl.col(axis.time) == pl.col(axis.time).shift(1)) & axis.same_series()
    again = frame.select(same.alias("again"))["again"]
    repeated = _affected(frame, axis, again)
    if not repeated.count:
        return frame, repeated
    if policy == "refuse":
        raise DataError(
            f"{file}: {_rows(repeated)} a time that an earlier row{_in_series(axis)} has: {repeated}; "
            f"{_advice_for_duplicates(frame, axis, again)}"
        )
    if policy == "first":
        return frame.filter(~again), repeated
    if policy == "last":
        return frame.filter(~again.shift(-1, fill_value=False)), repeated
    grouped = frame.with_columns((~again).cum_sum().alias(_GROUP)).group_by(_GROUP, maintain_order=True)
    columns = [
        _mean(name) if dtype.is_float() and name != axis.time else pl.col(name).first()
        for name, dtype in frame.schema.items()
    ]
    return grouped.agg(columns).drop(_GROUP), repeated


def resolve_gaps(
    file: str,
    frame: pl.DataFrame,
    axis: TimeAxis,
    policy: Gaps,
    sampling: Sampling | None,
    *,
    carried: Collection[str] = (),
    nullable: Collection[str] = (),
) -> tuple[pl.DataFrame, GapsFound, int]:
    """Returns the rows, the gaps between their times, and how many rows were inserted for times in gaps.

    frame: the ordered rows. An inserted row has the series and the carried columns of the row before it, whose number
    it has in messages, and otherwise no values. Raises DataError.
    """
    if sampling is None:
        if policy != "ignore":
            raise DataError(
                f'{file}, column {axis.time}: gaps = "{policy}" needs a sampling interval, and the times are '
                'irregular: set data.interval, or gaps = "ignore"'
            )
        return frame, GapsFound(), 0
    steps = sampling.interval.steps(frame, axis)
    whole = np.nan_to_num(np.round(steps), nan=1.0)
    missing = np.maximum(whole - 1, 0)
    after = np.append(missing[1:], 0.0)  # how many rows are missing after each row
    gaps = _gaps(frame, axis, after, uneven=int(np.count_nonzero(np.abs(steps - whole) > intervals.JITTER)))
    if not gaps.missing or policy == "ignore":
        return frame, gaps, 0
    if policy == "refuse":
        raise DataError(
            f"{file}: {counted(gaps.affected.count, 'gap')} in times that are {sampling.interval} apart, in which "
            f'{counted(gaps.missing, "row")} are missing: {gaps.affected}; set data.gaps = "missing" to insert rows '
            'without values, or gaps = "ignore"'
        )
    _require_insertable(file, frame, gaps, {axis.row, axis.time, axis.series, axis.clock, *carried, *nullable})
    return _insert(frame, axis, sampling.interval, after.astype(np.int64), carried), gaps, gaps.missing


def _require_insertable(file: str, frame: pl.DataFrame, gaps: GapsFound, allowed: Collection[str | None]) -> None:
    if required := [name for name in frame.columns if name not in allowed]:
        raise DataError(
            f'{file}: gaps = "missing" inserts {counted(gaps.missing, "row")} without values: list '
            f'{", ".join(required)} under data.missing, or set gaps = "ignore"; the first gaps: {gaps.affected}'
        )
    if gaps.missing > MOST_INSERTED * frame.height:
        raise DataError(
            f"{file}: {counted(gaps.missing, 'row')} are missing, more than {MOST_INSERTED} times the {frame.height:,} "
            f'of the file: {gaps.affected}; set gaps = "ignore", or tell the parts apart by data.series'
        )


def _insert(
    frame: pl.DataFrame, axis: TimeAxis, interval: Interval, after: NDArray[np.int64], carried: Collection[str]
) -> pl.DataFrame:
    source = np.repeat(np.arange(len(after)), after + 1)
    starts = np.cumsum(after + 1) - after - 1
    filled = frame[source].with_columns(pl.Series(_STEPS, np.arange(len(source)) - starts[source]))
    times = interval.times_after(filled, axis, filled[_STEPS])
    copied = {axis.row, axis.series, *carried, _STEPS}
    present = pl.col(_STEPS) == 0
    values = [pl.when(present).then(name).alias(name) for name in frame.columns if name not in {*copied, *times}]
    moved = [pl.when(present).then(name).otherwise(time).alias(name) for name, time in times.items()]
    return filled.with_columns(*values, *moved).drop(_STEPS)


def _sampling(file: str, frame: pl.DataFrame, axis: TimeAxis, setting: float | str | None) -> Sampling | None:
    if setting is None:
        return intervals.find(frame, axis)
    try:
        return intervals.given(setting, frame, axis)
    except ValueError as error:
        raise DataError(f"{file}: data.interval: {error}") from error


def _mean(name: str) -> pl.Expr:
    """Returns the mean of the values that are present; equal values exactly, whatever their sum is rounded to."""
    column = pl.col(name)
    return pl.when(column.min() == column.max()).then(column.min()).otherwise(column.mean()).alias(name)


def _gaps(frame: pl.DataFrame, axis: TimeAxis, after: NDArray[np.float64], uneven: int) -> GapsFound:
    rows = np.flatnonzero(after)
    first = [f"after {_name(frame, axis, int(row))} {counted(int(after[row]), 'row')}" for row in rows[:NAMED_ROWS]]
    longest = int(after.max()) if len(after) else 0
    return GapsFound(Affected(len(rows), tuple(first)), int(after.sum()), longest, uneven)


def _affected(frame: pl.DataFrame, axis: TimeAxis, selected: pl.Series) -> Affected:
    rows = selected.arg_true()
    return Affected(len(rows), tuple(_name(frame, axis, row) for row in rows.head(NAMED_ROWS)))


def _name(frame: pl.DataFrame, axis: TimeAxis, row: int) -> str:
    series = [] if axis.series is None else [f"series {frame[axis.series][row]}"]
    return f"row {frame[axis.row][row]} ({', '.join([*series, str(frame[axis.clock or axis.time][row])])})"


def _advice_for_duplicates(frame: pl.DataFrame, axis: TimeAxis, again: pl.Series) -> str:
    choice = 'set data.duplicates to "first", "last" or "mean"'
    if _is_repeated_hour(frame, axis, again):
        choice = (
            "this may be the hour that occurs twice when clocks are set back: set data.time_zone, "
            'or data.duplicates to "first", "last" or "mean"'
        )
    values = [name for name in frame.columns if name not in (axis.row, axis.time, axis.clock)]
    equal = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(1)) for name in values)
    if values and frame.select(equal.alias("equal"))["equal"].filter(again).all():
        return f"{choice}; the rows of one time are equal"
    return choice


def _is_repeated_hour(frame: pl.DataFrame, axis: TimeAxis, again: pl.Series) -> bool:
    """Returns whether the repeated times are clock times within one hour, on one or two days a year."""
    if axis.clock is not None or not isinstance(frame[axis.time].dtype, pl.Datetime):
        return False
    if getattr(frame[axis.time].dtype, "time_zone", None) is not None:
        return False
    times = axis.wall_clock(frame)
    repeated = times.filter(again)
    days_in_a_year = pl.DataFrame({"year": repeated.dt.year(), "day": repeated.dt.date()}).group_by("year").n_unique()
    return repeated.dt.hour().n_unique() == 1 and int(days_in_a_year["day"].max()) <= 2  # type: ignore[arg-type]


def _rows(affected: Affected) -> str:
    return f"{counted(affected.count, 'row')} {'have' if affected.count > 1 else 'has'}"


def _in_series(axis: TimeAxis) -> str:
    return "" if axis.series is None else " of the same series"


def counted(number: int, noun: str) -> str:
    """Returns a number of things in words."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
