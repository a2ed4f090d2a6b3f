"""Times of tables: their forms, the instants that they are, and the clock that their calendar is computed from."""

import io
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onward.model import calendar
from onward.model.errors import DataError
from onward.model.tables import times
from onward.model.tables.cells import Column
from onward.model.tables.reader import SERIES, Reader, Rows, read
from onward.model.tables.settings import TableSettings
from tests.helpers.clock_cases import CLOCK_CASES, ClockCase

CYCLES: tuple[calendar.Entry, ...] = (
    "hour", "day", "week", "year", "month_of_year", "day_of_week", "hour_of_day", "trend",
)  # fmt: skip


def rows(cells: list[str], *, series: list[str] | None = None, **settings: Any) -> Rows:
    names = series or ["a"] * len(cells)
    text = "s,t\n" + "".join(f'{name},"{cell}"\n' for name, cell in zip(names, cells, strict=True))
    columns = [Column(SERIES, "text", source="s")] if series else [Column("s", "text")]
    table = TableSettings.model_validate({"time": "t", "series": "s" if series else None} | settings)
    return read(io.BytesIO(text.encode()), table, columns)


def instants(cells: list[str], **settings: Any) -> list[str]:
    """Returns the times of the axis, in UTC where they are instants."""
    table = rows(cells, **settings)
    axis = table.frame["t"]
    if getattr(axis.dtype, "time_zone", None) is not None:
        axis = axis.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return [time.isoformat() for time in axis.to_list()]


def refusal(cells: list[str], **settings: Any) -> str:
    with pytest.raises(DataError) as refused:
        rows(cells, **settings)
    return str(refused.value).removeprefix("standard input: ")


@pytest.mark.parametrize("case", CLOCK_CASES, ids=str)
@pytest.mark.parametrize("form", ["file", "stream"])
def test_the_calendar_of_a_table_has_the_bits_of_the_pure_function(case: ClockCase, form: str) -> None:
    """A file and a stream have the values that a client computes of the time, for every clock."""
    settings = TableSettings(time="t", calendar=CYCLES, time_zone=case.time_zone)
    content = f"t,x\n{case.written},1\n".encode()
    if form == "file":
        table = read(io.BytesIO(content), settings, [Column("x")])
    else:
        reader = Reader("-", settings, [Column("x")])
        reader.feed(content)
        table = reader.take()
    found = table.with_calendar(table.frame).select(calendar.names("t", CYCLES)).row(0)
    assert found == calendar.values(datetime.fromisoformat(case.written), CYCLES, case.time_zone)
    assert found == calendar.values(datetime.fromisoformat(case.clock), CYCLES)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC", "Asia/Kathmandu"])
def test_a_zoned_column_is_read_on_its_own_clock(zone: str, tmp_path: Path) -> None:
    """Parquet keeps the zone beside the instants; the calendar is that of the zone's clock, or of another one's."""
    start = datetime(2023, 3, 25, tzinfo=calendar.zone("UTC"))
    when = [start + timedelta(hours=7.37 * step) for step in range(1000)]
    pl.DataFrame({"t": pl.Series(when).dt.convert_time_zone(zone), "x": [1.0] * 1000}).write_parquet(
        tmp_path / "t.parquet"
    )
    for setting, clock in ((None, zone), ("written", zone), ("Asia/Tokyo", "Asia/Tokyo")):
        settings = TableSettings(time="t", calendar=CYCLES, time_zone=setting)
        table = read(tmp_path / "t.parquet", settings, [Column("x")])
        assert table.settings.time_zone == clock
        found = table.with_calendar(table.frame).select(calendar.names("t", CYCLES)).rows()
        assert found == [calendar.values(time, CYCLES, clock) for time in when]


