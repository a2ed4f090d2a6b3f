"""The steps that are held out for the test, as far as they can be scored.

Owns what must be held out, so that a run can verify before it trains what the evaluation needs afterwards. Knows
nothing of models.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onward.training.data.datasets import Series

FIRST_SCORED = 2
"""The first step of a series at which a number can be scored: a naive forecast needs two steps before it."""


def first_scored(series: Series) -> int:
    """Returns the first held-out step whose number is scored."""
    return max(FIRST_SCORED, series.test_from)


def require_numbers(series: Sequence[Series], targets: Mapping[str, int], period: int | None) -> list[Series]:
    """Returns the series that have held-out numbers to score. targets: the column of each target.

    Raises ValueError if there are none, of any target, or if `period` is longer than a series before its test part.
    """
    scored = [item for item in series if len(item.values) > first_scored(item)]
    if not scored:
        raise ValueError("nothing is held out: every held-out series has fewer than three steps")
    for item in scored:
        if period is not None and period > first_scored(item):
            raise ValueError(f"data.period: {period} steps is more than series {item.name} has before its test part")
    for target, column in targets.items():
        if all(np.isnan(item.values[first_scored(item) :, column]).all() for item in scored):
            raise ValueError(f"no value of {target} is held out: all are missing")
    return scored


def category_steps(series: Series, column: int) -> NDArray[np.intp]:
    """Returns the held-out steps whose category is scored: all that have one, except the first of the series."""
    first = max(1, series.test_from)
    return first + np.flatnonzero(~np.isnan(series.values[first:, column]))


def require_categories(series: Sequence[Series], column: int) -> None:
    """Raises ValueError if no held-out step has a category that is scored."""
    if not any(len(category_steps(item, column)) for item in series):
        raise ValueError("no category is held out: every held-out sequence has a single step")


def require_labels(series: Sequence[Series]) -> None:
    """Raises ValueError if no label is held out."""
    if not any(len(item.values) > item.test_from for item in series):
        raise ValueError("no label is held out")
