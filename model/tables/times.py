"""Time columns: how times are written, and which instants they are.

Owns formats, offsets, time zones, and the local times that occur twice or never where clocks change. Times are numbers,
or instants with the clock that shows them. The zones are those of `zoneinfo`, as in `onward.model.calendar`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onward.model import calendar
from onward.model.calendar import WRITTEN
from onward.model.errors import DataError
from onward.model.tables import time_forms
from onward.model.tables.refusals import UNITS, Refusal, Refusals
from onward.model.tables.settings import TableSettings

Integers = NDArray[np.int64]

_NUMBER = re.compile(r"\s*[+-]?\d+(?:[.,]\d*)?(?:[eE][+-]?\d+)?\s*")
_DATE = r"(?P<first>\d{1,4})(?P<mark>[-/.])(?P<second>\d{1,2})(?P=mark)(?P<third>\d{1,4})"
_CLOCK = r"(?P<gap>T|t| +|, ?)\d{1,2}:\d\d(?P<seconds>:\d\d(?:[.,](?P<fraction>\d+))?)?(?P<half> ?[AaPp][Mm])?"
_SUFFIX = r"\s*(?:Z|z|UTC|[+-]\d\d(?::?\d\d)?)"
_WRITTEN_TIME = re.compile(rf"{_DATE}(?:{_CLOCK}(?P<suffix>{_SUFFIX})?)?")
_WITH_OFFSET = rf"^(.*:\d\d(?:[.,]\d+)?)({_SUFFIX})$"
_WITH_FRACTION, _SECONDS_END = tuple(f"%m{mark}%d{gap}%H:%M:%S%.f" for mark in "-/." for gap in "T "), 19
"""Ends of formats whose seconds may have a fraction, and the number of characters up to it: 2012-01-31T12:00:00."""
_DATED_FORM = re.compile(
    r"(?P<date>%[dmYy](?P<mark>[-/.])%[dmYy](?P=mark)%[dmYy])"
    r"(?:(?P<gap>T| |, ?)(?P<hours>%H|%I):%M(?P<seconds>:%S(?:%\.f)?)?(?P<half> ?%p)?)?"
)
_OF_DAY = "HIMSpfsTRXcr"
"""Directives of a time of day in `time_format`."""
_FIRST_YEAR = 1000
"""Years before this one are two digits that were read as four."""

_DAY = 86_400
_SECONDS_TO_2000 = 10_957 * _DAY
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Form:
    """A form in which times may be written: formats of polars that are tried in turn, without what is an offset."""

    formats: tuple[str, ...]
    setting: str | None = None
    """The `time_format` that means this form; none if the form needs none."""
    offsets: bool = False
    nanoseconds: bool = False

    def parse(self, text: pl.Series) -> tuple[pl.Series, pl.Series | None]:
        """Returns the times, null where the text has another form, and their offsets from UTC in seconds."""
        if not self.formats:
            return _numbers(text), None
        if self.formats[0] in time_forms.EPOCHS:
            offsets = None if self.formats[0] == "excel" else pl.zeros(len(text), pl.Int64, eager=True)
            return time_forms.from_numbers(text, self.formats[0]), offsets
        offsets = None
        if self.offsets:
            text, offsets = _split_offsets(text)
        times = self._parse(text)
        if offsets is not None:
            times = times.to_frame("time").select(pl.when(offsets.is_not_null()).then("time"))["time"]
        return times, offsets

    def _parse(self, text: pl.Series) -> pl.Series:
        unit: Any = "ns" if self.nanoseconds else "us"
        times = pl.Series("time", [None], pl.Datetime(unit)).new_from_index(0, len(text))
        for form in self.formats:
            open_rows = (times.is_null() & text.is_not_null()).arg_true()
            if not len(open_rows):
                break
            part = _to_datetime(text if len(open_rows) == len(text) else text.gather(open_rows), form, unit)
            times = part if len(open_rows) == len(text) else times.scatter(open_rows, part)
        return times


@dataclass(frozen=True, slots=True)
class Times:
    """The times of rows: numbers; clock times, with offsets from UTC in seconds or without; or instants of a zone."""

    values: pl.Series
    offsets: pl.Series | None = None
    dates_only: bool = False
    """True if all are dates without a time of day."""
    form: Form | None = None


@dataclass(slots=True)
class _Reading:
    """The times so far as one form reads them."""

    form: Form
    refusal: Refusal
    values: list[pl.Series] = field(default_factory=list)
    offsets: list[pl.Series] = field(default_factory=list)


@dataclass(slots=True)
class TimeParser:
    """The times of a column, as its cells arrive; each form that the first cell may have is read to the last row."""

    name: str
    column: str
    settings: TableSettings
    _readings: list[_Reading] = field(default_factory=list)
    _typed: list[pl.Series] = field(default_factory=list)
    _has_clock: bool = False

    def feed(self, cells: pl.Series, first_row: int) -> None:
        """Reads the cells, of which the first is that row of the file. Raises DataError."""
        if cells.dtype.is_numeric() and self.settings.time_format:
            cells = cells.cast(pl.String)
        if cells.dtype != pl.String:
            self._typed.append(_typed(cells, self.name, self.column))
            return
        if not self._readings and (present := cells.drop_nulls()).len():
            self._readings = [
                _Reading(form, Refusal(self.name, self.column)) for form in self._candidates(str(present[0]))
            ]
        if not self._has_clock:
            self._has_clock = bool(cells.str.contains(":", literal=True).any())
        for reading in self._readings:
            values, offsets = _parse(reading.form, cells, self.name)
            reading.values.append(values)
            if offsets is not None:
                reading.offsets.append(offsets)
            reading.refusal.add((values.is_null() & cells.is_not_null()).arg_true().to_list(), cells, first_row)

    def take(self) -> Times:
        """Returns the times that were read since the last call. Raises DataError if they are not times."""
        if self._typed:
            values, self._typed = _joined(self._typed), []
            return Times(values, dates_only=values.dtype == pl.Date)
        fitting = [reading for reading in self._readings if not reading.refusal.count]
        if len(fitting) != 1:
            raise self._error(fitting)
        (reading,) = self._readings = fitting
        values = _joined(reading.values)
        offsets = pl.concat(reading.offsets) if reading.offsets else None
        reading.values, reading.offsets = [], []
        return Times(values, offsets, self._is_dates_only(reading.form), reading.form)

    def _is_dates_only(self, form: Form) -> bool:
        if self.settings.time_format and (self.settings.time_format in time_forms.EPOCHS or not self._has_clock):
            return self.settings.time_format not in time_forms.EPOCHS and not set(
                re.findall(r"%[-#]?(\w)", self.settings.time_format)
            ) & set(_OF_DAY)
        return bool(form.formats) and not self._has_clock

    def _candidates(self, first: str) -> Sequence[Form]:
        if self.settings.time_format:
            return [_set_form(self.settings.time_format)]
        if _NUMBER.fullmatch(first):
            return [Form(())]
        written = _WRITTEN_TIME.fullmatch(first.strip())
        if written is None:
            fitting = time_forms.fitting(first, _parse_set)
            proposed = f', as "{fitting}", which it has' if fitting else ""
            raise DataError(
                f"{self.name}: row 1, column {self.column}: {first!r} is neither a number nor a date; write times as "
                f"numbers, or dates as 2012-01-31 or 2012-01-31T12:00:00, or set data.time_format{proposed}"
                + ("" if fitting else f"; {UNITS}")
            )
        return _forms(written)

    def _error(self, fitting: Sequence[_Reading]) -> DataError:
        where = f"{self.name}: column {self.column}"
        if not self._readings:
            return DataError(f"{where}: has no time in any row")
        if fitting:
            forms = " or ".join(f'"{reading.form.setting}"' for reading in fitting)
            return DataError(f"{where}: day and month could be swapped in every row: set data.time_format = {forms}")
        reading = min(self._readings, key=lambda reading: reading.refusal.count)
        if self.settings.time_format:
            return reading.refusal.error(
                f'has not the form of data.time_format = "{self.settings.time_format}"', self._advice(reading)
            )
        if not reading.form.formats:
            return reading.refusal.error("is no number, as the first time is; for dates set data.time_format")
        value = reading.refusal.first[0][1]
        if bool(re.search(_WITH_OFFSET, value)) != reading.form.offsets:
            return reading.refusal.error(
                f"has {'no' if reading.form.offsets else 'an'} offset from UTC, unlike the first time"
            )
        return reading.refusal.error("is not a time of the form that the first one has; set data.time_format")

    def _advice(self, reading: _Reading) -> str:
        """Returns which form the first refused time has."""
        assert self.settings.time_format is not None
        if time_forms.is_of_day(self.settings.time_format):
            return 'it has no date: join it with the column of the date, as time = ["Date", "Time"]'
        cell = reading.refusal.first[0][1]
        if _NUMBER.fullmatch(cell):
            form = number_format(pl.Series([float(cell.replace(",", "."))]))
            return f'it may be a time of data.time_format = "{form}"' if form else ""
        if fitting := time_forms.fitting(cell, _parse_set):
            return f'this time has the form "{fitting}"'
        if written := _WRITTEN_TIME.fullmatch(cell.strip()):
            forms = [form.setting for form in _forms(written)]
            return (
                "this time needs no time_format"
                if None in forms
                else f"this time may be {' or '.join(map(str, forms))}"
            )
        return ""


def _parse_set(setting: str, text: pl.Series) -> pl.Series:
    return _set_form(setting).parse(text)[0]


def number_format(values: pl.Series) -> str | None:
    """Returns the `time_format` under which times that are numbers would be dates, if they may be dates."""
    return time_forms.fitting_numbers(values, _parse_set)


def _joined(parts: Sequence[pl.Series]) -> pl.Series:
    """Returns the parts as one; numbers are whole if all of them are."""
    if len({str(part.dtype) for part in parts}) > 1 and all(part.dtype.is_numeric() for part in parts):
        parts = [part.cast(pl.Float64) for part in parts]
    return pl.concat(parts) if len(parts) > 1 else parts[0]


def _typed(cells: pl.Series, name: str, column: str) -> pl.Series:
    kind = cells.dtype
    if kind.is_integer():
        return cells.cast(pl.Int64) if kind != pl.UInt64 else cells
    if kind.is_numeric():
        return cells.cast(pl.Float64)
    if isinstance(kind, pl.Datetime):
        return cells.dt.cast_time_unit("us") if kind.time_unit == "ms" else cells
    if kind == pl.Date:
        return cells
    if kind.is_temporal():
        return cells.cast(pl.Int64)
    raise DataError(
        f"{name}: row 1, column {column}: {cells[0]!r} is neither a number nor a date; write times as numbers, or "
        "dates as 2012-01-31 or 2012-01-31T12:00:00"
    )


def _forms(written: re.Match[str]) -> Sequence[Form]:
    """Returns the forms that a written time may have: one if the year comes first, else several."""
    mark, gap, seconds = written["mark"], written["gap"], written["seconds"]
    hours, half = (
        ("%I", (written["half"] or "").replace(written["half"].strip(), "%p")) if written["half"] else ("%H", "")
    )
    clock = f"{hours}:%M:%S" if seconds else f"{hours}:%M"
    clock += ".%f" if written["fraction"] else ""
    shown = f"{gap}{clock}{half}" if gap else ""
    likeliest = shown.replace(".%f", "%.f")
    shown += "%z" if written["suffix"] else ""
    nanoseconds = len(written["fraction"] or "") > 6

    def form(date: str, *, setting: bool) -> Form:
        formats = _formats(date, gap, hours, half, seconds=bool(seconds), first=[date + likeliest])
        return Form(formats, date + shown if setting else None, bool(written["suffix"]), nanoseconds)

    if len(written["first"]) == 4:
        return [form(mark.join(("%Y", "%m", "%d")), setting=False)]
    year = "%Y" if len(written["third"]) == 4 else "%y"
    orders = [("%d", "%m", year), ("%m", "%d", year), *([("%y", "%m", "%d")] if year == "%y" else [])]
    return [form(mark.join(order), setting=True) for order in orders]


def _set_form(setting: str) -> Form:
    """Returns the form of the setting `time_format`, which is written as Python's strptime reads it."""
    if setting in time_forms.EPOCHS:
        return Form((setting,), setting)
    offsets = setting.endswith("%z")
    form = setting.removesuffix("%z").rstrip() if offsets else setting
    form = form.replace(".%f", "%.f").replace("%f", "%6f")
    forms: tuple[str, ...] = (form, form.replace("%.f", "")) if "%.f" in form else (form,)
    if dated := _DATED_FORM.fullmatch(form):  # its times may have seconds, a fraction, or none of the clock
        hours, half = dated["hours"] or "%H", dated["half"] or ""
        forms = _formats(dated["date"], dated["gap"], hours, half, seconds=bool(dated["seconds"]), first=forms)
    return Form(forms, setting, offsets)


