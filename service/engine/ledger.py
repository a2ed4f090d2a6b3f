"""What is counted of a session's predictions, and what the answer to an input says of the one made for it.

Owns the bytes that a record keeps for it. Nothing here changes a prediction, and nothing counted depends on how inputs
are cut into calls, or on the rows beside them: sums are taken one step after another. An input is scored by the
prediction made before it: the last one in the state, and within a call those before it.

A few rows are counted number by number, as numpy's calls would cost more; many of one step each, as nearly all batches
of a busy server are, together. Both give the same bits.
"""

import math
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.manifest import RANKED
from model.runner import Outputs, StepModel
from model.state import State
from service.engine.central import Central, Named
from service.engine.conformal import EMPTY, HELD, Course, anomalies, anomalies_of_rows, corrected, least

ALARM = 0.99
"""An anomaly of so much counts as one."""
ERROR, ANOMALY, LOW, HIGH = "error", "anomaly", "low", "high"
"""What an answer has beside the model's outputs."""

TOGETHER = 4
"""From so many rows on numpy is quicker."""

_OF_ALL = ("inputs", "surprise", "alarms")
_OF_NUMBERS = ("predicted", "absolute_error", "naive_absolute_error", "inside")
_OF_RANKS = ("predicted", "hits")
WANTED = Struct("<d")
_FIRST = 1 + len(_OF_ALL)
"""Where the sums of targets begin among a row's numbers."""
_MOST = float(np.finfo(np.float32).max)

Rows = list[list[float]]
"""(steps, targets)"""


class Said(NamedTuple):
    """Before each of a row's inputs, (steps, targets): the centre, or likeliest place, and how far the interval reaches
    below it and above.
    """

    centre: Rows
    below: Rows
    above: Rows


class Sum(NamedTuple):
    """What is summed over inputs: those that have a surprise, their surprise, those with an anomaly of ALARM; and of a
    target: those that had a prediction, its errors, the errors of the value before, those inside the model's own
    interval, or hits of the likeliest category.
    """

    name: str
    target: str | None = None


class Target(NamedTuple):
    """Of a target so far. MASE is scaled by the error of the value before (Hyndman and Koehler 2006, section 3)."""

    inputs: int
    mae: float | None = None
    mase: float | None = None
    coverage: float | None = None
    level: float | None = None
    hits: float | None = None


class Interval(NamedTuple):
    """Corrected ones: the share that they are to hold, and by target the share that they held, and alpha_t."""

    wanted: float
    coverage: dict[str, float | None]
    alpha: dict[str, float]


