"""Calendar features of a time: the clock that they are computed from, and their values."""

import math
from datetime import UTC, datetime

import pytest

from onward.model import calendar
from tests.helpers.clock_cases import CLOCK_CASES, ClockCase

CYCLES: tuple[calendar.Cycle, ...] = ("hour", "day", "week", "year")


def written_values(clock: str) -> list[float]:
    """Returns the features of a clock's reading, written out anew."""
    reading = datetime.fromisoformat(clock)
    turns = [
        (reading.minute + reading.second / 60) / 60,
        (reading.hour + reading.minute / 60 + reading.second / 3600) / 24,
        (reading.isoweekday() - 1 + reading.hour / 24) / 7,
        (reading.timetuple().tm_yday - 1) / 365.25,
    ]
    return [wave(2 * math.pi * turn) for turn in turns for wave in (math.sin, math.cos)]


@pytest.mark.parametrize("case", CLOCK_CASES, ids=str)
def test_the_calendar_is_that_of_the_clock(case: ClockCase) -> None:
    """The values are those of the zone's clock, bit for bit."""
    time = datetime.fromisoformat(case.written)
    assert calendar.clock(time, case.time_zone).replace(tzinfo=None) == datetime.fromisoformat(case.clock)
    assert list(calendar.values(time, CYCLES, case.time_zone)) == written_values(case.clock)


def test_formulas_name_the_clock() -> None:
    """A client reads from the formula which clock it needs."""
    of_day = "sin(2 pi (hour + minute / 60 + second / 3600) / 24) of t"
    assert calendar.formulas("t", ("day",))["t_day_sin"] == f"{of_day} as written"
    assert calendar.formulas("t", ("day",), "written")["t_day_sin"] == f"{of_day} as written"
    assert calendar.formulas("t", ("day",), "Europe/Berlin")["t_day_sin"] == f"{of_day} in Europe/Berlin"


def test_a_zone_that_does_not_exist_is_refused_with_the_nearest() -> None:
    """A misspelt zone is not read as another silently."""
    with pytest.raises(
        ValueError, match=r"time_zone: the zone database has no 'Europe/Berlni', did you mean Europe/Ber"
    ):
        calendar.values(datetime(2020, 1, 1, tzinfo=UTC), ("day",), "Europe/Berlni")
    with pytest.raises(ValueError, match='"written" leaves the clock as it is written'):
        calendar.zone("xyzzy")