def _formats(
    date: str, gap: str | None, hours: str, half: str, *, seconds: bool, first: Sequence[str] = ()
) -> tuple[str, ...]:
    """Returns the formats that times of one form may have, the likeliest first: with and without parts of the clock."""
    with_seconds, without = f"{hours}:%M:%S{half}", f"{hours}:%M{half}"
    fraction = f"{hours}:%M:%S%.f{half}"
    clocks = [with_seconds, fraction, without] if seconds or not gap else [without, with_seconds, fraction]
    gaps = [gap or " ", *({" ", "T"} - {gap or " "})]
    formats = [f"{date}{between}{clock}" for between in gaps for clock in clocks]
    formats.insert(len(formats) if gap else 0, date)
    return tuple(dict.fromkeys([*first, *formats]))


def _parse(form: Form, cells: pl.Series, name: str) -> tuple[pl.Series, pl.Series | None]:
    try:
        return form.parse(cells)
    except pl.exceptions.PolarsError as error:
        raise DataError(f'{name}: data.time_format = "{form.setting}": {str(error).splitlines()[0]}') from error


def _numbers(text: pl.Series) -> pl.Series:
    stripped = text.str.strip_chars()
    whole = stripped.cast(pl.Int64, strict=False)
    if whole.null_count() == text.null_count():
        return whole
    return stripped.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)


