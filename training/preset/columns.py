"""The roles of the columns of a table: its time, the series of a row, and what is predicted.

Owns the rules by which columns are found. Each that the user does not name is a choice with its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onward.model.tables.preview import Kind, Preview, joined_times
from onward.model.tables.settings import TableSettings
from onward.training.errors import DataError
from onward.training.preset.choice import Choice

MOST_TARGETS = 16
"""The most columns that are predicted together without being named."""

TIME_NAMES = frozenset({"time", "timestamp", "date", "datetime", "t", "ts", "ds", "step", "index", "sample", "seconds"})
"""The names, in lower case, of columns of numbers that are taken for the time."""

EXPLAINED = 0.3
"""The squared correlation above which a column that is not read is named."""

NUMBERS: tuple[Kind, ...] = ("number", "whole")


@dataclass(frozen=True, slots=True)
class Named:
    """The columns that the user names."""

    targets: tuple[str, ...] = ()
    series: str | None = None
    time: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    """The columns whose future is known in advance."""


def find(file: Path, preview: Preview, settings: TableSettings, named: Named) -> list[Choice]:
    """Returns the keys of `[data]` for the table in `file`. Raises DataError where a column cannot be chosen."""
    _require_present(file, preview, named)
    choices = _formats(preview, settings)
    time, time_reason = _time(preview, named)
    if time:
        choices.append(Choice("data.time", time[0] if len(time) == 1 else list(time), time_reason))
    series, series_reason = _series(preview, named, time)
    if series:
        choices.append(Choice("data.series", series, series_reason))
    used = {*time, *([series] if series else []), *named.plans}
    targets, target_reason = _targets(file, preview, named, used)
    choices.append(Choice("data.targets", list(targets), target_reason))
    features = [*targets, *(name for name in named.plans if name not in targets)]
    if named.plans:
        choices.append(Choice("data.features", features, "the targets and the columns that are known in advance"))
        choices.append(Choice("data.known", list(named.plans), "named"))
    words = [name for name in features if preview.kinds[name] == "text"]
    if words:
        choices.append(Choice("data.categories", words, "their cells are words"))
        choices.append(Choice("data.unknown", value=True, reason="words that training has not seen are allowed"))
    empty = [name for name in features if _is_missing(preview.rows[name])]
    if empty:
        choices.append(Choice("data.missing", empty, "some of their cells are empty"))
    return choices


def explained_by(preview: Preview, choices: Sequence[Choice]) -> dict[str, float]:
    """Returns the columns of numbers that are not read, and that explain most of the first target in the same row.

    The value of each is its squared correlation with the target: a plan would be read as one only if it is named.
    """
    used: set[str] = set()
    for choice in choices:
        if choice.key in ("data.time", "data.series", "data.targets", "data.features"):
            used.update([choice.value] if isinstance(choice.value, str) else choice.value)
    target = next(choice.value[0] for choice in choices if choice.key == "data.targets")
    values = _numbers(preview, target)
    shares = {}
    for name, kind in preview.kinds.items():
        if kind in NUMBERS and name not in used and preview.kinds[target] in NUMBERS:
            values_beside = _numbers(preview, name)
            present = ~(np.isnan(values) | np.isnan(values_beside))
            if present.sum() > 10 and np.std(values[present]) > 0 and np.std(values_beside[present]) > 0:
                shares[name] = float(np.corrcoef(values[present], values_beside[present])[0, 1] ** 2)
    return {name: share for name, share in shares.items() if share > EXPLAINED}


def _numbers(preview: Preview, name: str) -> NDArray[np.float64]:
    cells = preview.rows[name]
    if cells.dtype == pl.String:
        cells = (
            cells.str.strip_chars().str.replace(",", ".", literal=True) if preview.settings.decimal == "," else cells
        )
    return cells.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()


def _require_present(file: Path, preview: Preview, named: Named) -> None:
    names = [*named.targets, *([named.series] if named.series else []), *named.time, *named.plans]
    if absent := [name for name in names if name not in preview.kinds]:
        raise DataError(f"{file}: no column {', '.join(absent)}; it has {', '.join(preview.kinds)}")


def _formats(preview: Preview, settings: TableSettings) -> list[Choice]:
    choices = []
    if preview.settings.decimal != settings.decimal:
        choices.append(Choice("data.decimal", ",", "numbers are written with a comma"))
    return choices


def _time(preview: Preview, named: Named) -> tuple[tuple[str, ...], str]:
    if named.time:
        return named.time, "named"
    found = joined_times(preview)
    if found:
        return found[0], "its cells are times" if len(found[0]) == 1 else "their cells are dates and times of day"
    for name, kind in preview.kinds.items():
        if kind in NUMBERS and name.strip().lower() in TIME_NAMES and name not in (*named.targets, *named.plans):
            return (name,), "it has the name of a time"
    return (), ""


def _series(preview: Preview, named: Named, time: Sequence[str]) -> tuple[str | None, str]:
    """Returns the column that tells series apart: the first that makes repeated times distinct."""
    if named.series:
        return named.series, "named"
    rows = preview.rows
    if not time or not rows.select(time).is_duplicated().any():
        return None, ""
    names = [
        name
        for name, kind in preview.kinds.items()
        if kind in ("text", "whole") and name not in (*time, *named.targets, *named.plans)
    ]
    for name in sorted(names, key=lambda name: rows[name].n_unique()):
        if rows[name].n_unique() <= rows.height // 2 and not rows.select(*time, name).is_duplicated().any():
            return name, "times are repeated, and none of a value of this column"
    return None, ""


def _targets(file: Path, preview: Preview, named: Named, used: set[str]) -> tuple[tuple[str, ...], str]:
    if named.targets:
        return named.targets, "named"
    numbers = [
        name
        for name, kind in preview.kinds.items()
        if kind in NUMBERS and name not in used and preview.rows[name].drop_nulls().n_unique() > 1
    ]
    if not numbers:
        raise DataError(f"{file}: no column of numbers that change is left to predict: name one with --target")
    if len(numbers) > MOST_TARGETS:
        raise DataError(
            f"{file}: {len(numbers)} columns of numbers could be predicted: name those to predict with --target"
        )
    return tuple(numbers), "the only column of numbers" if len(numbers) == 1 else "all columns of numbers that change"


def _is_missing(column: pl.Series) -> bool:
    if column.dtype != pl.String:
        return bool(column.null_count() or (column.dtype.is_float() and column.is_nan().any()))
    return bool(column.null_count() or (column.str.strip_chars() == "").any())
