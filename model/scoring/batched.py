"""Batched scoring of many rows of one step, as nearly all batches of a busy server are.

It gives the same bits as `RunningStatistics.score` row by row, at less cost.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import RANKED
from onward.model.runner import Outputs
from onward.model.scoring.conformal import RING_SIZE, anomalies_of_rows
from onward.model.scoring.layout import ALARM, ALARMS, ANOMALY, ERROR, INPUTS, LAST, SURPRISE, StatisticsLayout
from onward.model.state import State

MIN_BATCHED_ROWS = 4
"""The number of rows from which numpy is faster."""


def score_batched(
    layout: StatisticsLayout, statistics: Sequence[bytes], inputs: NDArray[np.float32], before: State, outputs: Outputs
) -> tuple[Outputs, list[bytes]]:
    """Scores rows as `RunningStatistics.score` does; without intervals, with all targets present.

    inputs: (rows, features).
    """
    memory, rows = bytearray().join(statistics), len(statistics)
    numbers = np.ndarray((rows, layout.row.size // 8), np.float64, memory, 0, (layout.size, 8))
    increments = np.zeros((rows, 1 + len(layout.sums)))
    by_name = {name: increments[:, layout.positions[name]] for name in layout.names}
    scored = np.empty(outputs.shape, layout.output_dtype)
    _memory(scored)[:, : outputs.itemsize] = _memory(outputs)
    if layout.targets:
        predictions = layout.stored_prediction(before)
        actual = inputs[:, layout.columns].astype(np.float64)
        by_name["predicted"][...] = 1
        if layout.numbers:
            scored[ERROR][:, 0] = error = actual - layout.central.centre(predictions)
            last = numbers[:, layout.positions[LAST]]
            by_name["absolute_error"][...] = np.abs(error)
            by_name["naive_absolute_error"][...] = np.fmax(np.abs(actual - last), 0.0)  # 0 for the first
            if layout.central.level is not None:
                below, above = layout.central.reach(predictions)
                by_name["inside"][...] = (error >= -below) & (error <= above)
            last[...] = actual
        else:
            by_name["hits"][...] = actual == predictions[RANKED[0]][:, :1]
    if layout.head.surprise is not None:
        surprise = outputs[layout.head.surprise][:, 0]
        rings = np.ndarray((rows, RING_SIZE), np.float32, memory, layout.ring.start, (layout.size, 4))
        found = anomalies_of_rows(rings, numbers[:, INPUTS], surprise)
        scored[ANOMALY][:, 0] = found
        increments[:, INPUTS], increments[:, SURPRISE], increments[:, ALARMS] = 1, surprise, found >= ALARM
    numbers[:, : increments.shape[1]] += increments
    data = bytes(memory)
    return scored, [data[start : start + layout.size] for start in range(0, len(data), layout.size)]


def _memory(rows: Outputs) -> NDArray[np.uint8]:
    """Returns the memory (rows, bytes) of contiguous rows of one step."""
    return np.ndarray((len(rows), rows.itemsize), np.uint8, rows)
