"""The sampling interval of a table: how it is found in the times, and how steps are counted by it.

An interval is a number of time units, of seconds, or of steps of the calendar: days, business days and months are equal
steps on the clock although they differ in seconds, at the ends of months and where clocks change.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

Unit = Literal["", "second", "day", "business day", "month", "month end"]

REGULAR = 0.5
"""The share of the steps of regular times that equal the interval, at the least."""

ALMOST_REGULAR, JITTER = 0.9, 0.1
"""Times whose steps all differ are regular too if at least this share differs from the median by at most a tenth."""

_MICROSECOND = 1e-6
_SECONDS = {"day": 86400, "hour": 3600, "minute": 60}


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """The columns of a frame that place a row: its number in the file, its series, and its time.

    The time is a number, a date, or an instant; instants with a zone are read on that zone's clock. `clock` is the
    column of the clock as it was written, if instants have none.
    """

    row: str
    time: str
    series: str | None = None
    clock: str | None = None

    def same_series(self) -> pl.Expr:
        """Returns whether a row of the ordered frame continues the series of the row before it."""
        if self.series is None:
            return pl.int_range(pl.len()) > 0
        return (pl.col(self.series) == pl.col(self.series).shift(1)).fill_null(value=False)

    def wall_clock(self, frame: pl.DataFrame) -> pl.Series:
        """Returns the date and time of day that a clock shows: datetimes without a zone, in microseconds."""
        return (
            frame[self.clock or self.time].cast(_as_datetime(frame[self.clock or self.time])).dt.replace_time_zone(None)
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A sampling interval: `count` times the unit. Without a unit it is in the units of a time column of numbers."""

    count: float
    unit: Unit

    def __str__(self) -> str:
        count, unit = self.count, self.unit
        if unit == "second":
            for name, seconds in _SECONDS.items():
                if count >= seconds and count % seconds == 0:
                    count, unit = count / seconds, name  # type: ignore[assignment]
                    break
        elif unit == "month end":
            unit = "month"
        amount = f"{count:.12g}"
        return f"{amount} {unit}{'' if count == 1 else 's'}" if unit else amount

    @property
    def setting(self) -> float | str:
        """The value of the setting `interval`: a number of seconds or time units, or a step of the calendar."""
        return self.count if self.unit in ("", "second") else f"{self.count:.0f} {self.unit}"

    @staticmethod
    def parse(setting: float | str, *, temporal: bool) -> "Interval":
        """Returns the interval of a setting. Raises ValueError."""
        if isinstance(setting, str):
            count, _, unit = setting.partition(" ")
            if unit not in get_args(Unit)[2:] or not count.isdecimal() or not int(count):
                raise ValueError(f"{setting!r} is no interval such as 3600, '1 day', '1 business day' or '1 month'")
            return Interval(int(count), unit)  # type: ignore[arg-type]
        if not setting > 0:
            raise ValueError(f"an interval is above 0, not {setting}")
        return Interval(setting, "second" if temporal else "")

    def steps(self, frame: pl.DataFrame, axis: TimeAxis) -> NDArray[np.float64]:
        """Returns how many intervals after the row before it each row is, NaN for the first row of a series."""
        return _differences(frame, axis, self.unit) / self.count

    def times_after(self, frame: pl.DataFrame, axis: TimeAxis, number: pl.Series) -> dict[str, pl.Series]:
        """Returns the columns of the time, `number` (rows,) intervals after those of the frame."""
        time, steps = frame[axis.time], number * self.count
        if not self.unit:
            return {axis.time: (time + steps).cast(time.dtype)}
        if self.unit == "second":
            passed = (steps * 1_000_000).round().cast(pl.Int64).cast(pl.Duration("us"))
            columns = [name for name in (axis.time, axis.clock) if name is not None]
            return {name: (frame[name] + passed).cast(frame[name].dtype) for name in columns}
        clock = axis.wall_clock(frame)
        moved = _on_calendar(clock, steps.cast(pl.Int64), self.unit)
        zone = getattr(time.dtype, "time_zone", None)
        if axis.clock is None and zone is not None:
            instants = moved.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
            return {axis.time: instants.fill_null(time + (moved - clock)).cast(time.dtype)}
        times = {axis.time: (time.cast(_as_datetime(time)) + (moved - clock)).cast(time.dtype)}
        return times | ({axis.clock: moved.cast(frame[axis.clock].dtype)} if axis.clock else {})


@dataclass(frozen=True, slots=True)
class Sampling:
    """The interval of a table's times, and whether its steps equal it, or vary by a tenth."""

    interval: Interval
    exact: bool
    share: float
    """The share of the steps that equal the interval."""


def given(setting: float | str, frame: pl.DataFrame, axis: TimeAxis) -> Sampling:
    """Returns the interval of a setting; months between times that are ends of months end there. Raises ValueError."""
    interval = Interval.parse(setting, temporal=frame[axis.time].dtype.is_temporal())
    if interval.unit == "month" and _unit(frame, axis) == "month end":
        interval = Interval(interval.count, "month end")
    return Sampling(interval, exact=True, share=1.0)