def _to_datetime(text: pl.Series, form: str, unit: Any) -> pl.Series:
    """Returns the times (rows,) that have the form, null for the others."""
    text, form = time_forms.completed(text, form)
    if form.endswith(_WITH_FRACTION):
        return _with_fraction(text, form.removesuffix("%.f"), unit)
    times = text.str.to_datetime(form, strict=False, time_unit=unit, cache=False)
    return times.to_frame("time").select(pl.when(pl.col("time").dt.year() >= _FIRST_YEAR).then("time"))["time"]


def _with_fraction(text: pl.Series, form: str, unit: Any) -> pl.Series:
    """Returns the times whose seconds have a fraction; polars itself takes three times as long to read one."""
    parts = pl.DataFrame(
        {"time": _to_datetime(text.str.head(_SECONDS_END), form, unit), "rest": text.str.slice(_SECONDS_END)}
    )
    digits = pl.col("rest").str.slice(1).str.pad_end(9, "0").str.head(9).cast(pl.Int64, strict=False)
    exact = pl.col("time").cast(pl.Datetime("ns")) + pl.duration(nanoseconds=digits, time_unit="ns")
    is_fraction = pl.col("rest").str.contains(r"^[.,]\d+$")
    return parts.select(pl.when(is_fraction).then(exact.cast(pl.Datetime(unit))).alias("time"))["time"]


