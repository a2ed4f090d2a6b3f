"""Calendar features: values that follow from a time alone, as a clock shows it.

Owns their names, their formulas and their values: training derives them from the time column, the manifest states each
formula, and clients compute them, all by this module and therefore with the same bits. Knows nothing of tables.

A cycle (`hour`, `day`, `week`, `year`) is the phase of a time within it, as a point on a circle: two numbers. A part
(`month_of_year`, `day_of_week`, `hour_of_day`) is a category. The trend is a number that grows with time.
"""

import difflib
import math
import re
import zoneinfo
from calendar import monthrange
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Literal

Cycle = Literal["hour", "day", "week", "year"]
Entry = Literal["hour", "day", "week", "year", "month_of_year", "day_of_week", "hour_of_day", "trend"]
"""An entry of the setting `calendar`."""
WRITTEN = "written"
"""The time zone that leaves the clock as it is written."""
YEAR_S = 365.25 * 86_400
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")
_WAVES = ("sin", "cos")
_EPOCH = datetime(2000, 1, 1)  # noqa: DTZ001  (what a clock shows)


@dataclass(frozen=True, slots=True)
class Phase:
    """A cycle: `key` maps a clock's reading to a whole number, `turn` that number to the share of the cycle passed."""

    formula: str
    key: Callable[[datetime], int]
    turn: Callable[[int], float]