def test_both_changes_of_the_clock_are_in_order() -> None:
    """Local times that occur twice are summer time first and winter time when repeated, series by series."""
    hours = ["01:30", "02:00", "02:30", "02:00", "02:30", "03:00"]
    cells = [f"2023-10-29 {hour}" for hour in hours]
    expected = ["23:30", "00:00", "00:30", "01:00", "01:30", "02:00"]
    found = instants(cells, time_zone="Europe/Berlin")
    assert [time[11:16] for time in found] == expected
    backwards = instants(cells[::-1], time_zone="Europe/Berlin")
    assert backwards == found[::-1]
    twice = [cell for cell in cells for _ in "ab"]
    both = instants(twice, series=["a", "b"] * 6, time_zone="Europe/Berlin")
    assert both == [time for time in found for _ in "ab"]
    assert sorted(instants(sorted(cells), time_zone="Europe/Berlin")) == found
    irregular = [f"2023-10-29 02:{minute:02}" for minute in (5, 25, 55, 10, 50)]
    assert [time[11:16] for time in instants(irregular, time_zone="Europe/Berlin")] == [
        "00:05", "00:25", "00:55", "01:10", "01:50",
    ]  # fmt: skip


def test_a_stream_remembers_the_first_of_two_local_times() -> None:
    """The repeat of a local time is winter time although it arrives later."""
    reader = Reader("-", TableSettings(time="t", time_zone="Europe/Berlin"), [Column("x")])
    found: list[str] = []
    for hour in ("02:00", "02:30", "02:00", "02:30", "03:00"):
        reader.feed(b"t,x\n" * (not found) + f"2023-10-29 {hour},1\n".encode())
        found += reader.take().frame["t"].dt.convert_time_zone("UTC").dt.to_string("%H:%M").to_list()
    assert found == ["00:00", "00:30", "01:00", "01:30", "02:00"]


def test_a_local_time_that_does_not_exist_is_refused() -> None:
    """The hour that is skipped has no instants; the message counts them and names the setting."""
    cells = ["2023-03-26 01:30", "2023-03-26 02:00", "2023-03-26 02:59", "2023-03-26 03:00"]
    assert refusal(cells, time_zone="Europe/Berlin") == (
        "row 2, column t: '2023-03-26 02:00:00' is a time that the clock in Europe/Berlin skips; if it is no time of "
        "that zone, set data.time_zone = \"written\" (2 such rows; also row 3: '2023-03-26 02:59:00')"
    )
    assert len(instants(cells, time_zone="written")) == 4


def test_offsets_of_a_zone_are_those_of_zoneinfo() -> None:
    """The offsets of many instants at once equal those of each, around every change."""
    zone = calendar.zone("America/St_Johns")
    seconds = np.random.default_rng(0).integers(-3_000_000_000, 4_000_000_000, 3000)
    expected = [datetime.fromtimestamp(int(second), zone).utcoffset() for second in seconds]
    assert times.offsets_at(zone, seconds).tolist() == [round(offset.total_seconds()) for offset in expected if offset]


FORMS = [
    (["2012-01-31", "2012-02-01"], {}, "2012-01-31T00:00:00"),
    (["2012/1/31 5:07", "2012/2/1 15:07"], {}, "2012-01-31T05:07:00"),
    (["2012-01-31T12:00:00", "2012-01-31T12:00:00.25", "2012-01-31 12:01"], {}, "2012-01-31T12:00:00"),
    (["2012-01-31T12:00:00,250", "2012-01-31T12:00:01"], {}, "2012-01-31T12:00:00.250000"),
    (["2012-01-31T12:00:00+0100", "2012-01-31T12:00:00+02", "2012-01-31T12:00:00 Z"], {}, "2012-01-31T11:00:00"),
    (["31.01.2012 12:00", "01.02.2012 12:00"], {}, "2012-01-31T12:00:00"),
    (["1/31/2012 1:07:00 PM", "2/1/2012 1:07:00 AM"], {}, "2012-01-31T13:07:00"),
    (["01.02.2012"], {"time_format": "%d.%m.%Y"}, "2012-02-01T00:00:00"),
    (["02/01/12 13h"], {"time_format": "%m/%d/%y %Hh"}, "2012-02-01T13:00:00"),
    (["20120201"], {"time_format": "%Y%m%d"}, "2012-02-01T00:00:00"),
    (
        ["1.2.2012 00:00:00.5", "1.2.2012 00:00:01"],
        {"time_format": "%d.%m.%Y %H:%M:%S.%f"},
        "2012-02-01T00:00:00.500000",
    ),
    (["01-Feb-2012 00:00+01:00"], {"time_format": "%d-%b-%Y %H:%M%z"}, "2012-01-31T23:00:00"),
    (["2012Q2", "2012Q3"], {"time_format": "%YQ%q"}, "2012-04-01T00:00:00"),
    (["Q4-12"], {"time_format": "Q%q-%y"}, "2012-10-01T00:00:00"),
    (["2012-W05"], {"time_format": "%G-W%V"}, "2012-01-30T00:00:00"),
    (["2012-03"], {"time_format": "%Y-%m"}, "2012-03-01T00:00:00"),
    (["1328054400.5"], {"time_format": "%s"}, "2012-02-01T00:00:00.500000"),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "settings", "first"), FORMS, ids=str)
