"""Scoring of many rows of one step as columns, as nearly all batches of a busy server are.

It gives the same bits as `RunningStatistics.score` row by row, at less cost from some ten rows on.
"""

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import RANKED
from onward.model.runner import Outputs
from onward.model.scoring.central_interval import Floats
from onward.model.scoring.conformal import anomalies_of_rows
from onward.model.scoring.layout import ALARM, ALARMS, ANOMALY, ERROR, INPUTS, LAST, SURPRISE, StatisticsLayout
from onward.model.state import State


def score_columns(
    layout: StatisticsLayout,
    statistics: NDArray[np.void],
    inputs: NDArray[np.float32],
    before: State,
    outputs: Outputs,
) -> tuple[Outputs, Floats]:
    """Updates the statistics; returns the outputs (rows,) with the scores of the inputs, and the increments.

    statistics: (rows,) of `layout.dtype`, without intervals, updated in place. inputs: (rows, features), with all
    targets present. before: the states (rows,) before the inputs. outputs: (rows,) after them.
    increments: (rows, sums) of `layout.sums`.
    """
    numbers, rows = statistics["numbers"], len(outputs)
    increments = np.zeros((rows, 1 + len(layout.sums)))
    scored = np.empty(rows, layout.output_dtype)
    _memory(scored)[:, : outputs.itemsize] = _memory(outputs)
    if layout.targets:
        predictions = layout.stored_prediction(before)
        by_name = {name: increments[:, layout.positions[name]] for name in layout.names}
        actual = inputs[:, layout.columns].astype(np.float64)
        by_name["predicted"].fill(1)
        if layout.numbers:
            error = actual - layout.central.centre(predictions)
            last = numbers[:, layout.positions[LAST]]
            scored[ERROR] = error
            np.abs(error, out=by_name["absolute_error"])
            np.fmax(np.abs(actual - last), 0.0, out=by_name["naive_absolute_error"])  # 0 for the first
            if layout.central.level is not None:
                below, above = layout.central.reach(predictions)
                by_name["inside"][...] = (error >= -below) & (error <= above)
            last[...] = actual
        else:
            by_name["hits"][...] = actual == predictions[RANKED[0]][:, :1]
    if layout.head.surprise is not None:
        surprise = outputs[layout.head.surprise]
        found = anomalies_of_rows(statistics["ring"], numbers[:, INPUTS], surprise)
        scored[ANOMALY] = found
        increments[:, INPUTS] = 1
        increments[:, SURPRISE] = surprise
        increments[:, ALARMS] = found >= ALARM
    numbers[:, : increments.shape[1]] += increments
    return scored, increments[:, 1:]


def _memory(rows: Outputs) -> NDArray[np.uint8]:
    """Returns the memory (rows, bytes) of contiguous rows."""
    return np.ndarray((len(rows), rows.itemsize), np.uint8, rows)
