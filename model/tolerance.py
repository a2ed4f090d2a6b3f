"""Comparison of results that need not have equal bits.

Owns what "close" means for numbers and for rankings of categories. Knows nothing of models.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.generic]


def max_difference(actual: Numbers, expected: Numbers) -> float:
    """Returns the largest absolute difference: NaN if either array has one, infinite if the shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    return float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))


def max_magnitude(numbers: Numbers) -> float:
    """Returns the largest absolute value; 0 if there is none."""
    return float(np.abs(numbers.astype(np.float64)).max(initial=0.0))


def count_misranked(actual: Numbers, expected: Numbers, scores: Numbers, allowed: float) -> int:
    """Returns how many categories have a rank that is neither their own nor tied with it to within `allowed`.

    actual, expected: indices of categories (..., ranks). scores: (..., ranks) of the expected categories, falling. A
    category that is not expected may only have a rank that is tied with the last one, as it could be the next.
    """
    if actual.shape != expected.shape:
        return actual.size
    ranks = expected.shape[-1]
    rows = zip(*(rows.reshape(-1, ranks) for rows in (actual, expected, scores.astype(np.float64))), strict=True)
    count = 0
    for actual_row, expected_row, row_scores in rows:
        for rank in np.flatnonzero(actual_row != expected_row):
            own = row_scores[expected_row == actual_row[rank]]
            score = own[0] if len(own) else row_scores[-1]
            count += not abs(float(row_scores[rank]) - float(score)) <= allowed
    return count
