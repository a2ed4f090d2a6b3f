"""Anomaly scores of a session's surprises: one minus a probability of a surprise at least as high, in three kinds.

Owns three streaming formulas, over the ring of the session's last RING_SIZE surprises and eight numbers:

- `run`, the default: how far the mean of the last RUN surprises is above the mean of about RING_SIZE, in deviations
  (Lavin and Ahmad 2015, "Evaluating real-time anomaly detection algorithms", section II), as a probability by a
  survival function that was calibrated by measurement.
- `tail`: peaks over a threshold (Siffer et al. 2017, "Anomaly detection in streams with extreme value theory", section
  4.1, equation 1). A share q of the surprises is above the threshold t, and P(S > s) is q times the survival function
  of a generalised Pareto distribution at s - t. Unlike theirs, the threshold follows the data (Robbins and Monro 1951),
  an alarm enters the fit, and the fit is by moments (Hosking and Wallis 1987, section 2), which need no buffer.
- `rank`: the rank among the ring's surprises, a conformal p-value (Laxhammar and Falkman 2010, section 3).

All numbers are kept for each kind, so that a session's kind says only which score it returns. `score_surprise` is for
one row, and `score_surprises_of_rows` for one surprise of each of many rows, with the same bits: only sums, products,
quotients and square roots are computed for rows at once. Knows nothing of models.
"""

import math
from collections.abc import Sequence
from struct import Struct
from typing import Literal, get_args

import numpy as np

from onward.model.scoring.conformal import EMPTY, RING_SIZE, Floats, Ring, count_reaching, count_reaching_of_rows

AnomalyKind = Literal["run", "tail", "rank"]
KINDS: tuple[AnomalyKind, ...] = get_args(AnomalyKind)
"""The kinds by number; the first is the default."""
RUN_KIND, TAIL_KIND, RANK_KIND = range(3)

KIND, MEAN, VARIANCE, THRESHOLD, SHARE, PEAKS, EXCESS, SQUARE = range(8)
"""The positions of the numbers: the kind; the mean and the variance of about the last RING_SIZE surprises; the
threshold, the share of surprises above it and their number; and the means of the excesses and of their squares.
"""
WIDTH = 8

MIN_SCORES = 19
"""The number of surprises before the first anomaly: with fewer no input could have a rank of 0.95."""
RUN = 8
"""The number of surprises in a run."""
_MOST_DEVIATIONS = 50.0
"""A surprise enters the mean and the variance as at most so many deviations above the mean, to be forgotten in time."""
_BASE, _UNIT, _LEAST = 0.4, 5.0, 0.5
"""The survival function of a run z deviations above the mean is _BASE (1 + z / _UNIT)^-16, and at most 1."""

FIRST = 100
"""The number of surprises from which the threshold is first taken: the 90% quantile of them. Before, `tail` is `rank`.
"""
_WANTED_SHARE = 0.02
"""The share of the surprises above the threshold that the threshold moves towards."""
_MEMORY, _PEAKS = 3000, 64
"""The share is a mean over so many surprises, and the moments are means over so many excesses."""
_MOST_SHAPE = 0.45
"""Moments have no heavier tail than 1/2."""
_BOUND = 1e-4
"""An excess enters the moments as at most that of this probability under the fit: one outlier does not hide the next.
"""
_LEAST_PROBABILITY = 1e-30
_MANY = 10
"""Fewer rows are scored one by one, at less cost."""

_BEFORE = Struct(f"<{RUN - 1}f")
_START = Struct(f"<{FIRST - 1}f")


def first_numbers(kind: int = RUN_KIND) -> list[float]:
    """Returns the numbers of a new session."""
    return [float(kind), 0.0, 0.0, math.inf, 0.0, 0.0, 0.0, 0.0]