class Ledger:
    """What sessions of one model keep; with `intervals`, those that asked for intervals.

    The bytes: the share wanted, 0 for none; the sums; the last true values; a ring of surprises; what intervals need.
    """

    def __init__(self, model: StepModel, *, intervals: bool = False) -> None:
        head = model.manifest.head
        predicts = set(head.outputs) <= set(head.last) and head.kind != "label"
        self.targets = head.targets if predicts else ()
        self.numbers = predicts and not head.ranks
        self._head, self._corrects, self._central = head, intervals, Central(head)
        self._alone = intervals or any(model.manifest.feature(name).nullable for name in self.targets)
        self._columns = [model.features.index(target) for target in self.targets]
        names = _OF_NUMBERS if self.numbers else _OF_RANKS
        self.sums = (*map(Sum, _OF_ALL), *(Sum(name, target) for name in names for target in self.targets))
        wide = len(self.targets) if self.numbers else 0
        self._numbers = Struct(f"<{1 + len(self.sums) + wide}d")
        self._ring = len(EMPTY) if head.surprise else 0
        self._more = np.dtype(
            [*((name, np.float64, (wide,)) for name in ("level", "entered", "covered")),
             ("scores", np.float32, (wide, HELD))] if intervals else []
        )  # fmt: skip
        self._course = Struct(f"<{3 * wide}d")  # levels, entered, covered
        self._start = self._numbers.size + self._ring  # of the last part
        self.size = self._start + self._more.itemsize
        told: list[Any] = [(ERROR, np.float32, (wide,))] if self.numbers else []
        told += [(ANOMALY, np.float32)] if head.surprise else []
        told += [(LOW, np.float32, (wide,)), (HIGH, np.float32, (wide,))] if intervals else []
        self.answer = np.dtype([*model.output_dtype.descr, *told])
        self._told = Struct(f"<{(self.answer.itemsize - model.output_dtype.itemsize) // 4}f")

    def first(self, wanted: float = 0.0) -> bytes:
        """Of a session that has seen nothing."""
        sums = [0.0] * len(self.sums)
        values = [math.nan] * (len(self.targets) if self.numbers else 0)
        more = np.zeros(1, self._more)
        if self._corrects:
            more["level"], more["scores"] = wanted, np.inf
        return self._numbers.pack(wanted, *sums, *values) + EMPTY[: self._ring] + more.tobytes()

    def score(
        self,
        kept: Sequence[bytes],
        inputs: NDArray[np.float32],
        sizes: Sequence[int],
        before: State,
        outputs: Outputs,
    ) -> tuple[Outputs, list[bytes]]:
        """Answers (rows, steps), and what the rows keep after them; beyond a row's size answers mean nothing.

        inputs: (rows, steps, features). before: (rows,) the states before them. outputs: (rows, steps) after each.
        """
        if outputs.shape[1] == 1 and len(kept) >= TOGETHER and not self._alone:
            return self._together(kept, inputs[:, 0], before, outputs)
        values, said = inputs.tolist(), self._said(before, outputs)
        surprises = outputs[self._head.surprise].tolist() if self._head.surprise else [[]] * len(kept)
        after, told = [], []
        for row, size in enumerate(sizes):
            one, scored = self._row(kept[row], values[row][:size], said[row], surprises[row][:size])
            after.append(one)
            told.append(scored)
        if self._corrects:
            after = self._correct(after, told, before, outputs)
        return self._answers(outputs, told), after

    def _together(
        self, kept: Sequence[bytes], inputs: NDArray[np.float32], before: State, outputs: Outputs
    ) -> tuple[Outputs, list[bytes]]:
        """The same bits for many rows of one step each. inputs: (rows, features)."""
        memory, rows, wide = bytearray().join(kept), len(kept), len(self.targets)
        numbers = np.ndarray((rows, self._numbers.size // 8), np.float64, memory, 0, (self.size, 8))
        gains = np.zeros((rows, 1 + len(self.sums)))
        of = [gains[:, start : start + wide] for start in range(_FIRST, gains.shape[1], wide or 1)]
        told = np.empty(outputs.shape, self.answer)
        _memory(told)[:, : outputs.itemsize] = _memory(outputs)
        if self.targets:
            said = {name: before[held] for name, held in self._head.last.items()}
            actual = inputs[:, self._columns].astype(np.float64)
            of[0][...] = 1
            if self.numbers:
                told[ERROR][:, 0] = error = actual - self._central.centre(said)
                last = numbers[:, gains.shape[1] :]
                of[1][...], of[2][...] = np.abs(error), np.fmax(np.abs(actual - last), 0.0)  # 0 for the first
                if self._central.level is not None:
                    below, above = self._central.reach(said)
                    of[3][...] = (error >= -below) & (error <= above)
                last[...] = actual
            else:
                of[1][...] = actual == said[RANKED[0]][:, :1]
        if self._head.surprise is not None:
            surprise = outputs[self._head.surprise][:, 0]
            rings = np.ndarray((rows, HELD), np.float32, memory, self._numbers.size, (self.size, 4))
            found = anomalies_of_rows(rings, numbers[:, 1], surprise)
            told[ANOMALY][:, 0] = found
            gains[:, 1], gains[:, 2], gains[:, 3] = 1, surprise, found >= ALARM
        numbers[:, : gains.shape[1]] += gains
        data = bytes(memory)
        return told, [data[start : start + self.size] for start in range(0, len(data), self.size)]

    def _said(self, before: State, outputs: Outputs) -> list[Said]:
        if not self.targets:
            return [Said([], [], [])] * len(outputs)
        last = {name: before[held] for name, held in self._head.last.items()}
        first = [[[numbers] for numbers in part] for part in self._spoken(last)]
        if outputs.shape[1] > 1:
            for part, more in zip(first, self._spoken(outputs), strict=True):
                for row, later in zip(part, more, strict=True):
                    row.extend(later[:-1])
        return list(map(Said, *first))

    def _spoken(self, said: Named | Outputs) -> Sequence[Any]:
        """Centres and reaches, nested as the outputs are."""
        if not self.numbers:
            return [said[RANKED[0]][..., :1].tolist()] * 3
        centre = self._central.centre(said)
        reach = (centre, centre) if self._central.level is None else self._central.reach(said)
        return [part.tolist() for part in (centre, *reach)]

    def _row(self, kept: bytes, inputs: Rows, said: Said, surprises: list[float]) -> tuple[bytes, Rows]:
        """What one row keeps after its inputs, and of each of them what its answer says."""
        numbers = list(self._numbers.unpack_from(kept))
        told: Rows = [[] for _ in inputs]
        score = self._errors if self.numbers else self._hits
        whole = score(numbers, inputs, said, told)
        ring = kept[self._numbers.size : self._start]
        if ring:
            ring = self._anomalies(numbers, ring, surprises, whole, told)
        return self._numbers.pack(*numbers) + ring + kept[self._start :], told

    def _errors(self, numbers: list[float], inputs: Rows, said: Said, told: Rows) -> list[bool]:
        """Whether each input has all targets."""
        count, whole = len(self.targets), []
        error_at, naive_at, inside_at, last_at = (_FIRST + count * place for place in range(1, 5))
        for step, values in enumerate(inputs):
            centre, below, above, there = said.centre[step], said.below[step], said.above[step], True
            for target, column in enumerate(self._columns):
                value = values[column]
                error = value - centre[target]
                told[step].append(error)
                if math.isnan(error):  # the input is missing
                    there = False
                    continue
                before = numbers[last_at + target]
                numbers[_FIRST + target] += 1
                numbers[error_at + target] += abs(error)
                if not math.isnan(before):  # it is not the first
                    numbers[naive_at + target] += abs(value - before)
                if self._central.level is not None and -below[target] <= error <= above[target]:
                    numbers[inside_at + target] += 1
                numbers[last_at + target] = value
            whole.append(there)
        return whole

    def _hits(self, numbers: list[float], inputs: Rows, said: Said, told: Rows) -> list[bool]:
        """Whether each input has all targets: a categorical head has one, others none that are inputs."""
        del told
        whole = []
        for step, values in enumerate(inputs):
            there = True
            for column in self._columns:
                there = not math.isnan(values[column])
                numbers[_FIRST] += there
                numbers[_FIRST + 1] += values[column] == said.centre[step][0]
            whole.append(there)
        return whole

    def _anomalies(
        self, numbers: list[float], ring: bytes, surprises: list[float], whole: list[bool], told: Rows
    ) -> bytes:
        """The ring after them. An input of which a target is missing has no anomaly, and is not in the ring."""
        scores = [surprise for surprise, there in zip(surprises, whole, strict=True) if there]
        found: list[float] = []
        if scores:
            found, ring = anomalies(ring, int(numbers[1]), scores)
        each = zip(scores, found, strict=True)
        for there, one in zip(whole, told, strict=True):
            anomaly = math.nan
            if there:
                surprise, anomaly = next(each)
                numbers[1] += 1
                numbers[2] += surprise
                numbers[3] += anomaly >= ALARM
            one.append(anomaly)
        return ring

    def _correct(self, kept: list[bytes], told: list[Rows], before: State, outputs: Outputs) -> list[bytes]:
        """What the rows keep with their intervals corrected; these are told for the input after each."""
        said = {
            name: np.concatenate((before[held][:, np.newaxis], outputs[name][:, :-1]), axis=1)
            for name, held in self._head.last.items()
        }
        errors = np.full((*outputs.shape, len(self.targets)), np.nan)
        for row, scored in enumerate(told):
            errors[row, : len(scored)] = [one[: len(self.targets)] for one in scored]
        scores = (np.abs(errors) / self._central.scale(said)).astype(np.float32)
        centre, scale = self._central.centre(outputs).tolist(), self._central.scale(outputs).tolist()
        return [
            self._with_intervals(kept[row], scored, scores[row, : len(scored)].T.tolist(), centre[row], scale[row])
            for row, scored in enumerate(told)
        ]

    def _with_intervals(self, kept: bytes, told: Rows, scores: Rows, centre: Rows, scale: Rows) -> bytes:
        """The same of one row. scores: (targets, steps) errors in scales, float32."""
        numbers, rings, widths = list(self._course.unpack_from(kept, self._start)), [], []
        start = self._start + self._course.size
        for target, its in enumerate(scores):
            of, end = slice(target, None, len(scores)), start + len(EMPTY)
            width, numbers[of], ring = corrected(wanted(kept), Course(*numbers[of]), kept[start:end], its)
            widths.append(width)
            rings.append(ring)
            start = end
        for one, middle, unit, wide in zip(told, centre, scale, zip(*widths, strict=True), strict=False):
            reach = [width * by for width, by in zip(wide, unit, strict=True)]
            one += [there - away for there, away in zip(middle, reach, strict=True)]
            one += [there + away for there, away in zip(middle, reach, strict=True)]
        return b"".join((kept[: self._start], self._course.pack(*numbers), *rings))

    def _answers(self, outputs: Outputs, told: Sequence[Rows]) -> Outputs:
        data, size, steps, parts, place = outputs.tobytes(), outputs.itemsize, outputs.shape[1], [], 0
        for scored in told:
            for one in scored:
                parts += [data[place : place + size], self._packed(one)]
                place += size
            if padding := steps - len(scored):
                parts.append(bytes(padding * self.answer.itemsize))
                place += padding * size
        return np.frombuffer(b"".join(parts), self.answer).reshape(outputs.shape)

    def _packed(self, told: list[float]) -> bytes:
        try:
            return self._told.pack(*told)
        except OverflowError:  # numbers as large as single precision has
            return self._told.pack(*(math.copysign(math.inf, one) if abs(one) > _MOST else one for one in told))

    def targets_of(self, kept: bytes) -> dict[str, Target]:
        """By target, of a session that keeps these bytes."""
        count, numbers = len(self.targets), self._numbers.unpack_from(kept)
        return {
            target: self._target(*numbers[_FIRST + place : _FIRST + place + len(self.sums) - 3 : count])
            for place, target in enumerate(self.targets)
        }

    def _target(self, count: float, missed: float, naive: float = 0.0, inside: float = 0.0) -> Target:
        """Of its sums."""
        if not self.numbers:
            return Target(int(count), hits=_ratio(missed, count))
        mae, scale, level = _ratio(missed, count), _ratio(naive, count - 1), self._central.level
        mase = None if mae is None or scale is None else _ratio(mae, scale)
        return Target(int(count), mae, mase, None if level is None else _ratio(inside, count), level)

    def interval_of(self, kept: bytes) -> Interval | None:
        if not self._corrects:
            return None
        (row,) = np.frombuffer(kept, self._more, offset=self._start)
        counted = row["entered"] - least(wanted(kept))
        covered = map(_ratio, row["covered"].tolist(), counted.tolist())
        coverage = dict(zip(self.targets, covered, strict=True))
        return Interval(wanted(kept), coverage, dict(zip(self.targets, (1 - row["level"]).tolist(), strict=True)))


def _memory(rows: Outputs) -> NDArray[np.uint8]:
    """(rows, bytes) of contiguous rows of one step."""
    return np.ndarray((len(rows), rows.itemsize), np.uint8, rows)


def wanted(kept: bytes) -> float:
    """The share that corrected intervals are to hold, whatever the model; 0: there are none."""
    share: float = WANTED.unpack_from(kept)[0] if kept else 0.0
    return share


def _ratio(some: float, all_of: float) -> float | None:
    return some / all_of if all_of > 0 else None
