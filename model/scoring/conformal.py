"""Ranks among what came last: how unusual an input is, and intervals that hold as many inputs as they are to.

Owns two formulas over rings, each the last RING_SIZE scores of a session, oldest first. Knows nothing of models.
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
MIN_SCORES = 19
"""Below so many scores no input could have an anomaly of 0.95."""
GAMMA = 0.005
"""How fast intervals follow: the step size of Gibbs and Candes 2021, section 2.2."""
EMPTY = np.full(RING_SIZE, -np.inf, np.float32).tobytes()
"""A ring of surprises before the first."""
UNFILLED = np.full(RING_SIZE, np.inf, np.float32).tobytes()
"""One of the scores of intervals."""
_ROUNDING = 1e-9
_FLOAT = Struct("<f")


def anomalies(ring: bytes, held: int, scores: Sequence[float]) -> tuple[list[float], bytes]:
    """How unusual each score is beside those before it, and the ring with them; `held` are how many came so far.

    One minus the conformal p-value, 1 - (1 + #{ring >= score}) / (n + 1) with n scores in the ring (Laxhammar and
    Falkman 2010, section 3): where scores are exchangeable, at least 1 - e in no more than a share e of them. NaN below
    MIN_SCORES. Scores are float32, and so is the ring, -inf where nothing is.
    """
    if len(scores) == 1:  # nearly always: as below, for less
        reached = [int(np.count_nonzero(np.frombuffer(ring, np.float32) >= scores[0]))]
        line = ring + _FLOAT.pack(scores[0])
    else:
        new = np.array(scores, np.float32)
        line = ring + new.tobytes()
        before = np.ndarray((len(new), RING_SIZE), np.float32, line, 0, (_FLOAT.size, _FLOAT.size))
        reached = np.add.reduce(before >= new[:, np.newaxis], axis=1).tolist()
    told = []
    for n, reaching in enumerate(reached, held):
        told.append(1 - (1 + reaching) / (min(n, RING_SIZE) + 1) if n >= MIN_SCORES else math.nan)
    return told, line[-len(EMPTY) :]


def anomalies_of_rows(rings: Ring, held: Floats, scores: Ring) -> Floats:
    """(rows,) the same of one score a row. rings: (rows, RING_SIZE), written to; held, scores: (rows,)."""
    reached = np.add.reduce(rings >= scores[:, np.newaxis], axis=1)
    there = np.minimum(held, RING_SIZE)
    told = np.where(there < MIN_SCORES, math.nan, 1 - (1 + reached) / (there + 1))
    rings[:, :-1] = rings[:, 1:]
    rings[:, -1] = scores
    return told


class IntervalState(NamedTuple):
    """One target's corrected intervals so far: `level` is 1 - alpha_t, `entered` how many scores there were, and
    `covered` how many of those that count lay in the interval that was told before.
    """

    level: float
    entered: float
    covered: float


def min_scores_for_interval(wanted: float) -> int:
    """How many scores there are before an interval with an end: as many as 1 / (1 - wanted), less one.

    They neither move the level nor count as covered: that no score lies beyond no end says nothing.
    """
    return math.ceil((wanted - _ROUNDING) / (1 - wanted))


def correct_interval(
    wanted: float, course: IntervalState, ring: bytes, scores: Sequence[float]
) -> tuple[list[float], IntervalState, bytes]:
    """How far the next interval reaches from the centre after each of `scores`, in scales; and what is kept then.

    Adaptive conformal inference: intervals whose level follows how often they missed (Gibbs and Candes 2021).
    scores: errors in scales, float32, not negative; NaN: nothing is scored. ring: the last of them, +inf where nothing
    is. An interval is infinite where as many scores are not there yet, or 1 - alpha_t asks for more than there can be.
    """
    level, entered, covered = course
    widths, first, alpha = [], min_scores_for_interval(wanted), 1 - wanted
    rising: Any = np.sort(np.frombuffer(ring, np.float32))
    if len(scores) > 1:  # for one, a list would cost more to make than it spares
        rising = rising.tolist()
    for score in scores:
        if not math.isnan(score):
            place, oldest = bisect_left(rising, score), bisect_left(rising, _FLOAT.unpack_from(ring)[0])
            if entered >= first:
                missed = place >= _rank(level, entered)  # it is above the one of that rank
                level += GAMMA * (missed - alpha)  # alpha_{t+1} = alpha_t + gamma (alpha - err_t): their equation 2
                covered += not missed
            entered += 1
            if oldest < place:
                place -= 1
                rising[oldest:place] = rising[oldest + 1 : place + 1]
            else:
                rising[place + 1 : oldest + 1] = rising[place:oldest]
            rising[place] = score
            ring = ring[_FLOAT.size :] + _FLOAT.pack(score)
        rank = _rank(level, entered)
        widths.append(math.inf if rank > RING_SIZE else float(rising[rank - 1]) if rank > 0 else 0.0)
    return widths, IntervalState(level, entered, covered), ring


def _rank(level: float, entered: float) -> int:
    """Of the score that bounds the interval: ceil((n + 1)(1 - alpha_t)) of n (Lei et al. 2018, section 2)."""
    return math.ceil((min(entered, RING_SIZE) + 1) * level - _ROUNDING)
