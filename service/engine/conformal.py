"""Ranks among what came last: how unusual an input is, and intervals that hold as many inputs as they are to.

Owns two formulas over rings, each the last HELD scores of a session, the newest at the end. Knows nothing of models.
"""

import math
from collections.abc import Sequence
from struct import Struct

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ring = NDArray[np.float32]

HELD = 256
LEAST = 19
"""Below so many scores no input could have an anomaly of 0.95."""
GAMMA = 0.005
"""How fast intervals follow: the step size of Gibbs and Candes 2021, section 2.2."""
EMPTY = np.full(HELD, -np.inf, np.float32).tobytes()
"""A ring of surprises before the first."""
_ROUNDING = 1e-9
_FLOAT = Struct("<f")


def anomalies(ring: bytes, held: int, scores: Sequence[float]) -> tuple[list[float], bytes]:
    """How unusual each score is beside those before it, and the ring with them; `held` are how many came so far.

    One minus the conformal p-value, 1 - (1 + #{ring >= score}) / (n + 1) with n scores in the ring (Laxhammar and
    Falkman 2010, section 3): where scores are exchangeable, at least 1 - e in no more than a share e of them. NaN below
    LEAST. Scores are float32, and so is the ring, -inf where nothing is.
    """
    if len(scores) == 1:  # nearly always: as below, for less
        reached = [int(np.count_nonzero(np.frombuffer(ring, np.float32) >= scores[0]))]
        line = ring + _FLOAT.pack(scores[0])
    else:
        new = np.array(scores, np.float32)
        line = ring + new.tobytes()
        before = np.ndarray((len(new), HELD), np.float32, line, 0, (_FLOAT.size, _FLOAT.size))
        reached = np.add.reduce(before >= new[:, np.newaxis], axis=1).tolist()
    told = []
    for n, reaching in enumerate(reached, held):
        told.append(1 - (1 + reaching) / (min(n, HELD) + 1) if n >= LEAST else math.nan)
    return told, line[-len(EMPTY) :]


def anomalies_of_rows(rings: Ring, held: Floats, scores: Ring) -> Floats:
    """(rows,) the same of one score a row. rings: (rows, HELD), written to; held, scores: (rows,)."""
    reached = np.add.reduce(rings >= scores[:, np.newaxis], axis=1)
    there = np.minimum(held, HELD)
    told = np.where(there < LEAST, math.nan, 1 - (1 + reached) / (there + 1))
    rings[:, :-1] = rings[:, 1:]
    rings[:, -1] = scores
    return told


class Corrected:
    """Adaptive conformal inference: intervals whose level follows how often they missed (Gibbs and Candes 2021).

    All are (rows, targets), and but for `wanted`, 1 - alpha, written to: `level` is 1 - alpha_t, `entered` how many
    scores there were, `covered` how many of them lay in the interval that was told before, and `rings` (rows, targets,
    HELD) the last of them, +inf where nothing is.
    """

    def __init__(self, wanted: Floats, level: Floats, entered: Floats, covered: Floats, rings: Ring) -> None:
        self._wanted, self._level, self._entered, self._covered = wanted, level, entered, covered
        self._rings = rings

    def widths(self, scores: Floats) -> Floats:
        """(rows, steps, targets) how far the next interval reaches from the centre, in scales, after each of `scores`.

        scores: (rows, steps, targets) errors in scales, not negative; NaN: nothing is scored. An interval is infinite
        where as many scores are not there yet, or 1 - alpha_t asks for more than there can be.
        """
        widths = np.empty(scores.shape)
        for step in range(scores.shape[1]):
            self._take(scores[:, step].astype(np.float32))
            widths[:, step] = self._width()
        return widths

    def _take(self, scores: Ring) -> None:
        """alpha_{t+1} = alpha_t + gamma (alpha - err_t): their equation 2."""
        there = ~np.isnan(scores)
        below = np.add.reduce(self._rings < scores[..., np.newaxis], axis=2)
        missed = below >= self._rank()  # the score is above the one of that rank
        self._level += np.where(there, GAMMA * (missed - (1 - self._wanted)), 0.0)
        self._covered += there & ~missed
        self._entered += there
        self._rings[there] = np.concatenate((self._rings[there][:, 1:], scores[there][:, np.newaxis]), axis=1)

    def _rank(self) -> Floats:
        """Of the score that bounds the interval: ceil((n + 1)(1 - alpha_t)) of n (Lei et al. 2018, section 2)."""
        return np.ceil((np.minimum(self._entered, HELD) + 1) * self._level - _ROUNDING)

    def _width(self) -> Floats:
        rank = self._rank().astype(np.intp)
        rising = np.sort(self._rings, axis=2)
        found = np.take_along_axis(rising, np.clip(rank - 1, 0, HELD - 1)[..., np.newaxis], axis=2)[..., 0]
        return np.where(rank > HELD, np.inf, np.where(rank < 1, 0.0, found))
