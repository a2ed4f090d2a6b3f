"""Rings, each the last RING_SIZE scores of a session, oldest first; and prediction intervals by the rank in a ring.

Owns the formula of conformal intervals, and the count behind conformal p-values. Knows nothing of models.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ring = NDArray[np.float32]

RING_SIZE = 256
BLOCK = 100
"""The number of inputs of a block. Recent statistics cover the last block that ended and the one since then, which are
the last BLOCK to 2 BLOCK - 1 inputs, or all of a shorter session.
"""
GAMMA = 0.005
"""The step size with which intervals adapt: Gibbs and Candes 2021, section 2.2."""
EMPTY = np.full(RING_SIZE, -np.inf, np.float32).tobytes()
"""A ring of surprises before the first one."""
UNFILLED = np.full(RING_SIZE, np.inf, np.float32).tobytes()
"""A ring of the scores of intervals before the first one."""
_ROUNDING = 1e-9
_FLOAT = Struct("<f")


def count_reaching(data: bytes, end: int, score: float) -> int:
    """Returns how many entries of a ring are at least as high as a score. data: has the ring at its `end`."""
    return int(np.count_nonzero(np.frombuffer(data, np.float32, RING_SIZE, end - len(EMPTY)) >= score))


def count_reaching_of_rows(rings: Ring, scores: Floats) -> NDArray[np.int64]:
    """Returns what `count_reaching` does for one score per row. rings: (rows, RING_SIZE). scores: (rows,)."""
    return _count_true(rings >= scores.astype(np.float32)[:, np.newaxis])


def _count_true(rows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the number of true entries in each row of RING_SIZE entries.

    Eight entries are added at once, as the bytes of a word, which costs a quarter of numpy's reduction of booleans: no
    byte of the sum of 32 words exceeds 32.
    """
    words = np.add.reduce(rows.view(np.uint64), axis=1)
    counts: NDArray[np.int64] = np.add.reduce(words.view(np.uint8).reshape(len(rows), 8), axis=1, dtype=np.int64)
    return counts


class IntervalState(NamedTuple):
    """The state of one target's adaptive intervals.

    level: 1 - alpha_t. entered: the number of scores. covered: how many of the counted scores lay within the interval
    that was predicted for them. The others are both numbers at the start of the last block that ended, and at the start
    of the present one.
    """

    level: float
    entered: float = 0.0
    covered: float = 0.0
    recent_entered: float = 0.0
    recent_covered: float = 0.0
    block_entered: float = 0.0
    block_covered: float = 0.0


def min_scores_for_interval(nominal: float) -> int:
    """Returns how many scores precede the first finite interval: 1 / (1 - nominal coverage), less one.

    These scores neither adapt the level nor count as covered, as an infinite interval covers every score.
    """
    return math.ceil((nominal - _ROUNDING) / (1 - nominal))


def correct_interval(
    nominal: float, state: IntervalState, ring: bytes, scores: Sequence[float]
) -> tuple[list[float], IntervalState, bytes]:
    """Returns the half width of the next interval after each score, in scales, and the state and the ring after all.

    Adaptive conformal inference: the level of the intervals follows how often they missed (Gibbs and Candes 2021).
    scores: errors in scales, float32, not negative; NaN if the input is missing. ring: the last scores; empty entries
    are +inf. An interval is infinite if there are too few scores yet, or if 1 - alpha_t needs more than the ring has.
    """
    level, entered, covered, recent_entered, recent_covered, block_entered, block_covered = state
    widths, first, alpha = [], min_scores_for_interval(nominal), 1 - nominal
    rising: Any = np.sort(np.frombuffer(ring, np.float32))
    if len(scores) > 1:  # for one score, a list costs more than it saves
        rising = rising.tolist()
    for score in scores:
        if not math.isnan(score):
            position, oldest = bisect_left(rising, score), bisect_left(rising, _FLOAT.unpack_from(ring)[0])
            if entered >= first:
                missed = position >= _rank(level, entered)  # it exceeds the score of that rank
                level += GAMMA * (missed - alpha)  # alpha_{t+1} = alpha_t + gamma (alpha - err_t): their equation 2
                covered += not missed
            entered += 1
            if entered - block_entered == BLOCK:
                recent_entered, recent_covered, block_entered, block_covered = (
                    block_entered, block_covered, entered, covered,
                )  # fmt: skip
            if oldest < position:
                position -= 1
                rising[oldest:position] = rising[oldest + 1 : position + 1]
            else:
                rising[position + 1 : oldest + 1] = rising[position:oldest]
            rising[position] = score
            ring = ring[_FLOAT.size :] + _FLOAT.pack(score)
        rank = _rank(level, entered)
        widths.append(math.inf if rank > RING_SIZE else float(rising[rank - 1]) if rank > 0 else 0.0)
    state = IntervalState(level, entered, covered, recent_entered, recent_covered, block_entered, block_covered)
    return widths, state, ring


def _rank(level: float, entered: float) -> int:
    """Returns the rank of the score that bounds the interval: ceil((n + 1)(1 - alpha_t)) (Lei et al. 2018, s. 2)."""
    return math.ceil((min(entered, RING_SIZE) + 1) * level - _ROUNDING)
