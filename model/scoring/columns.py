"""Scoring of many rows of one step as columns, as nearly all batches of a busy server are.

It gives the same bits as `RunningStatistics.score` row by row, at less cost from some ten rows on.
"""

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import RANKED
from onward.model.runner import Outputs
from onward.model.scoring.conformal import anomalies_of_rows
from onward.model.scoring.layout import ALARM, ALARMS, ANOMALY, ERROR, INPUTS, LAST, SURPRISE, StatisticsLayout
from onward.model.state import State


def score_columns(
    layout: StatisticsLayout,
    statistics: NDArray[np.void],
    inputs: NDArray[np.float32],
    before: State,
    outputs: Outputs,
) -> Outputs:
    """Returns the outputs (rows,) with the scores of the inputs, and updates the statistics.

    statistics: (rows,) of `layout.dtype`, without intervals, updated in place. inputs: (rows, features), with all
    targets present. before: the states (rows,) before them. outputs: (rows,) after them.
    """
    numbers, rows = statistics["numbers"], len(outputs)
    increments = np.zeros((rows, 1 + len(layout.sums)))
    by_name = {name: increments[:, layout.positions[name]] for name in layout.names}
    scored = np.empty(rows, layout.output_dtype)
    _memory(scored)[:, : outputs.itemsize] = _memory(outputs)
    if layout.targets:
        predictions = layout.stored_prediction(before)
        actual = inputs[:, layout.columns].astype(np.float64)
        by_name["predicted"][...] = 1
        if layout.numbers:
            scored[ERROR] = error = actual - layout.central.centre(predictions)
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
        surprise = outputs[layout.head.surprise]
        scored[ANOMALY] = found = anomalies_of_rows(statistics["ring"], numbers[:, INPUTS], surprise)
        increments[:, INPUTS], increments[:, SURPRISE], increments[:, ALARMS] = 1, surprise, found >= ALARM
    numbers[:, : increments.shape[1]] += increments
    return scored


def _memory(rows: Outputs) -> NDArray[np.uint8]:
    """Returns the memory (rows, bytes) of contiguous rows."""
    return np.ndarray((len(rows), rows.itemsize), np.uint8, rows)
