"""Policies for rows: what is refused and how, what is sorted, merged and inserted, and which interval is found."""

from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from onward.model.errors import DataError
from onward.model.tables import intervals, policies
from onward.model.tables.intervals import Interval, TimeAxis

at = datetime.fromisoformat
AXIS = TimeAxis("row", "t")
BY_SERIES = TimeAxis("row", "t", "s")
MINUTES = [at("2024-01-01") + timedelta(minutes=minute) for minute in range(600)]


def frame(times: Any, **columns: Any) -> pl.DataFrame:
    """Returns rows numbered from 1 with a value that is the row's number."""
    table = pl.DataFrame({"t": times, **columns}).with_row_index("row", offset=1)
    return table.with_columns(v=pl.col("row").cast(pl.Float64))


def rows(table: pl.DataFrame) -> list[int]:
    return table["row"].to_list()


def refusal(table: pl.DataFrame, axis: TimeAxis = AXIS, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        policies.apply("a.csv", table, axis, **settings)
    return str(caught.value)


def test_series_are_sorted_each_by_itself() -> None:
    """Rows of interleaved series in order are not unsorted; others are put where they belong, and counted."""
    table = frame([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 2.5], s=["b", "a", "b", "a", "b", "a", "a"])
    ordered, found = policies.apply("a.csv", table, BY_SERIES)
    assert rows(ordered) == [1, 3, 5, 2, 4, 7, 6]
    assert (found.unsorted.count, found.unsorted.first) == (1, ("row 7 (series a, 2.5)",))
    assert refusal(table, BY_SERIES, unsorted="refuse") == (
        "a.csv: 1 row has an earlier time than the row before it of the same series: row 7 (series a, 2.5); "
        'set data.unsorted = "sort"'
    )


@pytest.mark.parametrize(("policy", "remaining"), [("first", [1, 2, 4]), ("last", [1, 3, 5])])
def test_one_row_of_a_time_remains(policy: Any, remaining: list[int]) -> None:
    """`first` and `last` are those of the file, also where rows are out of order."""
    table = frame([1, 2, 2, 3, 3])
    assert rows(policies.apply("a.csv", table, AXIS, duplicates=policy)[0]) == remaining


def test_the_mean_is_of_what_is_present() -> None:
    """Numbers are averaged without those that are missing; equal numbers stay exact; words are the first row's."""
    table = frame([1, 2, 2, 2], word=["a", "b", "c", "d"], x=[0.1, None, 1.0, 4.0], equal=[0.1] * 4, absent=[None] * 4)
    merged, found = policies.apply("a.csv", table.cast({"absent": pl.Float64}), AXIS, duplicates="mean")
    assert merged.drop("row", "v").rows() == [(1, "a", 0.1, 0.1, None), (2, "b", 2.5, 0.1, None)]
    assert found.duplicates.count == 2


def test_repeated_times_are_counted_and_named() -> None:
    """A refusal has the number of rows, the first of them, and the setting; times of other series are no repetition."""
    table = frame([1, 2, 2, 2, 2, 2, 1], s=["a", "a", "a", "a", "a", "a", "b"])
    assert refusal(table, BY_SERIES) == (
        "a.csv: 4 rows have a time that an earlier row of the same series has: row 3 (series a, 2), "
        'row 4 (series a, 2), row 5 (series a, 2) and 1 more; set data.duplicates to "first", "last" or "mean"'
    )
    assert refusal(frame([1, 1]).with_columns(v=pl.lit(1.0))).endswith("; the rows of one time are equal")


def test_events_may_share_a_time() -> None:
    """Events of one time are different events, in the order of the file."""
    table, found = policies.apply("a.csv", frame([2, 1, 1]), AXIS, events=True)
    assert (rows(table), found.duplicates.count) == ([2, 3, 1], 0)


HOUR = [at("2024-10-27") + timedelta(minutes=5 * step) for step in range(60)]
SET_BACK = [*HOUR[:36], *HOUR[24:]]


def test_the_hour_that_occurs_twice_is_recognised() -> None:
    """Repeated clock times within one hour of a day may be a clock change; elsewhere, or with a zone, they are not."""
    hint = "this may be the hour that occurs twice when clocks are set back: set data.time_zone, or data.duplicates to"
    message = refusal(frame(SET_BACK))
    assert message.startswith("a.csv: 12 rows have a time that an earlier row has: row 37 (2024-10-27 02:00:00), ")
    assert hint in message
    assert hint not in refusal(frame(pl.Series(SET_BACK).dt.replace_time_zone("UTC")))
    assert hint not in refusal(frame([*HOUR, HOUR[0], HOUR[30]]))
    assert hint not in refusal(frame([*MINUTES, *MINUTES[:200]]))
    many_days = [at(f"2024-{month:02}-01T02:00") for month in range(1, 7) for _ in range(2)]
    assert hint not in refusal(frame(many_days))


MONTHS = pl.date_range(date(2023, 1, 1), date(2025, 12, 1), "1mo", eager=True)
WEEKDAYS = pl.date_range(date(2024, 1, 1), date(2024, 3, 1), "1d", eager=True)


@pytest.mark.parametrize(
    ("times", "interval", "words"),
    [
        (range(10), Interval(1, ""), "1"),
        (np.arange(100) * 0.1, Interval(0.1, ""), "0.1"),
        (1.7e9 + np.arange(100) * 0.1, Interval(0.1, ""), "0.1"),
        (MINUTES, Interval(60, "second"), "1 minute"),
        (pl.Series(MINUTES).dt.cast_time_unit("ms"), Interval(60, "second"), "1 minute"),
        (MINUTES[::90], Interval(5400, "second"), "90 minutes"),
        (pl.Series(MINUTES[:10]) + pl.Series([timedelta(seconds=30)]), Interval(60, "second"), "1 minute"),
        (pl.date_range(date(2024, 1, 1), date(2024, 3, 1), "1d", eager=True), Interval(1, "day"), "1 day"),
        (pl.date_range(date(2024, 1, 1), date(2024, 9, 1), "1w", eager=True), Interval(7, "day"), "7 days"),
        (WEEKDAYS.filter(WEEKDAYS.dt.weekday() < 6), Interval(1, "business day"), "1 business day"),
        (MONTHS, Interval(1, "month"), "1 month"),
        (MONTHS.dt.month_end(), Interval(1, "month end"), "1 month"),
        (MONTHS[::3].cast(pl.Datetime("us")), Interval(3, "month"), "3 months"),
        (pl.date_range(date(1990, 7, 1), date(2024, 7, 1), "1y", eager=True), Interval(12, "month"), "12 months"),
    ],
)
def test_intervals_are_found(times: Any, interval: Interval, words: str) -> None:
    """The most common step is found in numbers, instants and the calendar's own steps, and without a gap."""
    _, found = policies.apply("a.csv", frame(times), AXIS)
    assert found.sampling is not None
    assert (found.sampling.interval, str(found.sampling.interval)) == (interval, words)
    assert (found.sampling.exact, found.gaps.missing, found.gaps.uneven) == (True, 0, 0)
    assert Interval.parse(interval.setting, temporal=interval.unit != "") == interval


def test_times_that_vary_a_little_are_regular() -> None:
    """A logger's interval is found although no two steps are equal; so is its gap."""
    jitter = np.random.default_rng(0).uniform(-0.4, 0.4, 200)
    times = 1.7e9 + 10 * np.delete(np.arange(200.0), [50, 51]) + np.delete(jitter, [50, 51])
    _, found = policies.apply("a.csv", frame(times), AXIS)
    assert found.sampling is not None
    assert not found.sampling.exact
    assert found.sampling.interval.count == pytest.approx(10, rel=0.01)
    assert (found.gaps.affected.count, found.gaps.missing) == (1, 2)


def test_events_have_no_interval() -> None:
    """Times of transactions are irregular: no interval is found, no gap is counted, and a policy for gaps says so."""
    times = np.cumsum(np.random.default_rng(0).exponential(100, 1000)).round()
    _, found = policies.apply("a.csv", frame(times), AXIS, events=True)
    assert (found.sampling, found.gaps.missing) == (None, 0)
    message = refusal(frame(times), gaps="missing", events=True)
    assert message.startswith('a.csv, column t: gaps = "missing" needs a sampling interval')
    assert message.endswith('set data.interval, or gaps = "ignore"')


def test_gaps_are_counted_and_refused_with_all_of_them() -> None:
    """Gaps are those within a series; the refusal has their number, that of the missing rows, and the first."""
    table = frame([0, 1, 2, 5, 6, 0, 1, 3, 4, 5], s=["a"] * 5 + ["b"] * 5)
    ignored, found = policies.apply("a.csv", table, BY_SERIES)
    assert ignored.height == table.height
    assert (found.gaps.affected.count, found.gaps.missing, found.gaps.longest) == (2, 3, 2)
    assert refusal(table, BY_SERIES, gaps="refuse") == (
        "a.csv: 2 gaps in times that are 1 apart, in which 3 rows are missing: after row 3 (series a, 2) 2 rows, "
        'after row 7 (series b, 1) 1 row; set data.gaps = "missing" to insert rows without values, or gaps = "ignore"'
    )


def test_missing_rows_are_inserted() -> None:
    """Inserted rows have the times, the series and what is constant in it, and no values; the others are untouched."""
    table = frame([0.0, 0.1, 0.4, 0.0, 0.1, 0.2], s=["a"] * 3 + ["b"] * 3, place=["x"] * 3 + ["y"] * 3)
    filled, found = policies.apply("a.csv", table, BY_SERIES, gaps="missing", carried=["place"], nullable=["v"])
    assert filled["t"].to_list() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0, 0.1, 0.2])
    assert filled["v"].to_list() == [1, 2, None, None, 3, 4, 5, 6]
    assert filled["s"].to_list() == ["a"] * 5 + ["b"] * 3
    assert filled["place"].to_list() == ["x"] * 5 + ["y"] * 3
    assert found.inserted == 2
    assert filled.schema == table.schema


