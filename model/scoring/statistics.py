"""Running statistics of a session's predictions, and the scores of each input.

Scoring changes no prediction, and no statistic depends on how inputs are divided into calls, or on other rows: sums are
updated one step after another. An input is scored under the prediction made before it: the one in the state, and within
a call the previous step's.

Rows of any number of steps are counted number by number here; a row of one step by `step_scorer.py`, and many rows of
one step by `columns.py`, at less cost. All give the same bits.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from onward.model.distribution import Named
from onward.model.inputs import InputArray
from onward.model.manifest import RANKED
from onward.model.runner import Outputs
from onward.model.scoring.anomaly import score_surprise
from onward.model.scoring.conformal import IntervalState, correct_interval, min_scores_for_interval
from onward.model.scoring.layout import (
    ALARM,
    ALARMS,
    INPUTS,
    SURPRISE,
    StatisticsLayout,
    nominal_coverage,
)
from onward.model.scoring.step_scorer import StepScorer
from onward.model.scoring.surprise import comparable
from onward.model.state import State

Rows = list[list[float]]
"""(steps, targets)"""


class Predictions(NamedTuple):
    """The predictions before each of a row's inputs, (steps, targets).

    centre: the centre, or the index of the likeliest category. below, above: the distances of the interval's bounds.
    """

    centre: Rows
    below: Rows
    above: Rows


class RecentStatistics(NamedTuple):
    """A target's statistics over its last inputs, at most `2 * BLOCK - 1`."""

    inputs: int
    mae: float | None = None
    mase: float | None = None
    coverage: float | None = None
    hits: float | None = None


class TargetStatistics(NamedTuple):
    """A target's statistics. MASE is scaled by the previous value's error (Hyndman and Koehler 2006, section 3)."""

    inputs: int
    mae: float | None
    mase: float | None
    coverage: float | None
    level: float | None
    hits: float | None
    recent: RecentStatistics

    def fields(self) -> dict[str, Any]:
        """Returns the statistics by name, those over the last inputs too."""
        return self._asdict() | {"recent": self.recent._asdict()}


class IntervalStatistics(NamedTuple):
    """The statistics of adaptive intervals, with the names of the HTTP interface.

    wanted: the nominal coverage. coverage: the actual coverage by target. alpha: alpha_t by target. recent_coverage:
    the actual coverage over the last inputs.
    """

    wanted: float
    coverage: dict[str, float | None]
    alpha: dict[str, float]
    recent_coverage: dict[str, float | None]