def score_surprise(numbers: list[float], at: int, count: int, data: bytes, end: int, surprise: float) -> float:
    """Returns the anomaly of a surprise, and updates the numbers from `at` on; NaN with fewer than MIN_SCORES before.

    count: the number of surprises before it. data: has at its `end` the ring before it; its first entries are -inf if
    there are fewer surprises.
    """
    mean, variance = numbers[at + MEAN], numbers[at + VARIANCE]
    entered, found = surprise, math.nan
    if count >= MIN_SCORES:
        deviation = math.sqrt(variance) if variance > 0 else 0.0
        kind = numbers[at]
        if kind == RUN_KIND:
            a, b, c, d, e, f, g = _BEFORE.unpack_from(data, end - _BEFORE.size)
            run = (a + b + c + d + e + f + g + surprise) / RUN - mean
            if deviation > 0:
                y = 1 + run / deviation / _UNIT
                y = max(_LEAST, y)
                y *= y
                y *= y
                y *= y
                found = 1 - _BASE / (y * y)
                found = max(0.0, found)
            else:
                found = 1.0 if run > 0 else 0.0
        else:
            reaching = count_reaching(data, end, surprise)
            found = _of_rank(numbers, at, count, reaching, surprise)
        bound = mean + _MOST_DEVIATIONS * deviation
        if deviation > 0 and surprise > bound:
            entered = bound
    weight, difference = 1 / min(count + 1, RING_SIZE), entered - mean
    mean += weight * difference
    numbers[at + MEAN] = mean
    numbers[at + VARIANCE] = variance + weight * (difference * (entered - mean) - variance)
    weight, threshold = 1 / min(count + 1, _MEMORY), numbers[at + THRESHOLD]
    above = surprise > threshold
    numbers[at + SHARE] += weight * (above - numbers[at + SHARE])
    numbers[at + THRESHOLD] += numbers[at + EXCESS] * weight / _WANTED_SHARE * (above - _WANTED_SHARE)
    if above:
        numbers[at + PEAKS : at + WIDTH] = _with_excess(surprise - threshold, *numbers[at + PEAKS : at + WIDTH])
    elif count + 1 == FIRST:
        begun = [*_START.unpack_from(data, end - _START.size), surprise]
        numbers[at + THRESHOLD : at + WIDTH] = _begin(begun)
    return found


def score_surprises_of_rows(numbers: Floats, rings: Ring, counts: Floats, surprises: Floats) -> Floats:
    """Returns the anomalies (rows,) of one surprise per row, as `score_surprise` does.

    numbers: (rows, WIDTH), updated in place. rings: (rows, RING_SIZE) before the surprises. counts, surprises: (rows,).
    """
    if len(numbers) < _MANY:
        return np.array([_score_row(*row) for row in zip(numbers, rings, counts, surprises, strict=True)])
    columns = numbers.T.copy()
    kinds, mean, variance, threshold, share, _, excesses, _ = columns
    deviation, before = np.sqrt(variance), rings[:, -(RUN - 1) :].T.astype(np.float64, order="C")
    run = (np.add.reduce(before) + surprises) / RUN - mean  # one term after another
    y = np.maximum(1 + run / deviation / _UNIT, _LEAST)
    for _ in range(3):
        y *= y
    found: Floats = np.maximum(1 - _BASE / (y * y), 0.0)
    bound = mean + _MOST_DEVIATIONS * deviation
    is_constant, is_unscored, is_beyond = deviation == 0, counts < MIN_SCORES, surprises > bound
    if is_constant.any():
        found[is_constant] = run[is_constant] > 0
        is_beyond &= ~is_constant
    if kinds.any():
        by_rank = np.flatnonzero(kinds)
        reached = count_reaching_of_rows(rings[by_rank], surprises[by_rank]).tolist()
        for row, reaching in zip(by_rank.tolist(), reached, strict=True):
            found[row] = _of_rank(columns[:, row].tolist(), 0, int(counts[row]), reaching, float(surprises[row]))
    if is_unscored.any():
        found[is_unscored] = math.nan
        is_beyond &= ~is_unscored
    entered = np.where(is_beyond, bound, surprises)
    after = counts + 1
    weight, difference = 1 / np.minimum(after, RING_SIZE), entered - mean
    mean += weight * difference
    variance += weight * (difference * (entered - mean) - variance)
    weight, above, excess = 1 / np.minimum(after, _MEMORY), surprises > threshold, surprises - threshold
    share += weight * (above - share)
    threshold += excesses * weight / _WANTED_SHARE * (above - _WANTED_SHARE)
    if above.any():
        for row in np.flatnonzero(above).tolist():
            columns[PEAKS:, row] = _with_excess(float(excess[row]), *columns[PEAKS:, row].tolist())
    for row in np.flatnonzero((after == FIRST) & ~above).tolist():
        columns[THRESHOLD:, row] = _begin([*rings[row, 1 - FIRST :].tolist(), float(surprises[row])])
    numbers[...] = columns.T
    return found


