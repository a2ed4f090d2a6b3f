"""A session's state as rows: zeros, stack, split, and to and from bytes.

Owns the layout of state in memory. Knows nothing of graphs' axes, of records or of stores.

A batch of states is one numpy array of a structured dtype, one row a session, one field a state tensor named by its
graph input. So rows are gathered, split and kept without a line of Python per tensor, and a row's bytes are its memory.
Whoever keeps them says whose they are (`StepModel.digest`), and vouches for them: a record has a checksum over all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import StatePair

State = NDArray[np.void]
"""(batch,) rows of a layout's dtype."""


class StateError(ValueError):
    """Bytes that are not a state of this layout."""


class Layout:
    """How the state tensors of one model lie in a row."""

    def __init__(self, pairs: Sequence[StatePair]) -> None:
        """Raises ValueError where a pair's `init` does not have its shape or type."""
        tensors = [(pair, pair.tensor(pair.input)) for pair in pairs]
        fields: list[Any] = [(tensor.name, tensor.dtype, tensor.inner) for _, tensor in tensors]
        self.dtype = np.dtype(fields)
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

    def stack(self, rows: Sequence[bytes]) -> State:
        """(len(rows),) the states whose memory these are, each a row's `tobytes()`. Raises StateError."""
        size = self.dtype.itemsize
        for place, row in enumerate(rows):
            if len(row) != size:
                raise StateError(f"state of row {place}: {len(row)} bytes long, expected {size}")
        return np.frombuffer(b"".join(rows), self.dtype)