def test_times_are_read_in_the_forms_that_people_write(cells: list[str], settings: Any, first: str) -> None:
    """ISO 8601 needs no format; of other forms the one that fits all rows is taken and reported."""
    table = rows(cells, **settings)
    assert instants(cells, **settings)[0] == first
    is_found = not settings and not cells[0].startswith("2012")
    assert ("time format" in table.found) == is_found
    assert (table.settings.time_format is not None) == (is_found or bool(settings))


REFUSALS = [
    (
        ["01.02.2009 10:00", "03.02.2009 11:00"],
        {},
        'column t: day and month could be swapped in every row: set data.time_format = "%d.%m.%Y %H:%M" or ',

    ),
    (["01/02/09"], {}, 'column t: day and month could be swapped in every row: set data.time_format = "%d/%m/%y" or "'),
    (["13.02.2009", "02.13.2009"], {}, "row 2, column t: '02.13.2009' is not a time of the form that the first"),
    (["2012-01-31", "later"], {}, "row 2, column t: 'later' is not a time of the form that the first one has"),
    (["2012-01-31 05:00", "2012-01-31 06:00+01:00"], {}, "row 2, column t: '2012-01-31 06:00+01:00' has an offset"),
    (["2012-01-31 05:00Z", "2012-01-31 06:00"], {}, "row 2, column t: '2012-01-31 06:00' has no offset from UTC"),
    (["1", "2012-01-31"], {}, "row 2, column t: '2012-01-31' is no number, as the first time is; for dates set"),
    (["monday"], {}, "row 1, column t: 'monday' is neither a number nor a date; write times as numbers, or dates"),
    (["01.02.2009"], {"time_format": "%m/%d/%Y"}, "row 1, column t: '01.02.2009' has not the form of data.time_format"),
    (["01/02/09"], {"time_format": "%d/%m/%Y"}, "row 1, column t: '01/02/09' has not the form of data.time_format"),
    (["2024Q5"], {"time_format": "%YQ%q"}, "row 1, column t: '2024Q5' has not the form of data.time_format"),
    (["5", ""], {}, "row 2, column t: has no value: each row needs a time"),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "settings", "message"), REFUSALS, ids=str)
def test_times_that_may_be_others_are_refused(cells: list[str], settings: Any, message: str) -> None:
    """No time is guessed: day and month, mixed offsets, years of two digits."""
    assert refusal(cells, **settings).startswith(message)


ADVICE = [
    (["2024-01"], None, 'or set data.time_format, as "%Y-%m", which it has'),
    (["2005-Q1"], None, 'as "%Y-Q%q", which it has'),
    (["01 March 2024 10:15"], None, 'as "%d %B %Y %H:%M", which it has'),
    (["20240301T101500"], None, 'as "%Y%m%dT%H%M%S", which it has'),
    (["1709280000000"], "%s", 'it may be a time of data.time_format = "ms"'),
    (["05:00"], "%H:%M", 'it has no date: join it with the column of the date, as time = ["Date", "Time"]'),
    (["2024-01-31"], "YYYY-MM-DD", "this time needs no time_format"),
    (["31.01.2024"], "%Y-%m-%d", "this time may be %d.%m.%Y or %m.%d.%Y"),
    (["31 Jan 2024"], "%Y-%m-%d", 'this time has the form "%d %B %Y"'),
]


