"""The layout of a session's running statistics in bytes, and the names of what is counted.

Owns these bytes: the nominal coverage of intervals (0: none), the sums, the last true values and a ring of surprises;
for a session with intervals also each target's level, its numbers of scores entered and covered, and its ring of
scores. Knows nothing of how they are counted.
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
from onward.model.scoring.conformal import EMPTY, RING_SIZE, UNFILLED

ALARM = 0.99
"""An anomaly of at least this counts as an alarm."""
ERROR, ANOMALY, LOW, HIGH = (RESERVED + name for name in ("error", "anomaly", "low", "high"))
SCORING_OUTPUTS = (ERROR, ANOMALY, LOW, HIGH)
"""The fields that scoring adds to a model's outputs, in this order; no output has such a name."""
OF_NUMBERS = ("predicted", "absolute_error", "naive_absolute_error", "inside")
OF_RANKS = ("predicted", "hits")
LAST = "last"
"""The last true value of each target."""
INPUTS, SURPRISE, ALARMS = 1, 2, 3
"""The positions of the sums over all targets among a row's numbers; position 0 is the nominal coverage."""
_OF_ALL = ("inputs", "surprise", "alarms")
_NOMINAL = Struct("<d")


class Sum(NamedTuple):
    """A sum over inputs, of a target or of all.

    Of all: the inputs with a surprise, their surprises, and the inputs with an anomaly of at least ALARM. Of a target:
    the inputs that had a prediction, its absolute errors, those of the naive prediction (the previous value), the
    inputs inside the model's own interval, or the hits of the likeliest category.
    """

    name: str
    target: str | None = None


class StatisticsLayout:
    """The layout of the statistics of one model's sessions. intervals: whether the sessions have adaptive intervals."""

    def __init__(self, model: StepModel, *, intervals: bool = False) -> None:
        self.head = head = model.manifest.head
        self.stored_prediction, self.stored_prediction_dtype = model.stored_prediction, model.stored_prediction_dtype
        predicts = set(head.outputs) <= set(head.last) and head.kind != "label"
        self.targets = head.targets if predicts else ()
        self.numbers = predicts and not head.ranks_categories
        """True if the targets are numbers, not categories."""
        self.intervals, self.central = intervals, CentralInterval(head)
        self.columns = [model.features.index(target) for target in self.targets]
        self.nullable = any(model.manifest.feature(name).nullable for name in self.targets)
        self.names = OF_NUMBERS if self.numbers else OF_RANKS
        self.sums = (*map(Sum, _OF_ALL), *(Sum(name, target) for name in self.names for target in self.targets))
        width, start = len(self.targets), 1 + len(_OF_ALL)
        self.positions: dict[str, slice] = {}
        """The positions of the targets' numbers in a row, by the name of their sum or LAST."""
        for name in (*self.names, *([LAST] if self.numbers else [])):
            self.positions[name] = slice(start, start + width)
            start += width
        self.row = Struct(f"<{start}d")
        ring, width = len(EMPTY) if head.surprise else 0, width if self.numbers else 0
        self.ring = slice(self.row.size, self.row.size + ring)
        """The bytes of the ring of surprises."""
        self.interval_states = Struct(f"<{3 * width}d")
        """All targets' levels and numbers of scores entered and covered, after `ring`; with intervals only."""
        start, ring = self.ring.stop + self.interval_states.size, len(UNFILLED)
        self.rings = [slice(start + target * ring, start + (target + 1) * ring) for target in range(width)]
        """The bytes of each target's ring of scores; with intervals only."""
        self.size = (self.rings[-1].stop if self.rings else start) if intervals else self.ring.stop
        numbers: list[Any] = [("numbers", np.float64, (self.row.size // 8,))]
        self.dtype = np.dtype(numbers + ([("ring", np.float32, (RING_SIZE,))] if head.surprise else []))
        """The statistics of a session without intervals as a row of a structured array."""
        fields: list[Any] = [(ERROR, np.float32, (width,))] if self.numbers else []
        fields += [(ANOMALY, np.float32)] if head.surprise else []
        fields += [(LOW, np.float32, (width,)), (HIGH, np.float32, (width,))] if intervals else []
        self.output_dtype = np.dtype([*model.output_dtype.descr, *fields])
        self.scores = Struct(f"<{(self.output_dtype.itemsize - model.output_dtype.itemsize) // 4}f")
        """The fields that an answer has after the outputs."""

    def first(self, nominal: float = 0.0) -> bytes:
        """Returns the statistics of a new session."""
        last = [math.nan] * (len(self.targets) if self.numbers else 0)
        statistics = self.row.pack(nominal, *[0.0] * len(self.sums), *last) + EMPTY[: self.ring.stop - self.ring.start]
        if not self.intervals:
            return statistics
        width = len(self.targets)
        return statistics + self.interval_states.pack(*[nominal] * width, *[0.0] * 2 * width) + UNFILLED * width

    def summed(self, statistics: Sequence[bytes]) -> NDArray[np.float64]:
        """Returns the sums (rows, sums) of rows with or without intervals."""
        end = _NOMINAL.size * (1 + len(self.sums))
        sums = b"".join([row[_NOMINAL.size : end] for row in statistics])
        return np.frombuffer(sums, np.float64).reshape(len(statistics), -1)


def nominal_coverage(statistics: bytes) -> float:
    """Returns the nominal coverage of a session's intervals, for any model; 0 if it has none."""
    nominal: float = _NOMINAL.unpack_from(statistics)[0] if statistics else 0.0
    return nominal
