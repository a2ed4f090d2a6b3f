"""Scoring of one step of one session in plain Python, on the bytes of its statistics and its state.

It gives the same bits as `score_columns`, and counts each step for `RunningStatistics` too.
"""

import math
from collections.abc import Sequence
from struct import Struct

import numpy as np

from onward.model.manifest import RANKED
from onward.model.scoring.anomaly import score_surprise
from onward.model.scoring.conformal import BLOCK
from onward.model.scoring.layout import ALARM, ALARMS, INPUTS, SURPRISE, StatisticsLayout
from onward.model.scoring.surprise import comparable

_FLOAT = Struct("<f")


class StepScorer:
    """Scores single steps of one model's sessions without intervals."""

    def __init__(self, layout: StatisticsLayout) -> None:
        self._layout, self._central, self._centre = layout, layout.central, layout.head.outputs[0]
        self._columns = tuple(enumerate(layout.columns))
        self._starts = tuple(positions.start for positions in layout.positions.values())

    def score(self, data: bytes, start: int, values: Sequence[float], surprise: float | None) -> tuple[bytes, bytes]:
        """Returns the bytes of the scores that the answer has after the outputs, and the updated statistics.

        data: has the statistics at `start`, and after them the state before the input. values: (features,).
        surprise: of the input, None if the model has none.
        """
        layout = self._layout
        numbers, scores, present = list(layout.row.unpack_from(data, start)), list[float](), True
        if layout.targets:
            stored = np.frombuffer(data, layout.stored_prediction_dtype, 1, start + layout.size)
            (centre,) = stored[self._centre].tolist()
            if layout.numbers:
                below, above = (centre, centre) if self._central.level is None else self._central.reach_of_row(stored)
                present = self.count_errors(numbers, values, centre, below, above, scores)
            else:
                present = self.count_hits(numbers, values, stored[RANKED[0]][0, 0].item())
        ring_start, ring_end = start + layout.ring.start, start + layout.ring.stop
        ring = data[ring_start:ring_end]
        if surprise is not None and present:
            compared = surprise
            if layout.head.transforms:
                actual = np.array([values[column] for column in layout.columns])
                compared = comparable(layout.head, actual, np.asarray(surprise)).item()
            found = score_surprise(numbers, layout.anomaly.start, int(numbers[INPUTS]), data, ring_end, compared)
            numbers[INPUTS] += 1
            numbers[SURPRISE] += surprise
            numbers[ALARMS] += found >= ALARM
            scores.append(found)
            ring = ring[_FLOAT.size :] + _FLOAT.pack(compared)
        elif surprise is not None:
            scores.append(math.nan)
        try:
            packed = layout.scores.pack(*scores)
        except OverflowError:
            packed = layout.pack_scores(scores)
        return packed, layout.row.pack(*numbers) + ring

    def count_errors(
        self,
        numbers: list[float],
        values: Sequence[float],
        centre: Sequence[float],
        below: Sequence[float],
        above: Sequence[float],
        scores: list[float],
    ) -> bool:
        """Counts the errors and appends them to `scores`; returns whether the input has all targets.

        numbers: of the statistics, updated in place. values: (features,) of the input. centre: (targets,) of its
        prediction. below, above: (targets,) the distances of the interval's bounds from it, of no meaning without one.
        """
        present, has_level = True, self._central.level is not None
        predicted, error_at, naive_at, inside_at, last_at = self._starts
        for target, column in self._columns:
            value = values[column]
            error = value - centre[target]
            scores.append(error)
            if math.isnan(error):  # the input is missing
                present = False
                continue
            before, count = numbers[last_at + target], numbers[predicted + target] + 1
            numbers[predicted + target] = count
            numbers[error_at + target] += abs(error)
            if not math.isnan(before):  # not the first value
                numbers[naive_at + target] += abs(value - before)
            if has_level and -below[target] <= error <= above[target]:
                numbers[inside_at + target] += 1
            numbers[last_at + target] = value
            if count == BLOCK:
                self._layout.end_block(numbers, target)
        return present

    def count_hits(self, numbers: list[float], values: Sequence[float], likeliest: float) -> bool:
        """Counts whether the input is the likeliest category, and is listed; returns whether it is present.

        A categorical head has one target, and other heads without numbers have none among the inputs.
        """
        present = True
        predicted, hits = self._starts
        for _, column in self._columns:
            present = not math.isnan(values[column])
            numbers[predicted] += present
            numbers[hits] += values[column] == likeliest < self._layout.categories
            if numbers[predicted] == BLOCK:
                self._layout.end_block(numbers, 0)
        return present