@pytest.mark.parametrize(
    "times",
    [
        MONTHS,
        MONTHS.dt.month_end(),
        pl.date_range(date(2024, 1, 1), date(2024, 3, 1), "1d", eager=True),
        WEEKDAYS.filter(WEEKDAYS.dt.weekday() < 6),
        pl.Series(MINUTES).dt.cast_time_unit("ms"),
        pl.Series(range(40)),
        pl.datetime_range(at("2024-03-01"), at("2024-04-20"), "1d", time_zone="Europe/Berlin", eager=True),
        pl.datetime_range(at("2024-10-26"), at("2024-10-28"), "1h", time_zone="UTC", eager=True).dt.convert_time_zone(
            "Europe/Berlin"
        ),
    ],
)
def test_inserted_times_are_those_that_were_taken_out(times: pl.Series) -> None:
    """Rows taken from the middle of regular times come back at the same times, across clock changes too."""
    whole = frame(times)
    filled, found = policies.apply(
        "a.csv", whole[[*range(5), *range(30, whole.height)]], AXIS, gaps="missing", nullable="v"
    )
    assert filled["t"].to_list() == whole["t"].to_list()
    assert filled["t"].dtype == whole["t"].dtype
    assert (found.gaps.affected.count, found.inserted) == (1, 25)


