"""Calendar features: the phase of a time within its hour, day, week or year, as a point on a circle.

Owns their names, their formulas and their values: training derives them from the time column, the manifest states each
formula, and clients compute them, all by this module and therefore with the same bits. Knows nothing of tables.
"""

import difflib
import math
import re
import zoneinfo
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Literal

Cycle = Literal["hour", "day", "week", "year"]
WRITTEN = "written"
"""The time zone that leaves the clock as it is written."""
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")
_WAVES = ("sin", "cos")


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


def names(time: str, cycles: Sequence[Cycle]) -> tuple[str, ...]:
    """Returns the names of the features of the time column `time`, two for each cycle."""
    return tuple(f"{time}_{cycle}_{wave}" for cycle in cycles for wave in _WAVES)


def formulas(time: str, cycles: Sequence[Cycle], time_zone: str | None = None) -> dict[str, str]:
    """Returns, for each feature, the formula by which a client computes it, with the clock that it is read from."""
    clock = "as written" if time_zone in (None, WRITTEN) else f"in {time_zone}"
    texts = [f"{wave}(2 pi {PHASES[cycle].formula}) of {time} {clock}" for cycle in cycles for wave in _WAVES]
    return dict(zip(names(time, cycles), texts, strict=True))


def values(time: datetime, cycles: Sequence[Cycle], time_zone: str | None = None) -> tuple[float, ...]:
    """Returns the features of one time, in the order of `names`. Raises ValueError for a zone that does not exist.

    A time without an offset is what the clock shows. One with an offset is converted to the zone, if there is one.
    """
    reading = clock(time, time_zone)
    return tuple(value for cycle in cycles for value in waves(cycle, PHASES[cycle].key(reading)))


def waves(cycle: Cycle, key: int) -> tuple[float, float]:
    """Returns sine and cosine of the phase that has the key."""
    angle = 2 * math.pi * PHASES[cycle].turn(key)
    return math.sin(angle), math.cos(angle)


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
