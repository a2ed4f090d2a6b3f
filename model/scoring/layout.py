"""What is counted of one model's sessions, and where it lies in the bytes that a session keeps of it, by name.

Owns these bytes: the share that intervals are to hold, 0 for none; the sums; the last true values; a ring of surprises;
of a session with intervals also the level of each target, how many scores entered and how many were covered, and a
ring of scores for each. Knows nothing of how they are counted.
"""

import math
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import RESERVED
from onward.model.runner import StepModel
from onward.model.scoring.central_interval import CentralInterval
from onward.model.scoring.conformal import EMPTY, UNFILLED

ALARM = 0.99
"""An anomaly of so much counts as one."""
ERROR, ANOMALY, LOW, HIGH = (RESERVED + name for name in ("error", "anomaly", "low", "high"))
SCORING_OUTPUTS = (ERROR, ANOMALY, LOW, HIGH)
"""What an answer may have beside the model's outputs, in this order; no output has such a name."""
OF_NUMBERS = ("predicted", "absolute_error", "naive_absolute_error", "inside")
OF_RANKS = ("predicted", "hits")
LAST = "last"
"""The last true value of each target."""
INPUTS, SURPRISE, ALARMS = 1, 2, 3
"""Where the sums over all targets lie among a row's numbers; before them is the share wanted."""
_OF_ALL = ("inputs", "surprise", "alarms")
_WANTED = Struct("<d")


class Sum(NamedTuple):
    """What is summed over inputs: those that have a surprise, their surprise, those with an anomaly of ALARM; and of a
    target: those that had a prediction, its errors, the errors of the value before, those inside the model's own
    interval, or hits of the likeliest category.
    """

    name: str
    target: str | None = None


class StatisticsLayout:
    """Of one model; with `intervals`, of the sessions that asked for them."""

    def __init__(self, model: StepModel, *, intervals: bool = False) -> None:
        self.head = head = model.manifest.head
        predicts = set(head.outputs) <= set(head.last) and head.kind != "label"
        self.targets = head.targets if predicts else ()
        self.numbers = predicts and not head.ranks_categories
        """Whether what is predicted are numbers, not categories."""
        self.intervals, self.central = intervals, CentralInterval(head)
        self.columns = [model.features.index(target) for target in self.targets]
        self.nullable = any(model.manifest.feature(name).nullable for name in self.targets)
        self.names = OF_NUMBERS if self.numbers else OF_RANKS
        self.sums = (*map(Sum, _OF_ALL), *(Sum(name, target) for name in self.names for target in self.targets))
        wide, start = len(self.targets), 1 + len(_OF_ALL)
        self.places: dict[str, slice] = {}
        """Where the numbers of targets lie among a row's, by the name of their sum, and LAST."""
        for name in (*self.names, *([LAST] if self.numbers else [])):
            self.places[name] = slice(start, start + wide)
            start += wide
        self.row = Struct(f"<{start}d")
        ring, wide = len(EMPTY) if head.surprise else 0, wide if self.numbers else 0
        self.ring = slice(self.row.size, self.row.size + ring)
        """Of the bytes."""
        self.course = Struct(f"<{3 * wide}d")
        """Levels, entered and covered, at the end of `ring`, of a session with intervals."""
        rings = self.ring.stop + self.course.size
        self.rings = [slice(at, at + len(UNFILLED)) for at in range(rings, rings + wide * len(UNFILLED), len(UNFILLED))]
        """Of the bytes, those of scores, of a session with intervals."""
        self.size = (self.rings[-1].stop if self.rings else rings) if intervals else self.ring.stop
        told: list[Any] = [(ERROR, np.float32, (wide,))] if self.numbers else []
        told += [(ANOMALY, np.float32)] if head.surprise else []
        told += [(LOW, np.float32, (wide,)), (HIGH, np.float32, (wide,))] if intervals else []
        self.answer = np.dtype([*model.output_dtype.descr, *told])
        self.told = Struct(f"<{(self.answer.itemsize - model.output_dtype.itemsize) // 4}f")
        """What an answer has beside outputs."""

    def first(self, wanted: float = 0.0) -> bytes:
        """Of a session that has seen nothing."""
        last = [math.nan] * (len(self.targets) if self.numbers else 0)
        kept = self.row.pack(wanted, *[0.0] * len(self.sums), *last) + EMPTY[: self.ring.stop - self.ring.start]
        if not self.intervals:
            return kept
        wide = len(self.targets)
        return kept + self.course.pack(*[wanted] * wide, *[0.0] * 2 * wide) + UNFILLED * wide

    def summed(self, kept: Sequence[bytes]) -> NDArray[np.float64]:
        """(rows, sums) of what rows keep, with intervals or without."""
        end = _WANTED.size * (1 + len(self.sums))
        return np.frombuffer(b"".join([one[_WANTED.size : end] for one in kept]), np.float64).reshape(len(kept), -1)


def nominal_coverage(kept: bytes) -> float:
    """The share that corrected intervals are to hold, whatever the model; 0: there are none."""
    share: float = _WANTED.unpack_from(kept)[0] if kept else 0.0
    return share