class RunningStatistics:
    """Updates the statistics of one model's sessions."""

    def __init__(self, layout: StatisticsLayout) -> None:
        self._layout, self._steps = layout, StepScorer(layout)

    def score(
        self,
        statistics: Sequence[bytes],
        inputs: InputArray,
        sizes: Sequence[int],
        before: State,
        outputs: Outputs,
    ) -> tuple[Outputs, list[bytes]]:
        """Returns the outputs with scores (rows, steps), undefined beyond a row's size, and the updated statistics.

        inputs: (rows, steps, features). before: the states (rows,) before them. outputs: (rows, steps), after each.
        """
        values, predictions = inputs.tolist(), self._predictions(before, outputs)
        surprise = self._layout.head.surprise
        surprises = outputs[surprise].tolist() if surprise else [[]] * len(statistics)
        after, scores = [], []
        for row, size in enumerate(sizes):
            updated, row_scores = self._row(
                statistics[row], values[row][:size], predictions[row], surprises[row][:size]
            )
            after.append(updated)
            scores.append(row_scores)
        if self._layout.intervals:
            after = self._correct(after, scores, before, outputs)
        return self._append(outputs, scores), after

    def _predictions(self, before: State, outputs: Outputs) -> list[Predictions]:
        """Returns each row's predictions: the one in its state, then those of its steps but the last."""
        if not self._layout.targets:
            return [Predictions([], [], [])] * len(outputs)
        parts = [[[numbers] for numbers in part] for part in self._bounds(self._layout.stored_prediction(before))]
        if outputs.shape[1] > 1:
            for part, later_part in zip(parts, self._bounds(outputs), strict=True):
                for row, later in zip(part, later_part, strict=True):
                    row.extend(later[:-1])
        return list(map(Predictions, *parts))

    def _bounds(self, predictions: Named) -> Sequence[Any]:
        """Returns centres and the distances of the bounds, nested as the outputs are."""
        if not self._layout.numbers:
            return [predictions[RANKED[0]][..., :1].tolist()] * 3
        centre = self._layout.central.centre(predictions)
        reach = (centre, centre) if self._layout.central.level is None else self._layout.central.reach(predictions)
        return [part.tolist() for part in (centre, *reach)]

    def _row(
        self, statistics: bytes, inputs: Rows, predictions: Predictions, surprises: list[float]
    ) -> tuple[bytes, Rows]:
        """Returns one row's updated statistics without intervals, and the scores of each of its inputs."""
        numbers = list(self._layout.row.unpack_from(statistics))
        scores: Rows = [[] for _ in inputs]
        complete = [True] * len(inputs)
        if self._layout.numbers:
            counted = zip(inputs, *predictions, scores, strict=False)  # padding has predictions too
            complete = [self._steps.count_errors(numbers, *step) for step in counted]
        elif self._layout.targets:
            ranked = zip(inputs, predictions.centre, strict=False)
            complete = [self._steps.count_hits(numbers, values, likeliest) for values, (likeliest,) in ranked]
        ring = statistics[self._layout.ring]
        if ring:
            compared = surprises
            if self._layout.head.transforms:
                actual = np.array(inputs)[:, self._layout.columns]
                compared = comparable(self._layout.head, actual, np.array(surprises)).tolist()
            ring = self._anomalies(numbers, ring, surprises, compared, complete, scores)
        return self._layout.row.pack(*numbers) + ring + statistics[self._layout.ring.stop :], scores

    def _anomalies(
        self,
        numbers: list[float],
        ring: bytes,
        surprises: list[float],
        compared: list[float],
        complete: list[bool],
        scores: Rows,
    ) -> bytes:
        """Counts the anomalies and appends them to `scores`; returns the updated ring.

        compared: see `onward.model.scoring.surprise.comparable`.

        An input with a missing target has no anomaly, and its surprise does not enter the ring.
        """
        counted = [surprise for surprise, present in zip(compared, complete, strict=True) if present]
        line, end, state = ring + np.array(counted, np.float32).tobytes(), len(ring), self._layout.anomaly.start
        following = iter(counted)
        for surprise, present, step_scores in zip(surprises, complete, scores, strict=True):
            anomaly = math.nan
            if present:
                anomaly = score_surprise(numbers, state, int(numbers[INPUTS]), line, end, next(following))
                end += np.dtype(np.float32).itemsize
                numbers[INPUTS] += 1
                numbers[SURPRISE] += surprise
                numbers[ALARMS] += anomaly >= ALARM
            step_scores.append(anomaly)
        return line[-len(ring) :]

    def _correct(self, statistics: list[bytes], scores: list[Rows], before: State, outputs: Outputs) -> list[bytes]:
        """Returns the statistics with updated intervals; appends the next input's interval to each step's scores."""
        stored = self._layout.stored_prediction(before)
        predictions = {
            name: np.concatenate((stored[name][:, np.newaxis], outputs[name][:, :-1]), axis=1)
            for name in self._layout.head.last
        }
        errors = np.full((*outputs.shape, len(self._layout.targets)), np.nan)
        for row, row_scores in enumerate(scores):
            errors[row, : len(row_scores)] = [step_scores[: len(self._layout.targets)] for step_scores in row_scores]
        scaled = self._layout.central.errors_in_scales(predictions, errors).astype(np.float32)
        corrected, widths = [], np.full(errors.shape, np.nan)
        for row, row_scores in enumerate(scores):
            row_statistics, row_widths = self._correct_row(statistics[row], scaled[row, : len(row_scores)].T.tolist())
            corrected.append(row_statistics)
            widths[row, : len(row_scores)] = np.array(row_widths).T
        low, high = (bound.tolist() for bound in self._layout.central.bounds(outputs, widths))
        for row, row_scores in enumerate(scores):
            for step_scores, step_low, step_high in zip(row_scores, low[row], high[row], strict=False):
                step_scores += [*step_low, *step_high]
        return corrected

    def _correct_row(self, statistics: bytes, scaled_errors: Rows) -> tuple[bytes, Rows]:
        """Returns one row's statistics, and the half widths of the later intervals (targets, steps), in scales.

        scaled_errors: absolute errors in scales (targets, steps), float32.
        """
        nominal, states, rings, widths = nominal_coverage(statistics), [], [], []
        targets = zip(self._interval_states(statistics), self._layout.rings, scaled_errors, strict=True)
        for state, ring, errors in targets:
            target_widths, new_state, new_ring = correct_interval(nominal, state, statistics[ring], errors)
            widths.append(target_widths)
            states.append(new_state)
            rings.append(new_ring)
        packed = self._layout.pack_interval_states(states)
        return b"".join((statistics[: self._layout.ring.stop], packed, *rings)), widths

    def _append(self, outputs: Outputs, scores: Sequence[Rows]) -> Outputs:
        """Returns the outputs (rows, steps) with the scores of each step as further fields."""
        data, size, steps, parts, position = outputs.tobytes(), outputs.itemsize, outputs.shape[1], [], 0
        for row_scores in scores:
            for step_scores in row_scores:
                parts += [data[position : position + size], self._layout.pack_scores(step_scores)]
                position += size
            if padding := steps - len(row_scores):
                parts.append(bytes(padding * self._layout.output_dtype.itemsize))
                position += padding * size
        return np.frombuffer(b"".join(parts), self._layout.output_dtype).reshape(outputs.shape)

    def target_statistics(self, statistics: bytes) -> dict[str, TargetStatistics]:
        """Returns a session's statistics by target."""
        layout = self._layout
        numbers = np.array(layout.row.unpack_from(statistics))
        block, ended, previous = (
            numbers[part].reshape(len(layout.names), -1).T for part in (layout.block, layout.ended, layout.previous)
        )  # (targets, sums) each
        whole, recent = (block + ended).tolist(), (block + previous).tolist()
        statistics_of = {}
        for position, target in enumerate(layout.targets):
            has_first = bool(ended[position, 0] == previous[position, 0])  # the recent inputs are all
            figures = self._figures(*recent[position], has_first=has_first)
            inputs, mae, mase, coverage, hits = self._figures(*whole[position], has_first=True)
            statistics_of[target] = TargetStatistics(inputs, mae, mase, coverage, layout.central.level, hits, figures)
        return statistics_of

    def _figures(
        self, count: float, total: float, naive: float = 0.0, inside: float = 0.0, *, has_first: bool
    ) -> RecentStatistics:
        """Returns a target's statistics from its sums. total: the hits for categories, else the absolute errors.

        has_first: whether the session's first input is among them, which has no naive error.
        """
        if not self._layout.numbers:
            return RecentStatistics(int(count), hits=_ratio(total, count))
        mae, scale = _ratio(total, count), _ratio(naive, count - has_first)
        mase = None if mae is None or scale is None else _ratio(mae, scale)
        coverage = None if self._layout.central.level is None else _ratio(inside, count)
        return RecentStatistics(int(count), mae, mase, coverage)

    def interval_statistics(self, statistics: bytes) -> IntervalStatistics | None:
        """Returns the statistics of a session's intervals; None if it has none."""
        if not self._layout.intervals:
            return None
        nominal = nominal_coverage(statistics)
        states = dict(zip(self._layout.targets, self._interval_states(statistics), strict=True))
        uncounted = min_scores_for_interval(nominal)
        return IntervalStatistics(
            nominal,
            {target: _ratio(state.covered, state.entered - uncounted) for target, state in states.items()},
            {target: 1 - state.level for target, state in states.items()},
            {
                target: _ratio(
                    state.covered - state.recent_covered, state.entered - max(state.recent_entered, uncounted)
                )
                for target, state in states.items()
            },
        )

    def _interval_states(self, statistics: bytes) -> list[IntervalState]:
        """Returns the interval state of each target."""
        numbers = self._layout.interval_states.unpack_from(statistics, self._layout.ring.stop)
        targets = len(self._layout.targets)
        return [IntervalState(*numbers[target::targets]) for target in range(targets)]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
