"""What is counted of a session's predictions, and what the answer to an input says of the one made for it.

Nothing here changes a prediction, and nothing counted depends on how inputs are cut into calls, or on the rows beside
them: sums are taken one step after another. An input is scored by the prediction made before it: the last one in the
state, and within a call those before it.

A few rows are counted number by number, as numpy's calls would cost more; many of one step each, as nearly all batches
of a busy server are, together. Both give the same bits.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import RANKED
from onward.model.runner import Outputs
from onward.model.scoring.batched import TOGETHER, together
from onward.model.scoring.central_interval import Named
from onward.model.scoring.conformal import IntervalState, anomalies, correct_interval, min_scores_for_interval
from onward.model.scoring.layout import (
    ALARM,
    ALARMS,
    INPUTS,
    LAST,
    OF_NUMBERS,
    OF_RANKS,
    SURPRISE,
    StatisticsLayout,
    nominal_coverage,
)
from onward.model.state import State

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


class TargetStatistics(NamedTuple):
    """Of a target so far. MASE is scaled by the error of the value before (Hyndman and Koehler 2006, section 3)."""

    inputs: int
    mae: float | None = None
    mase: float | None = None
    coverage: float | None = None
    level: float | None = None
    hits: float | None = None


class IntervalStatistics(NamedTuple):
    """Corrected ones: the share that they are to hold, and by target the share that they held, and alpha_t."""

    wanted: float
    coverage: dict[str, float | None]
    alpha: dict[str, float]


class RunningStatistics:
    """Counts what sessions of one model keep."""

    def __init__(self, figures: StatisticsLayout) -> None:
        self._of = figures
        self._alone = figures.intervals or figures.nullable

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
            return together(self._of, kept, inputs[:, 0], before, outputs)
        values, said = inputs.tolist(), self._said(before, outputs)
        surprises = outputs[self._of.head.surprise].tolist() if self._of.head.surprise else [[]] * len(kept)
        after, told = [], []
        for row, size in enumerate(sizes):
            one, scored = self._row(kept[row], values[row][:size], said[row], surprises[row][:size])
            after.append(one)
            told.append(scored)
        if self._of.intervals:
            after = self._correct(after, told, before, outputs)
        return self._answers(outputs, told), after

    def _said(self, before: State, outputs: Outputs) -> list[Said]:
        if not self._of.targets:
            return [Said([], [], [])] * len(outputs)
        last = {name: before[held] for name, held in self._of.head.last.items()}
        first = [[[numbers] for numbers in part] for part in self._spoken(last)]
        if outputs.shape[1] > 1:
            for part, more in zip(first, self._spoken(outputs), strict=True):
                for row, later in zip(part, more, strict=True):
                    row.extend(later[:-1])
        return list(map(Said, *first))

    def _spoken(self, said: Named | Outputs) -> Sequence[Any]:
        """Centres and reaches, nested as the outputs are."""
        if not self._of.numbers:
            return [said[RANKED[0]][..., :1].tolist()] * 3
        centre = self._of.central.centre(said)
        reach = (centre, centre) if self._of.central.level is None else self._of.central.reach(said)
        return [part.tolist() for part in (centre, *reach)]

    def _row(self, kept: bytes, inputs: Rows, said: Said, surprises: list[float]) -> tuple[bytes, Rows]:
        """What one row keeps after its inputs, and of each of them what its answer says."""
        numbers = list(self._of.row.unpack_from(kept))
        told: Rows = [[] for _ in inputs]
        score = self._errors if self._of.numbers else self._hits
        whole = score(numbers, inputs, said, told)
        ring = kept[self._of.ring]
        if ring:
            ring = self._anomalies(numbers, ring, surprises, whole, told)
        return self._of.row.pack(*numbers) + ring + kept[self._of.ring.stop :], told

    def _errors(self, numbers: list[float], inputs: Rows, said: Said, told: Rows) -> list[bool]:
        """Whether each input has all targets."""
        whole, places = [], self._of.places
        predicted, error_at, naive_at, inside_at, last_at = (places[name].start for name in (*OF_NUMBERS, LAST))
        for step, values in enumerate(inputs):
            centre, below, above, there = said.centre[step], said.below[step], said.above[step], True
            for target, column in enumerate(self._of.columns):
                value = values[column]
                error = value - centre[target]
                told[step].append(error)
                if math.isnan(error):  # the input is missing
                    there = False
                    continue
                before = numbers[last_at + target]
                numbers[predicted + target] += 1
                numbers[error_at + target] += abs(error)
                if not math.isnan(before):  # it is not the first
                    numbers[naive_at + target] += abs(value - before)
                if self._of.central.level is not None and -below[target] <= error <= above[target]:
                    numbers[inside_at + target] += 1
                numbers[last_at + target] = value
            whole.append(there)
        return whole

    def _hits(self, numbers: list[float], inputs: Rows, said: Said, told: Rows) -> list[bool]:
        """Whether each input has all targets: a categorical head has one, others none that are inputs."""
        del told
        whole = []
        predicted, hits = (self._of.places[name].start for name in OF_RANKS)
        for step, values in enumerate(inputs):
            there = True
            for column in self._of.columns:
                there = not math.isnan(values[column])
                numbers[predicted] += there
                numbers[hits] += values[column] == said.centre[step][0]
            whole.append(there)
        return whole

    def _anomalies(
        self, numbers: list[float], ring: bytes, surprises: list[float], whole: list[bool], told: Rows
    ) -> bytes:
        """The ring after them. An input of which a target is missing has no anomaly, and is not in the ring."""
        scores = [surprise for surprise, there in zip(surprises, whole, strict=True) if there]
        found: list[float] = []
        if scores:
            found, ring = anomalies(ring, int(numbers[INPUTS]), scores)
        each = zip(scores, found, strict=True)
        for there, one in zip(whole, told, strict=True):
            anomaly = math.nan
            if there:
                surprise, anomaly = next(each)
                numbers[INPUTS] += 1
                numbers[SURPRISE] += surprise
                numbers[ALARMS] += anomaly >= ALARM
            one.append(anomaly)
        return ring

    def _correct(self, kept: list[bytes], told: list[Rows], before: State, outputs: Outputs) -> list[bytes]:
        """What the rows keep with their intervals corrected; these are told for the input after each."""
        said = {
            name: np.concatenate((before[held][:, np.newaxis], outputs[name][:, :-1]), axis=1)
            for name, held in self._of.head.last.items()
        }
        errors = np.full((*outputs.shape, len(self._of.targets)), np.nan)
        for row, scored in enumerate(told):
            errors[row, : len(scored)] = [one[: len(self._of.targets)] for one in scored]
        scores = (np.abs(errors) / self._of.central.scale(said)).astype(np.float32)
        centre, scale = self._of.central.centre(outputs).tolist(), self._of.central.scale(outputs).tolist()
        return [
            self._with_intervals(kept[row], scored, scores[row, : len(scored)].T.tolist(), centre[row], scale[row])
            for row, scored in enumerate(told)
        ]

    def _with_intervals(self, kept: bytes, told: Rows, scores: Rows, centre: Rows, scale: Rows) -> bytes:
        """The same of one row. scores: (targets, steps) errors in scales, float32."""
        courses, rings, widths = [], [], []
        for course, ring, its in zip(self._courses(kept), self._of.rings, scores, strict=True):
            width, then, held = correct_interval(nominal_coverage(kept), course, kept[ring], its)
            widths.append(width)
            courses.append(then)
            rings.append(held)
        for one, middle, unit, wide in zip(told, centre, scale, zip(*widths, strict=True), strict=False):
            reach = [width * by for width, by in zip(wide, unit, strict=True)]
            one += [there - away for there, away in zip(middle, reach, strict=True)]
            one += [there + away for there, away in zip(middle, reach, strict=True)]
        numbers = self._of.course.pack(*chain(*zip(*courses, strict=True)))
        return b"".join((kept[: self._of.ring.stop], numbers, *rings))

    def _answers(self, outputs: Outputs, told: Sequence[Rows]) -> Outputs:
        data, size, steps, parts, place = outputs.tobytes(), outputs.itemsize, outputs.shape[1], [], 0
        for scored in told:
            for one in scored:
                parts += [data[place : place + size], self._packed(one)]
                place += size
            if padding := steps - len(scored):
                parts.append(bytes(padding * self._of.answer.itemsize))
                place += padding * size
        return np.frombuffer(b"".join(parts), self._of.answer).reshape(outputs.shape)

    def _packed(self, told: list[float]) -> bytes:
        try:
            return self._of.told.pack(*told)
        except OverflowError:  # numbers as large as single precision has
            return self._of.told.pack(*(math.copysign(math.inf, one) if abs(one) > _MOST else one for one in told))

    def target_statistics(self, kept: bytes) -> dict[str, TargetStatistics]:
        """By target, of a session that keeps these bytes."""
        numbers = self._of.row.unpack_from(kept)
        return {
            target: self._target(*(numbers[self._of.places[name]][place] for name in self._of.names))
            for place, target in enumerate(self._of.targets)
        }

    def _target(self, count: float, missed: float, naive: float = 0.0, inside: float = 0.0) -> TargetStatistics:
        """Of its sums."""
        if not self._of.numbers:
            return TargetStatistics(int(count), hits=_ratio(missed, count))
        mae, scale, level = _ratio(missed, count), _ratio(naive, count - 1), self._of.central.level
        mase = None if mae is None or scale is None else _ratio(mae, scale)
        return TargetStatistics(int(count), mae, mase, None if level is None else _ratio(inside, count), level)

    def interval_statistics(self, kept: bytes) -> IntervalStatistics | None:
        if not self._of.intervals:
            return None
        coverage, alpha, uncounted = (
            dict[str, float | None](),
            dict[str, float](),
            min_scores_for_interval(nominal_coverage(kept)),
        )
        for target, course in zip(self._of.targets, self._courses(kept), strict=True):
            coverage[target] = _ratio(course.covered, course.entered - uncounted)
            alpha[target] = 1 - course.level
        return IntervalStatistics(nominal_coverage(kept), coverage, alpha)

    def _courses(self, kept: bytes) -> list[IntervalState]:
        """Of each target."""
        numbers, wide = self._of.course.unpack_from(kept, self._of.ring.stop), len(self._of.targets)
        return [IntervalState(*numbers[target::wide]) for target in range(wide)]


def _ratio(some: float, all_of: float) -> float | None:
    return some / all_of if all_of > 0 else None