PHASES: dict[Cycle, Phase] = {
    "hour": Phase(
        "(minute + second / 60) / 60",
        lambda clock: clock.minute * 60 + clock.second,
        lambda seconds: (seconds // 60 + seconds % 60 / 60) / 60,
    ),
    "day": Phase(
        "(hour + minute / 60 + second / 3600) / 24",
        lambda clock: (clock.hour * 60 + clock.minute) * 60 + clock.second,
        lambda seconds: (seconds // 3600 + seconds // 60 % 60 / 60 + seconds % 60 / 3600) / 24,
    ),
    "week": Phase(
        "(ISO weekday - 1 + hour / 24) / 7",
        lambda clock: clock.weekday() * 24 + clock.hour,
        lambda hours: (hours // 24 + hours % 24 / 24) / 7,
    ),
    "year": Phase(
        "(day of the year - 1) / 365.25",
        lambda clock: clock.timetuple().tm_yday - 1,
        lambda days: days / 365.25,
    ),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a date or a time of day, as a category."""

    formula: str
    value: Callable[[datetime], int]
    categories: tuple[int, ...]


PARTS: dict[Entry, Part] = {
    "month_of_year": Part("month (1 to 12)", lambda clock: clock.month, tuple(range(1, 13))),
    "day_of_week": Part("ISO weekday (1 to 7)", lambda clock: clock.isoweekday(), tuple(range(1, 8))),
    "hour_of_day": Part("hour (0 to 23)", lambda clock: clock.hour, tuple(range(24))),
}
_TREND = "(days since 2000-01-01T00:00:00) / 365.25"

NEEDS_TIME_OF_DAY: frozenset[Entry] = frozenset({"hour", "day", "hour_of_day"})
"""The entries that dates do not have."""


def names(time: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Returns the names of the features of the time column `time`: two for each cycle, and one for another entry."""
    return tuple(name for entry in entries for name in _names(time, entry))


def _names(time: str, entry: Entry) -> tuple[str, ...]:
    return tuple(f"{time}_{entry}_{wave}" for wave in _WAVES) if entry in PHASES else (f"{time}_{entry}",)


def categories(time: str, entries: Sequence[Entry]) -> dict[str, tuple[int, ...]]:
    """Returns the categories of each feature that is one, by its name."""
    return {f"{time}_{entry}": PARTS[entry].categories for entry in entries if entry in PARTS}


def formulas(
    time: str, entries: Sequence[Entry], time_zone: str | None = None, interval: float | str | None = None
) -> dict[str, str]:
    """Returns, for each feature, the formula by which a client computes it, with the clock that it is read from.

    interval: see `values`.
    """
    clock = "as written" if time_zone in (None, WRITTEN) else f"in {time_zone}"
    lead = "" if interval is None else f" + {interval if isinstance(interval, str) else f'{interval:.12g} seconds'}"
    texts = [f"{formula} of {time}{lead} {clock}" for entry in entries for formula in _formulas(entry)]
    return dict(zip(names(time, entries), texts, strict=True))


def _formulas(entry: Entry) -> list[str]:
    if entry in PHASES:
        return [f"{wave}(2 pi {PHASES[entry].formula})" for wave in _WAVES]
    return [PARTS[entry].formula if entry in PARTS else _TREND]


def values(
    time: datetime, entries: Sequence[Entry], time_zone: str | None = None, interval: float | str | None = None
) -> tuple[float, ...]:
    """Returns the features of one time, in the order of `names`. Raises ValueError for a zone that does not exist.

    A time without an offset is what the clock shows. One with an offset is converted to the zone, if there is one.
    interval: the sampling interval of a model whose calendar has a lead of 1: the features are then those of the time
    one interval later, at which the predicted step is.
    """
    reading = clock(time if interval is None else later(time, interval, time_zone), time_zone)
    return tuple(value for entry in entries for value in _values(reading, entry))


def _values(reading: datetime, entry: Entry) -> tuple[float, ...]:
    if entry in PHASES:
        return waves(entry, PHASES[entry].key(reading))
    if entry in PARTS:
        return (PARTS[entry].value(reading),)
    return ((reading.replace(tzinfo=None, microsecond=0) - _EPOCH).total_seconds() / YEAR_S,)


def waves(cycle: Cycle, key: int) -> tuple[float, float]:
    """Returns sine and cosine of the phase that has the key."""
    angle = 2 * math.pi * PHASES[cycle].turn(key)
    return math.sin(angle), math.cos(angle)


def later(time: datetime, interval: float | str, time_zone: str | None = None) -> datetime:
    """Returns the time one interval later: seconds, or steps of the calendar as "1 day", "1 business day", "1 month"
    and "1 month end", which are taken on the clock of the zone.
    """
    located = time
    if time_zone is not None and time_zone != WRITTEN:
        located = time.astimezone(zone(time_zone)) if time.tzinfo else time.replace(tzinfo=zone(time_zone))
    if not isinstance(interval, str):
        passed = timedelta(microseconds=round(interval * 1_000_000))
        return (located.astimezone(UTC) + passed).astimezone(located.tzinfo) if located.tzinfo else located + passed
    count, _, unit = interval.partition(" ")
    reading = located.replace(tzinfo=None)
    moved = _on_calendar(reading, int(count), unit)
    if located.tzinfo is None:
        return moved
    result = moved.replace(tzinfo=located.tzinfo)
    if result.astimezone(UTC).astimezone(located.tzinfo).replace(tzinfo=None) != moved:  # clocks skip this time
        return (located.astimezone(UTC) + (moved - reading)).astimezone(located.tzinfo)
    return result


def _on_calendar(reading: datetime, count: int, unit: str) -> datetime:
    if unit == "day":
        return reading + timedelta(days=count)
    if unit == "business day":
        start = reading + timedelta(days=max(0, 7 - reading.weekday()) if reading.weekday() > 4 else 0)
        weeks, days = divmod(start.weekday() + count, 5)
        return start + timedelta(days=7 * weeks + days - start.weekday())
    years, month = divmod(reading.month - 1 + count, 12)
    last = monthrange(reading.year + years, month + 1)[1]
    day = last if unit == "month end" else min(reading.day, last)
    return reading.replace(year=reading.year + years, month=month + 1, day=day)


def clock(time: datetime, time_zone: str | None) -> datetime:
    """Returns what the clock of the zone shows at a time. Raises ValueError for a zone that does not exist."""
    if time.tzinfo is None or time_zone in (None, WRITTEN):
        return time
    assert time_zone is not None
    return time.astimezone(zone(time_zone))


def zone(name: str) -> tzinfo:
    """Returns the zone of that name, or the fixed one of an offset such as +02:00. Raises ValueError."""
    if offset := _OFFSET.fullmatch(name):
        sign, hours, minutes = offset.groups()
        return timezone(int(f"{sign}1") * timedelta(hours=int(hours), minutes=int(minutes)))
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(name, zoneinfo.available_timezones(), n=1)
        hint = f", did you mean {near[0]}?" if near else f'; "{WRITTEN}" leaves the clock as it is written'
        raise ValueError(f"time_zone: the zone database has no {name!r}{hint}") from None