@pytest.mark.parametrize(("cells", "form", "advice"), ADVICE, ids=str)
def test_a_refused_time_has_a_form_that_is_proposed(cells: list[str], form: str | None, advice: str) -> None:
    """A time of a form that people write has a way out in the message."""
    assert refusal(cells, time_format=form).endswith(advice)


def test_a_time_may_be_in_several_columns() -> None:
    """The columns are joined by a blank, and the features have the name of both."""
    settings = TableSettings.model_validate(
        {"time": ["Date", "Time"], "time_format": "%d/%m/%Y %H:%M:%S", "calendar": ["day"]}
    )
    content = b"Date;Time;x\n18/12/2006;11:03:00;1\n18/12/2006;11:04:00;2\n"
    table = read(io.BytesIO(content), settings, [Column("x")])
    frame = table.with_calendar(table.frame)
    assert frame["Date Time"].to_list()[1].isoformat() == "2006-12-18T11:04:00"
    assert "Date Time_day_sin" in frame.columns


def test_the_hour_of_a_date_is_refused() -> None:
    """Dates have no time of day, and numbers no calendar."""
    with pytest.raises(DataError, match="calendar day needs a time of day; the column has only dates"):
        (table := rows(["2012-01-31"], calendar=["day"])).with_calendar(table.frame)
    for number, form in NUMBERS.items():
        with pytest.raises(DataError, match=rf"a calendar needs dates or times.*numbers as {number}; .*{form}"):
            (table := rows([number], calendar=["day"])).with_calendar(table.frame)


NUMBERS = {
    "5": "set data.time_format",
    "1709280000": 'set data.time_format = "%s"',
    "1709280000000": 'set data.time_format = "ms"',
    "1709280000000000": 'set data.time_format = "us"',
    "1709280000000000000": 'set data.time_format = "ns"',
    "45352.333333333336": 'set data.time_format = "excel"',
    "20240301": 'set data.time_format = "%Y%m%d"',
    "202403010800": 'set data.time_format = "%Y%m%d%H%M"',
    "20240301080000": 'set data.time_format = "%Y%m%d%H%M%S"',
    "202403": 'set data.time_format = "%Y%m"',
    "2024": 'set data.time_format = "%Y"',
}


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_are_times_are_read_by_the_form_that_a_refusal_proposes(number: str) -> None:
    """Units since 1970, serial numbers of Excel, and dates without marks: 1 March 2024 at eight, or its beginning."""
    if number == "5":
        assert "beyond" not in rows([number]).found
        return
    form = NUMBERS[number].split('"')[1]
    instant = instants([number], time_format=form)[0]
    assert instant == {8: "2024-03-01T00:00:00", 6: "2024-03-01T00:00:00", 4: "2024-01-01T00:00:00"}.get(
        len(number), "2024-03-01T08:00:00"
    )


def test_numbers_beyond_the_dates_of_a_form_are_refused() -> None:
    """Milliseconds are no seconds since 1970; a table whose times are large numbers says what they may be."""
    assert "row 1, column t: '1709280000000' has not the form" in refusal(["1709280000000"], time_format="%s")
    assert "row 2, column t: '1e300' has not the form" in refusal(["1.5", "1e300"], time_format="excel")
    assert rows(["1709280000000", "1709280060000"]).found["clock"].endswith('set data.time_format = "ms"')
    assert "clock" not in rows(["1", "2"]).found


@pytest.mark.parametrize("cells", [
    ["13.03.2024", "13.03.2024 01:00", "13.03.2024 02:00:30", "13.03.2024 02:00:30.5"],
    ["3/13/2024 1:00 PM", "3/13/2024 2:00:30 PM"],
    ["2024-03-13 01:00", "2024-03-13 02:00:30"],
])  # fmt: skip
def test_a_form_that_was_found_reads_all_times_from_which_it_was_found(cells: list[str]) -> None:
    """A bundle keeps the form of the first time; later times may have more or fewer parts of the clock."""
    found = rows(cells)
    again = rows(cells, time_format=found.settings.time_format)
    assert again.frame["t"].to_list() == found.frame["t"].to_list()
    assert not again.dates_only
