"""Counting many rows of one step each, as nearly all batches of a busy server are: the ledger's bits, for less."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import RANKED
from onward.model.runner import Outputs
from onward.model.scoring.conformal import RING_SIZE, anomalies_of_rows
from onward.model.scoring.layout import ALARM, ALARMS, ANOMALY, ERROR, INPUTS, LAST, SURPRISE, StatisticsLayout
from onward.model.state import State

TOGETHER = 4
"""From so many rows on numpy is quicker."""


def together(
    of: StatisticsLayout, kept: Sequence[bytes], inputs: NDArray[np.float32], before: State, outputs: Outputs
) -> tuple[Outputs, list[bytes]]:
    """As `RunningStatistics.score` of rows without intervals and with all targets. inputs: (rows, features)."""
    memory, rows = bytearray().join(kept), len(kept)
    numbers = np.ndarray((rows, of.row.size // 8), np.float64, memory, 0, (of.size, 8))
    gains = np.zeros((rows, 1 + len(of.sums)))
    by_name = {name: gains[:, of.places[name]] for name in of.names}
    told = np.empty(outputs.shape, of.answer)
    _memory(told)[:, : outputs.itemsize] = _memory(outputs)
    if of.targets:
        said = {name: before[held] for name, held in of.head.last.items()}
        actual = inputs[:, of.columns].astype(np.float64)
        by_name["predicted"][...] = 1
        if of.numbers:
            told[ERROR][:, 0] = error = actual - of.central.centre(said)
            last = numbers[:, of.places[LAST]]
            by_name["absolute_error"][...] = np.abs(error)
            by_name["naive_absolute_error"][...] = np.fmax(np.abs(actual - last), 0.0)  # 0 for the first
            if of.central.level is not None:
                below, above = of.central.reach(said)
                by_name["inside"][...] = (error >= -below) & (error <= above)
            last[...] = actual
        else:
            by_name["hits"][...] = actual == said[RANKED[0]][:, :1]
    if of.head.surprise is not None:
        surprise = outputs[of.head.surprise][:, 0]
        rings = np.ndarray((rows, RING_SIZE), np.float32, memory, of.ring.start, (of.size, 4))
        found = anomalies_of_rows(rings, numbers[:, INPUTS], surprise)
        told[ANOMALY][:, 0] = found
        gains[:, INPUTS], gains[:, SURPRISE], gains[:, ALARMS] = 1, surprise, found >= ALARM
    numbers[:, : gains.shape[1]] += gains
    data = bytes(memory)
    return told, [data[start : start + of.size] for start in range(0, len(data), of.size)]


def _memory(rows: Outputs) -> NDArray[np.uint8]:
    """(rows, bytes) of contiguous rows of one step."""
    return np.ndarray((len(rows), rows.itemsize), np.uint8, rows)
