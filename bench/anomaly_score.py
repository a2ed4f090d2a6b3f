"""The standard score of a streaming anomaly benchmark (Lavin and Ahmad 2015, "Evaluating real-time anomaly detection
algorithms", section III), for scores of series with labelled windows.

Owns the formula: a detection inside a window counts once, the more the earlier it is; a detection outside one costs,
the more the farther it is behind the window before it; a window without detection costs. One threshold is chosen for
the whole corpus. 0 is the score of a detector that detects nothing, 100 that of one that detects the first point of
each window and nothing else. Knows nothing of how scores or series are made.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FALSE_POSITIVE = 0.11
"""The cost of a false positive in the standard profile, in which a missed window costs 1. With windows of a tenth of
the points, as many detections at random as there are points in windows gain nothing.
"""
FAR = 3.0
"""A false positive costs the whole from this many window lengths behind a window on."""

Windows = Sequence[tuple[int, int]]


class Scored(NamedTuple):
    """The scores of a series (points,), its windows [first, last], and the number of points at its start that are not
    scored.
    """

    scores: NDArray[np.float64]
    windows: Windows
    probation: int


class Result(NamedTuple):
    """The score of a corpus, the threshold at which it is reached, and what was detected there."""

    score: float
    threshold: float
    windows: int
    detected: int
    false_positives: int


def sigmoid(position: float) -> float:
    """Returns 2 / (1 + exp(5 y)) - 1: nearly 1 at the start of a window (y = -1), 0 at its end, to -1 behind it."""
    return -1.0 if position > FAR else 2 / (1 + math.exp(5 * position)) - 1


def weights(points: int, windows: Windows, false_positive: float = FALSE_POSITIVE) -> NDArray[np.float64]:
    """Returns what a detection at each point (points,) is worth: in a window at most 1, elsewhere at most 0."""
    worth = np.full(points, -false_positive)
    for number, (first, last) in enumerate(windows):
        length = last - first + 1
        for point in range(first, last + 1):
            worth[point] = sigmoid(-(last - point + 1) / length) / sigmoid(-1.0)
        until = windows[number + 1][0] if number + 1 < len(windows) else points
        for point in range(last + 1, until):
            worth[point] = false_positive * sigmoid((point - last) / max(length - 1, 1))
    return worth


def best(corpus: Iterable[Scored], false_positive: float = FALSE_POSITIVE) -> Result:
    """Returns the score at the threshold that is best for the whole corpus; a score that is NaN is never detected."""
    steps: list[tuple[float, float, int, int]] = []  # score, gain, windows detected, false positives
    count = 0
    for scores, windows, probation in corpus:
        count += len(windows)
        worth, outside = weights(len(scores), windows, false_positive), np.ones(len(scores), bool)
        outside[:probation] = False
        for first, last in windows:
            outside[first : last + 1] = False
            reached = -1.0
            inside = [(-scores[point], point) for point in range(max(first, probation), last + 1)]
            for lower, point in sorted(pair for pair in inside if not math.isnan(pair[0])):
                if worth[point] > reached:
                    steps.append((-lower, worth[point] - reached, int(reached == -1.0), 0))
                    reached = worth[point]
        outside &= ~np.isnan(scores)
        steps += [(score, gain, 0, 1) for score, gain in zip(scores[outside], worth[outside], strict=True)]
    if not count:
        return Result(math.nan, math.inf, 0, 0, 0)
    order = np.array(sorted(steps, reverse=True), float).reshape(-1, 4)
    gained = np.cumsum(order[:, 1:], axis=0)
    ends = np.append(order[1:, 0] != order[:-1, 0], np.ones(min(len(order), 1), bool))  # of equal scores
    thresholds, totals = order[ends, 0], gained[ends]
    if not len(totals) or totals[:, 0].max() <= 0:
        return Result(0.0, math.inf, count, 0, 0)
    at = int(totals[:, 0].argmax())
    gain, detected, false_positives = totals[at]
    return Result(100 * gain / (2 * count), float(thresholds[at]), count, int(detected), int(false_positives))
