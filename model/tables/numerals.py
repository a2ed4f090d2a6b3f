"""Numbers as people write them in texts: decimal marks, separators of thousands, truth values, and missing ones.

Owns how a text becomes a number, and which settings would make one of a text that is none.
"""

import json
import re
from collections.abc import Sequence
from itertools import product

import polars as pl

from onward.model.tables.settings import TableSettings

THOUSANDS = {".": r"\.", ",": ",", "'": "['\u2019]", " ": "[ \u00a0\u202f]"}
"""The characters that stand for each separator of thousands, as a regular expression."""

_BOOLEANS = {"true": 1.0, "false": 0.0}
_MINUS = "\u2212"
_LONGEST_MARKER = 10


def parse(cells: pl.Series, settings: TableSettings, markers: Sequence[str]) -> tuple[pl.Series, pl.Series]:
    """Returns the numbers (rows,) of texts, null where there is none, and which texts are neither empty nor a number.

    Texts that are among the markers are missing.
    """
    stripped = pl.col("cells").str.strip_chars()
    texts = cells.to_frame("cells").select(pl.when(~stripped.is_in(["", *markers])).then(stripped).alias("cells"))
    numbers = texts.select(_plain(pl.col("cells"), settings).cast(pl.Float64, strict=False))["cells"]
    wrong = numbers.is_null() & texts["cells"].is_not_null()
    if wrong.any():
        words = texts["cells"].str.to_lowercase().replace_strict(_BOOLEANS, default=None, return_dtype=pl.Float64)
        numbers = numbers.fill_null(words)
        wrong = numbers.is_null() & texts["cells"].is_not_null()
    return numbers, wrong


def _plain(cells: pl.Expr, settings: TableSettings) -> pl.Expr:
    """Returns the texts with a decimal point and without separators of thousands; null for another decimal mark."""
    if settings.thousands is not None:
        grouped = cells.str.contains(_pattern(settings.decimal, settings.thousands))
        cells = pl.when(grouped).then(cells.str.replace_all(THOUSANDS[settings.thousands], "")).otherwise(cells)
    if settings.decimal == ",":
        has_point = cells.str.contains(".", literal=True)
        cells = pl.when(~has_point).then(cells.str.replace(",", ".", literal=True))
    return cells.str.replace(_MINUS, "-", literal=True)


def _pattern(decimal: str, thousands: str | None) -> str:
    """Returns the regular expression of numbers that are written so, those with separated thousands only if any."""
    end = rf"(?:\{decimal}\d*)?$"
    if thousands is None:
        return rf"^[+\-{_MINUS}]?\d+{end}"
    return rf"^[+\-{_MINUS}]?\d{{1,3}}(?:{THOUSANDS[thousands]}\d{{3}})+{end}"


def hint(cells: Sequence[str], column: str | None, settings: TableSettings) -> str:
    """Returns what makes numbers, or missing values, of texts that are refused; nothing if no setting does."""
    if all(cell == column for cell in cells):
        return "the row has the names of the columns again: remove it"
    plain = [decimal for decimal in ".," if _are(cells, _pattern(decimal, None))]
    ways = [f"data.decimal = {json.dumps(decimal)}" for decimal in plain if decimal != settings.decimal]
    for decimal, thousands in product(".,", THOUSANDS):
        both = f"(?:{_pattern(decimal, thousands)}|{_pattern(decimal, None)})"
        if decimal == thousands or decimal in plain or not _are(cells, both):
            continue
        mark = "" if decimal == settings.decimal else f"data.decimal = {json.dumps(decimal)} and "
        ways.append(f"{mark}data.thousands = {json.dumps(thousands)}")
    if ways:
        return f"set {', or '.join(ways)}"
    markers = list(dict.fromkeys(cells))
    if all(len(word) <= _LONGEST_MARKER and ("#" in word or not re.search(r"\d", word)) for word in markers):
        listed = json.dumps(markers, ensure_ascii=False)
        many = "they stand for missing values" if len(markers) > 1 else "it stands for a missing value"
        return f"if {many}, set data.missing_values = {listed}; list a column of words under data.categories"
    return "list a column of words under data.categories" if _are(cells, r"^[^\W\d]") else ""


def _are(cells: Sequence[str], pattern: str) -> bool:
    return all(re.search(pattern, cell) for cell in cells)
