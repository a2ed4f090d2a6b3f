"""Forms of times beyond ISO 8601: numbers that count from a day, quarters, weeks, and the words for a form that fits.

Owns what `time_format` may say besides the directives of strptime, and which `time_format` a refusal proposes.
"""

import re
from collections.abc import Callable
from typing import Any

import polars as pl

EPOCHS: dict[str, tuple[int, int]] = {
    "%s": (1_000_000_000, 0),
    "ms": (1_000_000, 0),
    "us": (1_000, 0),
    "ns": (1, 0),
    "excel": (86_400_000_000_000, -25_569),
}
"""The nanoseconds of a unit of numbers that count from a day, and that day, from 1970-01-01 on."""

_DAY = 86_400_000_000
_FIRST, _LAST = -30_610_224_000_000_000, 253_402_300_799_000_000
"""The microseconds since 1970 that a date may have."""
_DIGITS = {"%Y%m%d%H%M%S": 14, "%Y%m%d%H%M": 12, "%Y%m%d": 8, "%Y%m": 6, "%Y": 4}
_RANGES = {
    "excel": (20_000, 80_000),
    "%s": (1e8, 1e10),
    "ms": (1e11, 1e13),
    "us": (1e14, 1e16),
    "ns": (1e17, 9.2e18),
}
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_WHOLE_DATES = (
    "%d %B %Y",
    "%d %b %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%d%b%Y",
    "%B %d, %Y",
    "%b %d, %Y",
    "%b %d %Y",
    "%a, %d %b %Y",
    "%Y %b %d",
)
_PARTS = (
    "%Y-%m", "%Y/%m", "%m/%Y", "%m-%Y", "%m.%Y", "%YM%m", "%b %Y", "%B %Y", "%b-%Y", "%b-%y", "%Y %b", "%Y-%b",
    "%YQ%q", "%Y-Q%q", "%Y Q%q", "Q%q %Y", "Q%q-%Y", "%q/%Y", "%G-W%V-%u", "%G-W%V", "%GW%V",
    "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%S%z", "%Y%m%d %H%M", "%Y%m%d %H:%M", "%Y%m%d %H:%M:%S", "%Y%m%d-%H%M%S",
    "%d/%b/%Y:%H:%M:%S %z",
)  # fmt: skip
_COMMON = (*(f"{date}{clock}" for date in _WHOLE_DATES for clock in _CLOCKS), *_PARTS)
"""Forms that people write, of which a refusal proposes one."""


def from_numbers(text: pl.Series, form: str) -> pl.Series:
    """Returns the times (rows,) of numbers that count from a day; null for others, and beyond the dates."""
    unit, day = EPOCHS[form]
    whole = text.str.strip_chars().cast(pl.Int64, strict=False)
    if form == "ns" and whole.null_count() == text.null_count():
        return whole.cast(pl.Datetime("ns"))
    if form != "excel" and whole.null_count() == text.null_count():
        inside = whole.is_between(_FIRST * 1000 // unit, _LAST * 1000 // unit)
        whole = whole.to_frame("time").select(pl.when(inside).then("time"))["time"]
        microseconds = whole * (unit // 1000)
    else:
        numbers = text.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False) * (unit / 1000)
        inside = numbers.is_between(_FIRST, _LAST)
        numbers = numbers.to_frame("time").select(pl.when(inside).then("time"))["time"]
        if form == "excel":  # a double has a serial number to a few microseconds
            numbers = (numbers / 1000).round() * 1000
        microseconds = numbers.round().cast(pl.Int64)
    return (microseconds + day * _DAY).cast(pl.Datetime("us"))


def completed(text: pl.Series, form: str) -> tuple[pl.Series, str]:
    """Returns texts and form with the parts that polars needs: minutes, the day of a week, the month of a quarter."""
    if ("%H" in form or "%I" in form) and "%M" not in form:
        form, text = f"{form}|%M", text + "|00"
    if re.search("%[VUW]", form) and not re.search("%[uwaA]", form):
        form, text = f"{form}|%u", text + "|1"
    if "%q" in form:
        before, after = (
            re.escape(part).replace("%Y", r"\d{4}").replace("%y", r"\d{2}") for part in form.split("%q", 1)
        )
        quarters = pl.DataFrame({"text": text})
        month = pl.col("text").str.extract(rf"^{before}([1-4]){after}$", 1).cast(pl.Int64) * 3 - 2
        parts = [pl.col("text").str.extract(f"^({before})", 1), month.cast(pl.String).str.zfill(2)]
        parts += [pl.col("text").str.extract(f"({after})$", 1), pl.lit("|01")]
        text = quarters.select(pl.concat_str(parts))["text"]
        form = form.replace("%q", "%m") + "|%d"
    return text, form


def is_of_day(form: str) -> bool:
    """Returns whether a form has directives, and none of the year, without which a time is no instant."""
    return "%" in form and form not in EPOCHS and not re.search("%[-_0]?[YyGgDFcxCs]", form)


def fitting(cell: str, parse: Callable[[str, pl.Series], pl.Series]) -> str | None:
    """Returns the first of the common forms that the cell has; none if it has none of them."""
    text = pl.Series([cell.strip()])
    return next((form for form in _COMMON if _parses(form, text, parse)), None)


def fitting_numbers(values: pl.Series, parse: Callable[[str, pl.Series], pl.Series]) -> str | None:
    """Returns the form of times under which all of the numbers are dates, if they may be dates."""
    smallest: Any = values.min()
    largest: Any = values.max()
    if smallest is None:
        return None
    ends = pl.Series([f"{smallest:.0f}", f"{largest:.0f}"])
    if smallest == round(smallest) and largest == round(largest):
        for form, digits in _DIGITS.items():
            years = {end[:2] for end in ends}
            if ends.str.len_chars().eq(digits).all() and years <= {"19", "20"} and _parses(form, ends, parse):
                return form
    return next((form for form, (low, high) in _RANGES.items() if low <= smallest and largest < high), None)


def _parses(form: str, text: pl.Series, parse: Callable[[str, pl.Series], pl.Series]) -> bool:
    try:
        return not parse(form, text).null_count()
    except pl.exceptions.PolarsError:
        return False
