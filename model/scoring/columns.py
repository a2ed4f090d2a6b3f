"""Scoring of many rows of one step as columns, as nearly all batches of a busy server are.

It gives the same bits as `RunningStatistics.score` row by row, at less cost from some ten rows on.
"""

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import InputArray
from onward.model.manifest import RANKED
from onward.model.runner import Outputs
from onward.model.scoring.anomaly import score_surprises_of_rows
from onward.model.scoring.central_interval import Floats
from onward.model.scoring.conformal import BLOCK
from onward.model.scoring.layout import ALARM, ALARMS, ANOMALY, ERROR, INPUTS, LAST, SURPRISE, StatisticsLayout
from onward.model.scoring.surprise import comparable


def score_columns(
    layout: StatisticsLayout,
    numbers: Floats,
    ring: NDArray[np.float32],
    inputs: InputArray,
    predictions: Outputs,
    outputs: Outputs,
) -> tuple[Outputs, Floats]:
    """Updates the statistics; returns the outputs (rows,) with the scores of the inputs, and the increments.

    numbers, ring: (rows, numbers) and (rows, RING_SIZE) of the statistics, without intervals, updated in place. inputs:
    (rows, features), with all targets present. predictions: (rows,) of the inputs, with a field per output. outputs:
    (rows,) after the inputs. increments: (rows, sums) of `layout.sums`.
    """
    rows, positions = len(outputs), layout.positions
    increments = np.zeros((rows, 1 + len(layout.sums)))
    scored = np.empty(rows, layout.output_dtype)
    _memory(scored)[:, : outputs.itemsize] = _memory(outputs)
    if layout.targets:
        actual = inputs[:, layout.columns].astype(np.float64)
        increments[:, positions["predicted"]] = 1
        if layout.numbers:
            scored[ERROR] = error = actual - layout.central.centre(predictions)
            last = numbers[:, positions[LAST]]
            np.abs(error, out=increments[:, positions["absolute_error"]])
            naive = increments[:, positions["naive_absolute_error"]]
            np.fmax(np.abs(actual - last), 0.0, out=naive)  # 0 for the first
            if layout.central.level is not None:
                below, above = layout.central.reach(predictions)
                increments[:, positions["inside"]] = (error >= -below) & (error <= above)
            last[...] = actual
        else:
            is_listed = actual < layout.categories
            increments[:, positions["hits"]] = is_listed & (actual == predictions[RANKED[0]][:, :1])
    if layout.head.surprise is not None:
        surprise = outputs[layout.head.surprise]
        compared = comparable(layout.head, inputs[:, layout.columns], surprise)
        scored[ANOMALY] = found = score_surprises_of_rows(
            numbers[:, layout.anomaly], ring, numbers[:, INPUTS], compared.astype(np.float64)
        )
        ring[:, :-1] = ring[:, 1:]
        ring[:, -1] = compared
        increments[:, INPUTS] = 1
        increments[:, SURPRISE] = surprise
        increments[:, ALARMS] = found >= ALARM
    numbers[:, : increments.shape[1]] += increments
    if layout.targets:  # all of them have the same number of inputs
        full = np.flatnonzero(numbers[:, layout.block.start] == BLOCK)
        if len(full):
            layout.end_blocks(numbers, full)
    return scored, increments[:, 1:]


def _memory(rows: Outputs) -> NDArray[np.uint8]:
    """Returns the memory (rows, bytes) of contiguous rows."""
    return np.ndarray((len(rows), rows.itemsize), np.uint8, rows)
