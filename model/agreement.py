"""Whether two answers are the same answer, where bits need not be equal.

Owns what "close" means for numbers and for places in a ranking. Knows nothing of models.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.generic]


def difference(got: Numbers, expected: Numbers) -> float:
    """The largest absolute difference; NaN where either has one, infinite where the shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))


def magnitude(numbers: Numbers) -> float:
    return float(np.abs(numbers.astype(np.float64)).max(initial=0.0))


def misplaced(got: Numbers, expected: Numbers, scores: Numbers, allowed: float) -> int:
    """How many places differ although nothing beside them in the ranking scores as high, to within `allowed`.

    got, expected: (..., ranks) places; scores: (..., ranks) of the expected ones, falling. The last rank may be tied
    with one that is not shown.
    """
    if got.shape != expected.shape:
        return got.size
    near = np.abs(np.diff(scores.astype(np.float64), axis=-1)) <= allowed
    edge = np.zeros((*scores.shape[:-1], 1), bool)
    tied = np.concatenate([edge, near], axis=-1) | np.concatenate([near, ~edge], axis=-1)
    return int(np.count_nonzero((got != expected) & ~tied))
