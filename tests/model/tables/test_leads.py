"""Values that are ahead of their step: from the next row of a file, of a live stream, and of the calendar."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from onward.model import calendar
from onward.model.errors import DataError
from onward.model.manifest import Feature
from onward.model.tables import inputs
from onward.model.tables.inputs import Step, StepLayout, StepStream
from onward.model.tables.intervals import Interval, TimeAxis
from onward.model.tables.settings import TableSettings

PLAN = Feature(name="plan", role="known", lead=1)
ROWS = "shop,plan,sales\na,1,10\nb,4,40\na,2,20\nb,5,50\na,3,\n"
"""Two series; the last row of shop a is a future row, and shop b has none."""
NOTE = (
    "the last row of series b is no step: a step has the plan of the next row; for a step of it, append a row with "
    "plan and no sales"
)


def layout(*features: Feature, **settings: Any) -> StepLayout:
    return StepLayout(features, TableSettings.model_validate(settings), targets=("sales",))


SHOPS = layout(Feature(name="sales"), PLAN, series="shop")


def read(tmp_path: Path, text: str, of: StepLayout) -> dict[str | None, list[Step]]:
    file = tmp_path / "rows.csv"
    file.write_text(text)
    return dict(inputs.read(file, of).series)


def streamed(text: str, of: StepLayout) -> tuple[dict[str | None, list[Step]], list[str]]:
    """Returns the steps of a text that arrives line by line, by series, and the notes."""
    stream = StepStream(of, name="rows")
    steps: dict[str | None, list[Step]] = {}
    for line in text.splitlines(keepends=True):
        for name, step in stream.feed(line.encode()):
            steps.setdefault(name, []).append(step)
    for name, step in stream.feed(b"", final=True):
        steps.setdefault(name, []).append(step)
    return steps, stream.notes


def test_a_step_has_the_plan_of_the_next_row_of_its_series(tmp_path: Path) -> None:
    """A future row gives its plan and is no step; without one the last row is no step, and a note says so."""
    expected = {"a": [{"sales": 10, "plan": 2}, {"sales": 20, "plan": 3}], "b": [{"sales": 40, "plan": 5}]}
    assert read(tmp_path, ROWS, SHOPS) == expected
    assert inputs.read(tmp_path / "rows.csv", SHOPS).notes == [NOTE]
    assert streamed(ROWS, SHOPS) == (expected, [NOTE])


def test_a_live_step_is_complete_when_the_next_row_has_arrived() -> None:
    """A row waits for the next one of its own series, and is answered then."""
    stream = StepStream(SHOPS, name="rows")
    assert stream.feed(b"shop,plan,sales\na,1,10\nb,4,40\n") == []
    assert stream.feed(b"a,2,20\n") == [("a", {"sales": 10, "plan": 2})]
    assert stream.feed(b"a,3,\n") == [("a", {"sales": 20, "plan": 3})]
    assert stream.feed(b"a,4,\n") == []
    assert stream.feed(b"", final=True) == []
    assert stream.notes == [NOTE]


def test_a_missing_target_between_others_is_a_step(tmp_path: Path) -> None:
    """A row without a target is a future row only at the end of its series."""
    nullable = layout(Feature(name="sales", nullable=True), PLAN)
    text = "plan,sales\n1,10\n2,\n3,\n4,40\n5,\n6,\n"
    steps = [{"sales": 10, "plan": 2}, {"sales": None, "plan": 3}, {"sales": None, "plan": 4}, {"sales": 40, "plan": 5}]
    assert read(tmp_path, text, nullable) == {None: steps}
    assert streamed(text, nullable) == ({None: steps}, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plan,sales\n1,10\n2,\n3,30\n", "row 2, column sales: no value"),
        ("plan,sales\n1,10\n,20\n", "row 2, column plan: no value"),
        ("plan,sales\n1,10\n2x,20\n", "row 2, column plan: '2x' is not a number"),
    ],
)
def test_other_missing_values_are_refused_with_their_row(tmp_path: Path, text: str, message: str) -> None:
    """Only a future row may lack what is observed, and a plan is never missing."""
    of = layout(Feature(name="sales"), PLAN)
    with pytest.raises(DataError, match=message):
        read(tmp_path, text, of)
    with pytest.raises(DataError, match=message):
        streamed(text, of)


def test_future_covariates_of_a_forecast_are_those_that_steps_would_have(tmp_path: Path) -> None:
    """A file of them begins with the first row after the session's steps, whose plan the session already has."""
    steps = read(tmp_path, "plan\n3\n4\n5\n", replace(layout(Feature(name="sales"), PLAN), only=["plan"]))
    assert steps == {None: [{"plan": 4}, {"plan": 5}]}


