"""A session's state as rows: zeros, stack, split, and to and from bytes.

Owns the layout of state in memory and on the wire. Knows nothing of graphs' axes, of records or of stores.

A batch of states is one numpy array of a structured dtype, one row a session, one field a state tensor named by its
graph input. So rows are gathered, split and kept without a line of Python per tensor, and a row's bytes are its memory.
"""

import zlib
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from model.manifest import StatePair

State = NDArray[np.void]
"""(batch,) rows of a layout's dtype."""

_TAG = b"OWS\x01"  # Onward state, format 1
_LAYOUT_BYTES, _CRC_BYTES = 8, 4
_HEAD = len(_TAG) + _LAYOUT_BYTES + _CRC_BYTES


class StateError(ValueError):
    """Bytes that are not a state of this layout: foreign, cut short, or damaged."""


class Layout:
    """How the state tensors of one model lie in a row."""

    def __init__(self, pairs: Sequence[StatePair]) -> None:
        """Raises ValueError where a pair's `init` does not have its shape or type."""
        tensors = [(pair, pair.tensor(pair.input)) for pair in pairs]
        self.dtype = np.dtype([(tensor.name, np.dtype(tensor.dtype), tensor.inner) for _, tensor in tensors])
        self._id = blake2b(repr(self.dtype.descr).encode(), digest_size=_LAYOUT_BYTES).digest()
        self._tag, self._whole = _TAG + self._id, _HEAD + self.dtype.itemsize
        self._first = np.zeros(1, self.dtype)
        for pair, tensor in tensors:
            try:
                with np.errstate(over="ignore"):  # an overflow is not finite, and said below
                    init = np.asarray(pair.init, tensor.dtype)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"state {pair.input!r}: init is no {tensor.dtype}: {error}") from error
            if init.shape not in ((), tensor.inner):
                raise ValueError(f"state {pair.input!r}: init has shape {init.shape}, one row has {tensor.inner}")
            if not np.isfinite(init).all():
                raise ValueError(f"state {pair.input!r}: init is not finite")
            self._first[tensor.name] = init

    def initial(self, rows: int) -> State:
        """(rows,) the state of sessions that have seen nothing."""
        return np.repeat(self._first, rows)

    def to_bytes(self, row: np.void) -> bytes:
        """One row as bytes: tag and format, layout, checksum, memory."""
        return self.pack(row.tobytes())

    def pack(self, memory: bytes) -> bytes:
        """The same of a row's memory."""
        return self._tag + zlib.crc32(memory).to_bytes(_CRC_BYTES, "little") + memory

    def unpack(self, row: bytes) -> bytes:
        """The memory of a row that `to_bytes` wrote. Its checksum is not read: for bytes that another one vouches for.

        Raises StateError where it is another layout's, or not whole.
        """
        if fault := self._foreign(row):
            raise StateError(fault)
        return row[_HEAD:]

    def stack(self, rows: Sequence[bytes]) -> State:
        """(len(rows),) the states of rows that `to_bytes` wrote.

        Raises StateError, with the row's place, for the first that is not one.
        """
        bodies = []
        for place, row in enumerate(rows):
            if fault := self._fault(row):
                raise StateError(f"state of row {place}: {fault}")
            bodies.append(row[_HEAD:])
        return np.frombuffer(b"".join(bodies), self.dtype)

    def from_bytes(self, row: bytes) -> State:
        """(1,) the state that `to_bytes` wrote. Raises StateError."""
        return self.stack([row])

    def _fault(self, row: bytes) -> str | None:
        if fault := self._foreign(row):
            return fault
        if zlib.crc32(row[_HEAD:]) != int.from_bytes(row[_HEAD - _CRC_BYTES : _HEAD], "little"):
            return "checksum does not match"
        return None

    def _foreign(self, row: bytes) -> str | None:
        if len(row) == self._whole and row.startswith(self._tag):  # as nearly every one is
            return None
        if row[: len(_TAG)] != _TAG:
            return f"not a state of format {_TAG[-1]}"
        if row[len(_TAG) : len(_TAG) + _LAYOUT_BYTES] != self._id:
            return "written by a model with other state tensors"
        return f"{len(row)} bytes long, expected {self._whole}"
