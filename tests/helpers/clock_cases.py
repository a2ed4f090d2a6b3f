"""Times with what the clock of a zone shows at them: every computation of calendar features must agree on them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClockCase:
    """A written time, the setting `time_zone`, and the reading of the clock that the calendar is computed from."""

    written: str
    time_zone: str | None
    clock: str


CLOCK_CASES = (
    # the clock as written
    ClockCase("2023-09-01T02:30:15", None, "2023-09-01T02:30:15"),
    ClockCase("2023-09-01T02:30:15", "written", "2023-09-01T02:30:15"),
    ClockCase("2023-09-01T02:30:15+02:00", None, "2023-09-01T02:30:15"),
    ClockCase("2023-09-01T02:30:15+02:00", "written", "2023-09-01T02:30:15"),
    ClockCase("2023-09-01T02:30:15Z", None, "2023-09-01T02:30:15"),
    ClockCase("2023-09-01T02:30:15-03:30", "written", "2023-09-01T02:30:15"),
    # times with an offset on the clock of a zone
    ClockCase("2023-09-01T02:30:15+02:00", "Europe/Berlin", "2023-09-01T02:30:15"),
    ClockCase("2023-09-01T02:30:15Z", "Europe/Berlin", "2023-09-01T04:30:15"),
    ClockCase("2023-12-31T23:30:00Z", "Europe/Berlin", "2024-01-01T00:30:00"),
    ClockCase("2023-09-01T02:30:15+02:00", "UTC", "2023-09-01T00:30:15"),
    ClockCase("2023-09-01T02:30:15Z", "Asia/Kathmandu", "2023-09-01T08:15:15"),
    ClockCase("2023-09-01T02:30:15Z", "+05:30", "2023-09-01T08:00:15"),
    ClockCase("2023-09-01T02:30:15Z", "America/New_York", "2023-08-31T22:30:15"),
    # the last and the first second around both changes of the clock
    ClockCase("2023-03-26T00:59:59Z", "Europe/Berlin", "2023-03-26T01:59:59"),
    ClockCase("2023-03-26T01:00:00Z", "Europe/Berlin", "2023-03-26T03:00:00"),
    ClockCase("2023-10-29T00:59:59Z", "Europe/Berlin", "2023-10-29T02:59:59"),
    ClockCase("2023-10-29T01:00:00Z", "Europe/Berlin", "2023-10-29T02:00:00"),
    ClockCase("2023-10-01T15:59:59Z", "Australia/Lord_Howe", "2023-10-02T02:59:59"),
    ClockCase("2010-11-07T02:30:59Z", "America/St_Johns", "2010-11-07T00:00:59"),
    ClockCase("2010-11-07T02:31:00Z", "America/St_Johns", "2010-11-06T23:01:00"),
    # times without an offset are what the clock of the zone shows
    ClockCase("2023-09-01T02:30:15", "Europe/Berlin", "2023-09-01T02:30:15"),
    ClockCase("2024-02-29T23:59:59", "America/New_York", "2024-02-29T23:59:59"),
    ClockCase("2023-10-29T02:30:00", "Europe/Berlin", "2023-10-29T02:30:00"),
    # long ago, and dates before 1970
    ClockCase("1890-01-01T00:00:00Z", "Europe/Berlin", "1890-01-01T00:53:28"),
    ClockCase("1969-07-20T20:17:40Z", "America/New_York", "1969-07-20T16:17:40"),
)