def test_without_a_lead_every_row_is_a_step(tmp_path: Path) -> None:
    """The value of a feature without a lead is that of its own row."""
    own = layout(Feature(name="sales"), Feature(name="plan", role="known"))
    steps = [{"sales": 10, "plan": 1}, {"sales": 20, "plan": 2}]
    assert read(tmp_path, "plan,sales\n1,10\n2,20\n", own) == {None: steps}
    assert streamed("plan,sales\n1,10\n2,20\n", own) == ({None: steps}, [])


ENTRIES: tuple[calendar.Entry, ...] = ("day", "week", "year", "month_of_year", "day_of_week", "hour_of_day", "trend")

TIMES: dict[str, tuple[list[str], float | str, str | None]] = {
    "ends of months": (["2023-12-31", "2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"], "1 month end", None),
    "the 28th of months": (["2023-01-28", "2023-02-28", "2023-03-28"], "1 month", None),
    "business days": (["2024-05-30", "2024-05-31", "2024-06-03"], "1 business day", None),
    "days across a change of the clock": (
        ["2024-03-30T02:30:00", "2024-03-31T03:30:00", "2024-04-01T02:30:00"], "1 day", "Europe/Berlin",
    ),
    "hours across a change of the clock": (
        ["2024-10-26T23:00:00Z", "2024-10-27T00:00:00Z", "2024-10-27T01:00:00Z", "2024-10-27T02:00:00Z"],
        3600.0, "Europe/Berlin",
    ),
    "written offsets": (["2024-01-01T00:00:00+02:00", "2024-01-01T00:30:00+02:00"], 1800.0, "written"),
}  # fmt: skip


@pytest.mark.parametrize("case", TIMES, ids=str)
def test_the_calendar_ahead_is_that_of_the_time_one_interval_later(tmp_path: Path, case: str) -> None:
    """A file, a live stream and `calendar.values` agree on it, to the bit, at ends of months and changes of clocks."""
    times, interval, zone = TIMES[case]
    entries = ENTRIES if "T" in times[0] else tuple(entry for entry in ENTRIES if entry not in ("day", "hour_of_day"))
    names = calendar.names("t", entries)
    categories = calendar.categories("t", entries)
    features = [
        Feature(
            name=name,
            role="known",
            lead=1,
            formula="...",
            kind="category" if name in categories else "number",
            categories=categories.get(name, ()),
        )
        for name in names
    ]
    of = layout(Feature(name="sales"), *features, time="t", time_zone=zone, calendar=entries, interval=interval)
    text = "t,sales\n" + "".join(f"{time},{row}\n" for row, time in enumerate(times))
    written = [datetime.fromisoformat(time) for time in times]
    expected = [calendar.values(time, entries, zone, interval) for time in written]
    (steps,) = read(tmp_path, text, of).values()
    assert [tuple(step[name] for name in names) for step in steps] == expected
    assert streamed(text, of) == ({None: steps}, [])
    if zone != "Europe/Berlin" or interval == 3600.0:
        following = [calendar.values(time, entries, zone) for time in written[1:]]
        assert expected[:-1] == following
    assert all(calendar.later(time, interval, zone) != time for time, _ in pairwise(written))


@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"])
@pytest.mark.parametrize("interval", [900.0, 86_400.0, "1 day", "1 business day", "2 month", "1 month end", "12 month"])
def test_later_times_are_those_of_tables(interval: float | str, zone: str | None) -> None:
    """A client that computes one time and a table of many agree on what is one interval later, across clock changes."""
    start = datetime(2023, 12, 25, 1, 30, tzinfo=None if zone is None else UTC)
    times = [start + timedelta(hours=7 * step, minutes=15 * step) for step in range(1300)]
    clocks = times if zone is None else [time.astimezone(calendar.zone(zone)) for time in times]
    frame = pl.DataFrame({"t": pl.Series(times).dt.cast_time_unit("us"), "row": range(len(times))})
    if zone is not None:
        frame = frame.with_columns(pl.col("t").dt.convert_time_zone(zone))
    parsed = Interval.parse(interval, temporal=True)
    later = parsed.times_after(frame, TimeAxis("row", "t"), pl.Series([1] * len(times)))["t"].to_list()
    assert [calendar.later(clock, interval, zone) for clock in clocks] == later