def find(frame: pl.DataFrame, axis: TimeAxis) -> Sampling | None:
    """Returns the most common step of the ordered times over all series; None if the times are irregular."""
    unit = _unit(frame, axis)
    differences = _differences(frame, axis, unit)
    differences = differences[~np.isnan(differences)]
    positive = differences[differences > 0]
    if not positive.size:
        return None
    count, share = most_common(positive, _MICROSECOND if unit else _rounding(frame[axis.time]))
    share *= positive.size / differences.size
    if share >= REGULAR:
        return Sampling(Interval(count, unit), exact=True, share=share)
    median = float(f"{np.median(positive):.6g}")
    if unit in ("", "second") and np.mean(np.abs(differences / median - 1) <= JITTER) >= ALMOST_REGULAR:
        return Sampling(Interval(median, unit), exact=False, share=share)
    return None


def most_common(values: NDArray[np.float64], resolution: float) -> tuple[float, float]:
    """Returns the most common of positive values that are equal up to a few roundings, and the share of its equals."""
    rounded = np.round(values / resolution)
    if (rounded == rounded[0]).all():  # the usual case, and much faster than a sort
        rounded = rounded[:1]
    distinct, counts = np.unique(rounded, return_counts=True)
    equal = np.abs(rounded - distinct[counts.argmax()]) <= 4
    value = float(np.median(values[: len(equal)][equal]))
    return _shortest(value, 4 * resolution), float(equal.mean())


def _shortest(value: float, allowed: float) -> float:
    """Returns the number of the fewest digits that differs from `value` by at most what is allowed."""
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next((number for number in candidates if abs(number - value) <= allowed), value)


def _rounding(times: pl.Series) -> float:
    """Returns a few times the rounding error of the largest of the times, which are numbers."""
    largest = float(np.abs(times.cast(pl.Float64).to_numpy()).max())
    return max(largest * 2.0**-50, 1e-300)


def _unit(frame: pl.DataFrame, axis: TimeAxis) -> Unit:
    """Returns the unit in which the times are regular, if they are."""
    if frame[axis.time].dtype.is_numeric():
        return ""
    clock = axis.wall_clock(frame)
    if clock.dt.time().n_unique() > 1:
        return "second"
    days = _differences(frame, axis, "day")
    days = days[days > 0]
    common = most_common(days, 1e-6)[0] if days.size else 0.0
    if common >= 28 and clock.dt.day().n_unique() == 1:
        return "month"
    if common >= 28 and (clock.dt.month_end() == clock).all():
        return "month end"
    if common == 1 and clock.len() >= 10 and (clock.dt.weekday() <= 5).all():
        return "business day"
    return "day"


def _differences(frame: pl.DataFrame, axis: TimeAxis, unit: Unit) -> NDArray[np.float64]:
    """Returns each row's distance to the row before it in its series, in units; NaN for the first of a series."""
    differences = _positions(frame, axis, unit).diff().cast(pl.Float64).to_numpy(writable=True)
    differences /= {"second": 1e6, "day": 86_400e6}.get(unit, 1.0)
    differences[~frame.select(axis.same_series().alias("same"))["same"].to_numpy()] = np.nan
    return differences


def _positions(frame: pl.DataFrame, axis: TimeAxis, unit: Unit) -> pl.Series:
    """Returns where each row lies on the axis: in time units, in microseconds, in business days or in months."""
    time = frame[axis.time]
    if not unit:
        return time.cast(pl.Int64) if time.dtype.is_integer() else time
    if unit == "second":
        return time.cast(_as_datetime(time)).to_physical()
    clock = axis.wall_clock(frame)
    if unit in ("month", "month end"):
        return clock.dt.year().cast(pl.Int64) * 12 + clock.dt.month()
    if unit == "business day":
        weeks = clock.dt.truncate("1w").to_physical() // (7 * 86_400_000_000)
        return weeks * 5 + clock.dt.weekday()
    return clock.to_physical()


def _on_calendar(clock: pl.Series, steps: pl.Series, unit: Unit) -> pl.Series:
    """Returns the clock `steps` (rows,) days, business days or months later."""
    frame = pl.DataFrame({"clock": clock, "steps": steps})
    moved = {
        "day": pl.col("clock") + pl.duration(days=pl.col("steps")),
        "business day": pl.col("clock").dt.add_business_days("steps", roll="forward"),
        "month": pl.col("clock").dt.offset_by(pl.format("{}mo", pl.col("steps"))),
        "month end": pl.col("clock").dt.offset_by(pl.format("{}mo", pl.col("steps"))).dt.month_end(),
    }[unit]
    return frame.select(moved.alias("moved"))["moved"]


def _as_datetime(values: pl.Series) -> pl.Datetime:
    return pl.Datetime("us", getattr(values.dtype, "time_zone", None))
