"""The records of many sessions of one model as columns: one array, whose rows are the records' parts of fixed layout.

Owns how a step advances them all together. It gives the same bits as `Record.advanced` row by row.
"""

from collections.abc import Sequence
from random import getrandbits

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from onward.model.inputs import InputArray
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.accuracy import Accuracy
from onward.model.scoring.central_interval import Floats
from onward.model.scoring.surprise import update_columns
from onward.model.state import State
from onward.service.store.record import HEAD, HEAD_FIELDS, MAGIC, REVISION, Record

Columns = NDArray[np.void]
"""Rows (rows,) of `RecordColumns.dtype`."""


class RecordColumns:
    """The columns of one model's records, for sessions without intervals."""

    def __init__(self, model: StepModel, accuracy: Accuracy) -> None:
        self._accuracy, self._surprise, self._state = accuracy, model.manifest.head.surprise, model.layout.dtype
        self.dtype = np.dtype([*HEAD_FIELDS, ("accuracy", accuracy.columns_dtype), ("state", self._state)])
        self.sizes = (accuracy.columns_dtype.itemsize, self._state.itemsize)
        """The bytes of the statistics and of the state of a record that fits in."""
        self._state_start = HEAD.size + self.sizes[0]
        assert self.dtype.itemsize == self._state_start + self.sizes[1]

    def joined(self, records: Sequence[Record]) -> Columns:
        """Returns the records as one array, which can be written to."""
        size = self.dtype.itemsize
        return np.frombuffer(bytearray().join([record.data[:size] for record in records]), self.dtype)

    def states(self, columns: Columns) -> State:
        """Returns the states (rows,)."""
        return np.ndarray(len(columns), self._state, columns, self._state_start, columns.strides)

    def advance(
        self, columns: Columns, inputs: InputArray, outputs: Outputs, states: State, now: float
    ) -> tuple[Outputs, Floats]:
        """Advances the columns by one step of each row.

        inputs: (rows, features). outputs, states: (rows,) after them. now: the time in seconds since 1970 UTC. Returns
        the outputs with the scores of the inputs, and the increments (rows, sums) of the statistics' sums.
        """
        rows, size = len(columns), self.dtype.itemsize
        scored = self._accuracy.score_columns(columns, HEAD.size, inputs, outputs)
        after = np.ndarray((rows, states.itemsize), np.uint8, states)  # numpy copies structured rows field by field
        np.ndarray((rows, states.itemsize), np.uint8, columns, self._state_start, (size, 1))[...] = after
        if self._surprise is not None:
            means = update_columns(
                columns["surprises"], columns["surprise_mean"], columns["surprise_recent"], outputs[self._surprise]
            )
            columns["surprises"], columns["surprise_mean"], columns["surprise_recent"] = means
        columns["revision"] = np.frombuffer(getrandbits(64 * rows).to_bytes(8 * rows, "little"), np.uint64)
        columns["step"] += 1
        columns["last_step_at"] = now
        columns["expires_at"] = columns["ttl_s"] + now
        return scored

    def records(self, columns: Columns, before: Sequence[Record], requests: Sequence[bytes | None]) -> list[Record]:
        """Returns the rows as records. before: the records that they advance. requests: None stays as it was."""
        size = self.dtype.itemsize
        rests = [record.data[size:] for record in before]
        for row, changed in enumerate(requests):
            if changed is not None:
                rests[row], columns["requests_bytes"][row] = _with_requests(before[row], changed), len(changed)
        data = columns.view(np.uint8).data
        records, start = [], 0
        for rest in rests:
            end = start + size
            body = data[start + REVISION.start : end]  # all that the checksum covers
            checksum = crc32(rest, crc32(body)).to_bytes(4, "little")
            records.append(Record(b"".join((MAGIC, checksum, body, rest))))
            start = end
        return records


def _with_requests(record: Record, requests: bytes) -> bytes:
    """Returns the part of variable length with other requests."""
    accuracy, state, tenant, model, _, history = record.sizes
    start = HEAD.size + accuracy + state
    return record.data[start : start + tenant + model] + requests + record.data[len(record.data) - history :]