def _split_offsets(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Returns the times without their offsets, and the offsets in seconds, null where there is none."""
    first = re.search(_WITH_OFFSET, str(text.drop_nulls()[0]))
    length = len(first[2]) if first else 0
    tails = text.str.tail(length)
    distinct = {tail: _offset(tail) for tail in tails.unique().drop_nulls()} if first else {"": None}
    if None in distinct.values():  # offsets of several lengths
        bodies, tails = text.str.extract(_WITH_OFFSET, 1).fill_null(text), text.str.extract(_WITH_OFFSET, 2)
        distinct = {tail: _offset(tail) for tail in tails.unique().drop_nulls()}
    else:
        bodies = text.str.head(-length)
    return bodies, tails.replace_strict(distinct, default=None, return_dtype=pl.Int64)


def _offset(suffix: str) -> int | None:
    suffix = suffix.strip()
    if suffix in ("Z", "z", "UTC"):
        return 0
    match = re.fullmatch(r"([+-]\d\d):?(\d\d)?", suffix)
    if match is None:
        return None
    hours = int(match[1])
    return hours * 3600 + (-60 if suffix[0] == "-" else 60) * int(match[2] or 0)


# Zones


@dataclass(slots=True)
class RepeatedHours:
    """The local times that occur twice because clocks were set back, as they come.

    In each series the first occurrence of a time is before the change. A time that comes again is after it, and so are
    all of that day that follow a step backwards.
    """

    _days: dict[tuple[Any, int], tuple[set[int], int, bool]] = field(default_factory=dict)

    def is_later(self, series: Any, local: int) -> bool:
        """Returns whether the local time, in seconds, is the later one of the two."""
        seen, previous, is_back = self._days.get((series, local // _DAY), (set(), local, False))
        is_back = is_back or local < previous
        is_later = is_back or local in seen
        seen.add(local)
        self._days[series, local // _DAY] = seen, local, is_back
        return is_later


def locate(
    times: Times, settings: TableSettings, series: pl.Series | None, refusals: Refusals, repeated: RepeatedHours
) -> tuple[pl.Series, pl.Series | None, str | None]:
    """Returns the times as an axis, the clock where it is a column of its own, and the zone of the clock.

    The axis is numbers, clock times without a zone, or instants; instants of a named zone are read on its clock.
    series: (rows,) in the file's order. Times that no clock shows are added to the refusals.
    """
    values = times.values
    zone = settings.time_zone
    if values.dtype.is_numeric():
        return values, None, zone
    if values.dtype == pl.Date:
        values = values.cast(pl.Datetime("us"))
    own = getattr(values.dtype, "time_zone", None)
    if own is not None:
        zone = own if zone in (None, WRITTEN) else zone
        return *_on_clock(values, str(zone)), zone
    if times.offsets is not None:
        instants = _shifted(values, -times.offsets)
        if zone in (None, WRITTEN):
            return instants.dt.replace_time_zone("UTC"), values, WRITTEN
        return *_on_clock(instants.dt.replace_time_zone("UTC"), str(zone)), zone
    if zone is None or zone == WRITTEN:
        return values, None, WRITTEN
    instants = _localized(values, calendar.zone(zone), zone, series, refusals, repeated)
    return *_on_clock(instants.dt.replace_time_zone("UTC"), zone), zone


def _on_clock(instants: pl.Series, zone: str) -> tuple[pl.Series, pl.Series | None]:
    """Returns the instants on the zone's clock, and that clock as a column of its own where polars has no such zone."""
    if not isinstance(fixed := calendar.zone(zone), timezone):
        return instants.dt.convert_time_zone(zone), None
    offset = round(fixed.utcoffset(None).total_seconds())
    return instants, _shifted(instants, pl.Series([offset]).new_from_index(0, len(instants)))


def clock_seconds(times: pl.Series, clock: pl.Series | None, zone: str | None) -> Integers:
    """Returns (rows,) what the clock of an axis shows: seconds since 1970-01-01T00:00:00 on that clock."""
    if clock is not None:
        return _seconds(clock)
    seconds = _seconds(times)
    if getattr(times.dtype, "time_zone", None) is None or zone is None:
        return seconds
    return seconds + offsets_at(calendar.zone(zone), seconds)


def at_or_after(times: pl.Series, clock: pl.Series | None, zone: str | None, moment: str | float) -> NDArray[np.bool_]:
    """Returns (rows,) whether the times of an axis are at or after a moment.

    A number is compared with numbers. A time in ISO 8601 is compared with what the clock of the times shows or, if it
    has an offset from UTC, with their instants. Raises ValueError if the times are of another kind.
    """
    if times.dtype.is_numeric():
        if isinstance(moment, str):
            raise ValueError(f"{moment} is a date, but the times of the table are numbers")
        return (times >= moment).to_numpy()
    if isinstance(moment, (int, float)):
        raise ValueError(f"{moment} is a number, but the times of the table are dates")  # noqa: TRY004
    at = datetime.fromisoformat(moment)
    if at.tzinfo is None:
        return (
            clock_seconds(times, clock, None if zone == WRITTEN else zone)
            >= (at - _EPOCH.replace(tzinfo=None)).total_seconds()
        )
    if getattr(times.dtype, "time_zone", None) is None:
        raise ValueError(f"{moment} has an offset from UTC, but the clock of the table has none: set data.time_zone")
    return _seconds(times) >= (at - _EPOCH).total_seconds()


def calendar_columns(name: str, entries: Sequence[calendar.Entry], clock: Integers) -> list[pl.Series]:
    """Returns the calendar features of clock times, with the bits of `onward.model.calendar.values`."""
    days, seconds = clock // _DAY, clock % _DAY
    dates = days.astype("datetime64[D]")
    weekdays = (days + 3) % 7  # 1970-01-01 was a Thursday
    keys: dict[calendar.Entry, Integers] = {
        "hour": seconds % 3600,
        "day": seconds,
        "week": weekdays * 24 + seconds // 3600,
        "year": (dates - dates.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64),
        "month_of_year": dates.astype("datetime64[M]").astype(np.int64) % 12 + 1,
        "day_of_week": weekdays + 1,
        "hour_of_day": seconds // 3600,
        "trend": clock - _SECONDS_TO_2000,
    }
    columns: list[NDArray[Any]] = []
    for entry in entries:
        if entry in calendar.PHASES:
            distinct, indices = _distinct(keys[entry])
            waves = np.array([calendar.waves(entry, key) for key in distinct.tolist()]).reshape(-1, 2)
            columns += [waves[indices, wave] for wave in range(2)]
        else:
            columns.append(keys[entry] if entry in calendar.PARTS else keys[entry] / calendar.YEAR_S)
    return [pl.Series(*column) for column in zip(calendar.names(name, entries), columns, strict=True)]


def _distinct(keys: Integers) -> tuple[Integers, Integers]:
    """Returns the distinct keys, which are small, and the index of each key among them."""
    present = np.bincount(keys) > 0
    return np.flatnonzero(present), (np.cumsum(present) - 1)[keys]


def offsets_at(zone: tzinfo, instants: Integers) -> Integers:
    """Returns (rows,) the offsets of the zone from UTC, in seconds, at instants in seconds since 1970."""
    if not len(instants):
        return instants
    starts: list[int] = []
    offsets: list[int] = []
    for day in np.unique(instants // _DAY).tolist():
        low, high = day * _DAY, (day + 1) * _DAY - 1
        starts.append(low)
        offsets.append(_offset_at(zone, low))
        if (last := _offset_at(zone, high)) != offsets[-1]:
            starts.append(_change(zone, low, high))
            offsets.append(last)
    return np.array(offsets)[np.searchsorted(np.array(starts), instants, side="right") - 1]


def _change(zone: tzinfo, low: int, high: int) -> int:
    """Returns the first second of the offset that the zone has at `high`, and not at `low`."""
    after = _offset_at(zone, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _offset_at(zone, middle) == after else (middle, high)
    return high


def _offset_at(zone: tzinfo, instant: int) -> int:
    try:
        offset = (_EPOCH + timedelta(seconds=instant)).astimezone(zone).utcoffset()
    except OverflowError:  # in the first or the last days of what Python calls a date
        return 0
    return 0 if offset is None else round(offset.total_seconds())


def _localized(
    local: pl.Series, zone: tzinfo, name: str, series: pl.Series | None, refusals: Refusals, repeated: RepeatedHours
) -> pl.Series:
    """Returns the instants at which the clock of the zone shows the local times."""
    seconds = _seconds(local)
    before, after = (offsets_at(zone, seconds + shift) for shift in (-_DAY, _DAY))
    is_before, is_after = (offsets_at(zone, seconds - offset) == offset for offset in (before, after))
    offsets = np.where(is_before, before, after)
    absent = np.flatnonzero(~is_before & ~is_after)
    refusals.add(
        absent.tolist(),
        local,
        f'is a time that the clock in {name} skips; if it is no time of that zone, set data.time_zone = "{WRITTEN}"',
    )
    for row in _in_order(np.flatnonzero(is_before & is_after & (before != after)), seconds, series):
        of_series = None if series is None else series[row]
        if repeated.is_later(of_series, int(seconds[row])):
            offsets[row] = after[row]
    return _shifted(local, -pl.Series(offsets))


def _in_order(rows: Integers, seconds: Integers, series: pl.Series | None) -> Iterable[int]:
    """Returns the rows in the order of time, if the file is the other way round."""
    if not len(rows):
        return ()
    if series is None:
        ordered: list[int] = (rows if seconds[-1] >= seconds[0] else rows[::-1]).tolist()
        return ordered
    ends = (
        pl.DataFrame({"series": series, "time": seconds})
        .group_by("series")
        .agg(falls=pl.col("time").last() < pl.col("time").first())
    )
    falls = dict(zip(ends["series"].to_list(), ends["falls"].to_list(), strict=True))
    forward = [row for row in rows.tolist() if not falls[series[row]]]
    return [*forward, *(row for row in rows[::-1].tolist() if falls[series[row]])]


def _seconds(times: pl.Series) -> Integers:
    per_second = 1_000_000_000 if getattr(times.dtype, "time_unit", "us") == "ns" else 1_000_000
    return times.to_physical().to_numpy() // per_second


def _shifted(times: pl.Series, seconds: pl.Series) -> pl.Series:
    unit: Any = getattr(times.dtype, "time_unit", "us")
    factor = 1_000_000_000 if unit == "ns" else 1_000_000
    return (times.to_physical() + seconds * factor).cast(pl.Datetime(unit))
