"""Recurrent states as rows of a structured array: initial values, stacking, and conversion from bytes.

Owns the layout of state in memory. Knows nothing of graphs' axes, of records or of stores.

A batch of states is one numpy array of a structured dtype: a row per session, a field per state tensor, named by its
graph input. So rows are gathered, split and stored without Python code per tensor, and a row's bytes are its memory.
The bytes do not identify their model and have no checksum: a record holds both (`StepModel.digest`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import StatePair

State = NDArray[np.void]
"""Rows (batch,) of a layout's dtype."""


class StateError(ValueError):
    """The bytes are not a state of this layout."""


class Layout:
    """The layout of one model's state tensors in a row."""

    def __init__(self, pairs: Sequence[StatePair]) -> None:
        """Raises ValueError if a pair's `init` does not have its shape or type."""
        tensors = [(pair, pair.tensor(pair.input)) for pair in pairs]
        fields: list[Any] = [(tensor.name, tensor.dtype, tensor.inner) for _, tensor in tensors]
        self.dtype = np.dtype(fields)
        self._initial = np.zeros(1, self.dtype)
        for pair, tensor in tensors:
            try:
                with np.errstate(over="ignore"):  # an overflow is reported below, as it is not finite
                    init = np.asarray(pair.init, tensor.dtype)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"state {pair.input!r}: init is no {tensor.dtype}: {error}") from error
            if init.shape not in ((), tensor.inner):
                raise ValueError(f"state {pair.input!r}: init has shape {init.shape}, one row has {tensor.inner}")
            if not np.isfinite(init).all():
                raise ValueError(f"state {pair.input!r}: init is not finite")
            self._initial[tensor.name] = init

    def initial(self, rows: int) -> State:
        """Returns the state (rows,) of sessions before their first step."""
        return np.repeat(self._initial, rows)

    def stack(self, rows: Sequence[bytes]) -> State:
        """Returns states (len(rows),) from each row's `tobytes()`. Raises StateError if a row has another length."""
        size = self.dtype.itemsize
        for index, row in enumerate(rows):
            if len(row) != size:
                raise StateError(f"state of row {index}: {len(row)} bytes long, expected {size}")
        return np.frombuffer(b"".join(rows), self.dtype)
