"""The layout of a session's running statistics in bytes, and the names of what is counted.

Owns these bytes: the nominal coverage of intervals (0: none), the sums, the last true values, the numbers of anomaly
scores and a ring of surprises; for a session with intervals also each target's level, its numbers of scores entered and
covered, and its ring of scores. Knows nothing of how they are counted.

The sums of a target are those of its present block of inputs, of the block before it, and of all blocks that ended. So
a step adds to one of them alone, the whole session's sums are those of the ended blocks and the present one, and the
recent sums those of the last two blocks: they forget an absurd value, which a difference of the whole session's sums
would not.
"""

import math
from collections.abc import Sequence
from itertools import chain
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import RESERVED
from onward.model.runner import StepModel
from onward.model.scoring.anomaly import KINDS, WIDTH, AnomalyKind, first_numbers, numbers_of_ring
from onward.model.scoring.central_interval import CentralInterval
from onward.model.scoring.conformal import EMPTY, RING_SIZE, UNFILLED, IntervalState

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
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class Sum(NamedTuple):
    """A sum over inputs, of a target or of all.

    Of all: the inputs with a surprise, their surprises, and the inputs with an anomaly of at least ALARM. Of a target:
    the inputs that had a prediction, its absolute errors, those of the naive prediction (the previous value), the
    inputs inside the model's own interval, or the hits of the likeliest category. A category that is not listed is
    never a hit.
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
        self.categories = len(model.manifest.categories)
        """The number of listed categories. The index after them stands for all others, and is never a hit."""
        self.names = OF_NUMBERS if self.numbers else OF_RANKS
        self.sums = (*map(Sum, _OF_ALL), *(Sum(name, target) for name in self.names for target in self.targets))
        width, start = len(self.targets), 1 + len(_OF_ALL)
        self.positions: dict[str, slice] = {}
        """The positions of the targets' numbers in a row, by LAST or the name of their sum over the present block."""
        for name in (*self.names, *([LAST] if self.numbers else [])):
            self.positions[name] = slice(start, start + width)
            start += width
        first, size = 1 + len(_OF_ALL), len(self.names) * width
        self.block, self.ended = slice(first, first + size), slice(start, start + size)
        self.previous = slice(start + size, start + 2 * size)
        """The positions of the sums over the present block, over all blocks that ended, and over the last of these."""
        self.anomaly = slice(self.previous.stop, self.previous.stop + (WIDTH if head.surprise else 0))
        """The positions of the numbers of anomaly scores."""
        self.row = Struct(f"<{self.anomaly.stop}d")
        self._row_without_anomaly, self._row_without_recent = Struct(f"<{self.previous.stop}d"), Struct(f"<{start}d")
        ring, width = len(EMPTY) if head.surprise else 0, width if self.numbers else 0
        self.ring = slice(self.row.size, self.row.size + ring)
        """The bytes of the ring of surprises."""
        self.interval_states = Struct(f"<{len(IntervalState._fields) * width}d")
        """All targets' levels, their numbers of scores entered, and so on, after `ring`; with intervals only."""
        start, ring = self.ring.stop + self.interval_states.size, len(UNFILLED)
        self.rings = [slice(start + target * ring, start + (target + 1) * ring) for target in range(width)]
        """The bytes of each target's ring of scores; with intervals only."""
        self.size = (self.rings[-1].stop if self.rings else start) if intervals else self.ring.stop
        self._earlier_interval_states = Struct(f"<{3 * width}d")
        shorter = self.interval_states.size - self._earlier_interval_states.size if intervals else 0
        self._size_without_anomaly = self.size - self.row.size + self._row_without_anomaly.size
        without_recent = self.size - self.row.size + self._row_without_recent.size - shorter
        self.earlier_sizes = {self._size_without_anomaly, without_recent} - {self.size}
        """The sizes in versions without the numbers of anomaly scores, and without recent sums too."""
        numbers: list[Any] = [("numbers", np.float64, (self.row.size // 8,))]
        self.dtype = np.dtype(numbers + ([("ring", np.float32, (RING_SIZE,))] if head.surprise else []))
        """The statistics of a session without intervals as a row of a structured array."""
        kind = model.input_dtype
        self.output_dtype = np.dtype([*model.output_dtype.descr, *self._score_fields(kind, width)])
        size = self.output_dtype.itemsize - model.output_dtype.itemsize
        self.scores = Struct(f"<{size // kind.itemsize}{kind.char}")
        """The fields that an answer has after the outputs."""

    def _score_fields(self, kind: np.dtype[Any], targets: int) -> list[Any]:
        """Returns the fields of an input's scores. kind: the type of their numbers."""
        fields: list[Any] = [(ERROR, kind, (targets,))] if self.numbers else []
        fields += [(ANOMALY, kind)] if self.head.surprise else []
        return fields + ([(LOW, kind, (targets,)), (HIGH, kind, (targets,))] if self.intervals else [])

    def pack_scores(self, scores: Sequence[float]) -> bytes:
        """Returns the bytes of a step's scores; those beyond single precision become infinite in it."""
        try:
            return self.scores.pack(*scores)
        except OverflowError:
            return self.scores.pack(*map(_as_float32, scores))

    def first(self, nominal: float = 0.0, kind: AnomalyKind = KINDS[0]) -> bytes:
        """Returns the statistics of a new session."""
        last, ended = [math.nan] * (len(self.targets) if self.numbers else 0), [0.0] * (len(self.sums) - len(_OF_ALL))
        anomaly = first_numbers(KINDS.index(kind)) if self.head.surprise else []
        row = self.row.pack(nominal, *[0.0] * len(self.sums), *last, *ended, *ended, *anomaly)
        statistics = row + EMPTY[: self.ring.stop - self.ring.start]
        if not self.intervals:
            return statistics
        states = [IntervalState(nominal)] * len(self.targets)
        return statistics + self.pack_interval_states(states) + UNFILLED * len(self.targets)

    def from_earlier(self, statistics: bytes) -> bytes:
        """Returns the statistics for those of one of `earlier_sizes`: the anomaly goes on as the rank.

        The numbers of anomaly scores are those after the surprises of the ring. Without recent sums, the recent window
        is empty.
        """
        if len(statistics) < self._size_without_anomaly:
            statistics = self._with_recent(statistics)
        start = self._row_without_anomaly.size
        ring = statistics[start : start + len(EMPTY)] if self.head.surprise else b""
        count = int(self._row_without_anomaly.unpack_from(statistics)[INPUTS])
        anomaly = numbers_of_ring(ring, count) if ring else []
        return statistics[:start] + Struct(f"<{len(anomaly)}d").pack(*anomaly) + statistics[start:]

    def _with_recent(self, statistics: bytes) -> bytes:
        """Returns the statistics of a version without recent sums as those of the version after it."""
        numbers = self._row_without_recent.unpack_from(statistics)
        sums, zeros = numbers[self.block], [0.0] * (self.block.stop - self.block.start)
        row = self._row_without_anomaly.pack(
            *numbers[: self.block.start], *zeros, *numbers[self.block.stop :], *sums, *zeros
        )
        ring_end = self._row_without_recent.size + self.ring.stop - self.ring.start
        statistics, rest = row + statistics[self._row_without_recent.size : ring_end], statistics[ring_end:]
        if not self.intervals:
            return statistics
        columns = np.reshape(self._earlier_interval_states.unpack_from(rest), (3, -1)).tolist()
        states = [IntervalState(*state, *state[1:], *state[1:]) for state in zip(*columns, strict=True)]
        return statistics + self.pack_interval_states(states) + rest[self._earlier_interval_states.size :]

    def anomaly_kind(self, statistics: bytes) -> AnomalyKind | None:
        """Returns what a session's anomaly is; None if the model has no surprise."""
        if not self.head.surprise:
            return None
        return KINDS[int(self.row.unpack_from(statistics)[self.anomaly.start])]

    def pack_interval_states(self, states: Sequence[IntervalState]) -> bytes:
        """Returns the bytes of each target's state."""
        return self.interval_states.pack(*chain(*zip(*states, strict=True)))

    def end_block(self, numbers: list[float], target: int) -> None:
        """Ends the block of a target, by its position, in the numbers of a row."""
        for position in range(self.block.start + target, self.block.stop, len(self.targets)):
            of_block, from_block = numbers[position], position - self.block.start
            numbers[self.ended.start + from_block] += of_block
            numbers[self.previous.start + from_block] = of_block
            numbers[position] = 0.0

    def end_blocks(self, numbers: NDArray[np.float64], rows: NDArray[np.intp]) -> None:
        """Ends the blocks of all targets of some of the rows (rows, numbers), with the same bits."""
        of_block = numbers[rows, self.block]
        numbers[rows, self.ended] += of_block
        numbers[rows, self.previous] = of_block
        numbers[rows, self.block] = 0.0

    def summed(self, statistics: Sequence[bytes]) -> NDArray[np.float64]:
        """Returns the sums (rows, sums) of whole sessions, with or without intervals."""
        size = self.row.size
        data = bytearray().join([row[:size] for row in statistics])
        numbers = np.ndarray((len(statistics), size // 8), np.float64, data)
        numbers[:, self.block] += numbers[:, self.ended]
        return numbers[:, 1 : self.block.stop]


def nominal_coverage(statistics: bytes) -> float:
    """Returns the nominal coverage of a session's intervals, for any model; 0 if it has none."""
    nominal: float = _NOMINAL.unpack_from(statistics)[0] if statistics else 0.0
    return nominal


def _as_float32(number: float) -> float:
    """Returns the number, or infinity with its sign if it is beyond single precision."""
    return math.copysign(math.inf, number) if abs(number) > _MAX_FLOAT32 else number
