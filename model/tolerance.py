"""Whether two answers are the same answer, where bits need not be equal.

Owns what "close" means for numbers and for places in a ranking. Knows nothing of models.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.generic]


def max_difference(got: Numbers, expected: Numbers) -> float:
    """The largest absolute difference; NaN where either has one, infinite where the shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))


def max_magnitude(numbers: Numbers) -> float:
    return float(np.abs(numbers.astype(np.float64)).max(initial=0.0))


def count_misranked(got: Numbers, expected: Numbers, scores: Numbers, allowed: float) -> int:
    """How many places stand at a rank that is not theirs, nor tied with theirs to within `allowed`.

    got, expected: (..., ranks) places; scores: (..., ranks) of the expected ones, falling. A place that is not expected
    at all may stand only where the last rank's score is, tied with one that is not shown.
    """
    if got.shape != expected.shape:
        return got.size
    ranks = expected.shape[-1]
    rows = zip(*(rows.reshape(-1, ranks) for rows in (got, expected, scores.astype(np.float64))), strict=True)
    count = 0
    for mine, theirs, by in rows:
        for rank in np.flatnonzero(mine != theirs):
            own = by[theirs == mine[rank]]
            score = own[0] if len(own) else by[-1]
            count += not abs(float(by[rank]) - float(score)) <= allowed
    return count