def test_a_written_clock_is_continued() -> None:
    """Inserted rows continue the written clock of the row before them, if it is a column of its own."""
    instants = [at(f"2024-01-01T{hour:02}:00") for hour in (0, 1, 4, 5, 6)]
    table = frame(instants, clock=[time + timedelta(hours=2) for time in instants])
    axis = TimeAxis("row", "t", clock="clock")
    filled, _ = policies.apply("a.csv", table, axis, gaps="missing", nullable=["v"])
    assert (filled["clock"] - filled["t"]).unique().to_list() == [timedelta(hours=2)]
    assert filled.height == 7


def test_rows_without_values_need_columns_that_may_be_missing() -> None:
    """A refusal names the columns that cannot be missing, and gaps that are larger than all the rest."""
    message = refusal(frame([0, 1, 3, 4]), gaps="missing")
    assert message.startswith('a.csv: gaps = "missing" inserts 1 row without values: list v under data.missing')
    message = refusal(frame([0, 1, 2, 3, 1000]), gaps="missing", nullable=["v"])
    assert message.startswith("a.csv: 996 rows are missing, more than 10 times the 5 of the file: after row 4 (3) 996")


def test_an_interval_that_is_set_is_used() -> None:
    """A given interval counts the gaps, whatever the most common step is; one that is none is refused."""
    _, found = policies.apply("a.csv", frame([0, 2, 4, 5]), AXIS, interval=1.0)
    assert found.gaps.missing == 2
    assert "data.interval: '2 moons' is no interval" in refusal(frame([0, 2]), interval="2 moons")


def test_an_hour_between_clock_times_is_no_gap_where_times_have_a_zone() -> None:
    """When clocks are set forward, an hour is skipped on the clock, but not in time."""
    hours = pl.datetime_range(at("2024-03-30"), at("2024-04-01"), "1h", time_zone="UTC", eager=True)
    zoned = hours.dt.convert_time_zone("Europe/Berlin")
    assert policies.apply("a.csv", frame(zoned), AXIS)[1].gaps.missing == 0
    naive = zoned.dt.replace_time_zone(None)
    assert policies.apply("a.csv", frame(naive), AXIS)[1].gaps.missing == 1


@pytest.mark.parametrize("interval", [None, 1.0])
def test_a_table_of_few_rows_has_no_gaps(interval: float | None) -> None:
    """No row, or a single one, is neither regular nor a fault."""
    for table in (frame([7]), frame([7])[:0]):
        _, found = policies.apply("a.csv", table, AXIS, interval=interval)
        assert (found.gaps.missing, found.unsorted.count, found.duplicates.count) == (0, 0, 0)
    assert intervals.find(frame([7]), AXIS) is None
