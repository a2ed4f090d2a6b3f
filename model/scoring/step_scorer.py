"""Scoring of one step of one session in plain Python, on the bytes of its statistics and its state.

It gives the same bits as `RunningStatistics.score` and `score_columns`.
"""

import math
from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np

from onward.model.manifest import RANKED
from onward.model.scoring.conformal import anomaly
from onward.model.scoring.layout import ALARM, ALARMS, INPUTS, LAST, OF_NUMBERS, SURPRISE, StatisticsLayout

_FLOAT = Struct("<f")
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class StepScorer:
    """Scores single steps of one model's sessions without intervals."""

    def __init__(self, layout: StatisticsLayout, stored_prediction: np.dtype[np.void]) -> None:
        """stored_prediction: the fields of a state's bytes that hold the prediction of the next input."""
        self._layout, self._stored = layout, stored_prediction
        self._columns = tuple(enumerate(layout.columns))
        self._starts = [layout.positions[name].start for name in (*OF_NUMBERS, LAST)] if layout.numbers else []
        self._centre = layout.head.outputs[0]

    def score(self, data: bytes, start: int, values: Sequence[float], surprise: float | None) -> tuple[bytes, bytes]:
        """Returns the bytes of the scores that the answer has after the outputs, and the updated statistics.

        data: has the statistics at `start`, and after them the state before the input. values: (features,).
        surprise: of the input, None if the model has none.
        """
        layout = self._layout
        numbers, scores, present = list(layout.row.unpack_from(data, start)), list[float](), True
        if layout.targets:
            stored = np.frombuffer(data, self._stored, 1, start + layout.size)
            present = (self._count_errors if layout.numbers else self._count_hits)(numbers, values, stored, scores)
        ring_start, ring_end = start + layout.ring.start, start + layout.ring.stop
        ring = data[ring_start:ring_end]
        if surprise is not None and present:
            reaching = int(np.count_nonzero(np.frombuffer(ring, np.float32) >= surprise))
            found = anomaly(int(numbers[INPUTS]), reaching)
            numbers[INPUTS] += 1
            numbers[SURPRISE] += surprise
            numbers[ALARMS] += found >= ALARM
            scores.append(found)
            ring = ring[_FLOAT.size :] + _FLOAT.pack(surprise)
        elif surprise is not None:
            scores.append(math.nan)
        try:
            packed = layout.scores.pack(*scores)
        except OverflowError:  # a score beyond single precision
            packed = layout.scores.pack(*map(as_float32, scores))
        return packed, layout.row.pack(*numbers) + ring

    def _count_errors(self, numbers: list[float], values: Sequence[float], stored: Any, scores: list[float]) -> bool:
        """Counts the errors and appends them to `scores`; returns whether the input has all targets."""
        central, present = self._layout.central, True
        (centre,) = stored[self._centre].tolist()
        below, above = (centre, centre) if central.level is None else central.reach_of_row(stored)
        predicted, error_at, naive_at, inside_at, last_at = self._starts
        for target, column in self._columns:
            value = values[column]
            error = value - centre[target]
            scores.append(error)
            if math.isnan(error):  # the input is missing
                present = False
                continue
            before = numbers[last_at + target]
            numbers[predicted + target] += 1
            numbers[error_at + target] += abs(error)
            if not math.isnan(before):  # not the first value
                numbers[naive_at + target] += abs(value - before)
            if central.level is not None and -below[target] <= error <= above[target]:
                numbers[inside_at + target] += 1
            numbers[last_at + target] = value
        return present

    def _count_hits(self, numbers: list[float], values: Sequence[float], stored: Any, scores: list[float]) -> bool:
        """Counts the hits of the likeliest category; returns whether the input is present."""
        del scores
        present, positions = True, self._layout.positions
        likeliest = stored[RANKED[0]][0, 0].item()
        for _, column in self._columns:
            present = not math.isnan(values[column])
            numbers[positions["predicted"].start] += present
            numbers[positions["hits"].start] += values[column] == likeliest
        return present


def as_float32(number: float) -> float:
    """Returns the number, or infinity with its sign if it is beyond single precision."""
    return math.copysign(math.inf, number) if abs(number) > _MAX_FLOAT32 else number