def _score_row(numbers: Floats, ring: Ring, count: float, surprise: float) -> float:
    """Returns the anomaly of one row's surprise, as `score_surprise` does; its numbers are updated in place."""
    values = numbers.tolist()
    found = score_surprise(values, 0, int(count), ring.tobytes(), len(EMPTY), float(surprise))
    numbers[:] = values
    return found


def numbers_of_ring(ring: bytes, count: int) -> list[float]:
    """Returns the numbers after the surprises of a ring alone, of a session that returned their rank."""
    numbers, start = first_numbers(), RING_SIZE - min(count, RING_SIZE)
    surprises = np.frombuffer(ring, np.float32)[start:]
    data = EMPTY + surprises.tobytes()
    for index, surprise in enumerate(surprises.tolist()):
        score_surprise(numbers, 0, index, data, len(EMPTY) + index * surprises.itemsize, surprise)
    numbers[KIND] = RANK_KIND
    return numbers


def _of_rank(numbers: list[float], at: int, count: int, reaching: int, surprise: float) -> float:
    """Returns the anomaly by the rank; by the tail for `tail`, if the surprise is above the threshold."""
    probability = (1 + reaching) / (min(count, RING_SIZE) + 1)
    if numbers[at] == TAIL_KIND:
        share, (peaks, mean, square) = numbers[at + SHARE], numbers[at + PEAKS : at + WIDTH]
        excess = surprise - numbers[at + THRESHOLD]
        if excess > 0:
            probability = max(share * _survival(*_fit(peaks, mean, square), excess), _LEAST_PROBABILITY)
        else:
            probability = max(probability, share)
    return 1 - probability


def _begin(first: Sequence[float]) -> list[float]:
    """Returns the threshold, the share and the moments of the first surprises."""
    rising = sorted(first)
    threshold, peaks = rising[-FIRST // 10 - 1], FIRST // 10
    mean = square = 0.0
    for value in rising[-peaks:]:
        mean += (value - threshold) / peaks
        square += (value - threshold) * (value - threshold) / peaks
    return [threshold, peaks / FIRST, float(peaks), mean, square]


def _with_excess(excess: float, peaks: float, mean: float, square: float) -> tuple[float, float, float]:
    """Returns the number of excesses and the means after a further excess."""
    excess = min(excess, _excess(*_fit(peaks, mean, square), _BOUND))
    peaks += 1
    weight = 1 / min(peaks, _PEAKS)
    return peaks, mean + weight * (excess - mean), square + weight * (excess * excess - square)


def _fit(peaks: float, mean: float, square: float) -> tuple[float, float]:
    """Returns shape and scale of a generalised Pareto distribution with these moments: (1 - mean^2 / variance) / 2 and
    mean (1 - shape).

    A shape below 0 counts as 0. 1 / peaks is added to it, which makes the distribution of the next excess of
    exponential ones exact, although their mean is that of so few: (1 + x / (k mean))^-k.
    """
    variance = square - mean * mean
    shape = max((1 - mean * mean / variance) / 2, 0.0) if variance > 0 else 0.0
    shape = min(shape, _MOST_SHAPE)
    return shape + 1 / min(peaks, _PEAKS), mean * (1 - shape)


def _survival(shape: float, scale: float, excess: float) -> float:
    """Returns (1 + shape x / scale)^(-1 / shape)."""
    return math.exp(-math.log1p(shape * excess / scale) / shape) if scale > 0 else 0.0


def _excess(shape: float, scale: float, probability: float) -> float:
    """Returns the excess with this probability: the inverse of `_survival`; infinity while there is no scale."""
    return scale / shape * (probability**-shape - 1) if scale > 0 else math.inf
