"""Recurrent states as rows of a structured array: initial values, stacking, and conversion from bytes.

Owns the layout of state in memory. Knows nothing of graphs' axes, of records or of stores.

A batch of states is one numpy array of a structured dtype: a row per session, a field per state tensor, named by its
graph input. So rows are gathered, split and stored without Python code per tensor, and a row's bytes are its memory.
The bytes do not identify their model and have no checksum: a record holds both (`StepModel.digest`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import Nested, StatePair, Tensor, part_label

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
        self._fields = dict[str, tuple[np.dtype[Any], int]]()
        """The dtype and the offset in a row of each tensor, or of each part of a tensor that has parts, by label."""
        self._initial = np.zeros(1, self.dtype)
        offset = 0
        for pair, tensor in tensors:
            self._initial[tensor.name] = _initial_value(tensor, pair.init)
            for label, inner in _parts(pair, tensor):
                self._fields[label] = np.dtype((tensor.dtype, inner)), offset
                offset += self._fields[label][0].itemsize

    def view(self, fields: Mapping[str, tuple[str, tuple[int, ...]]]) -> np.dtype[np.void]:
        """Returns a dtype to view rows with: by field, the label of a tensor or part (see `parts`) and a shape."""
        return np.dtype(
            {
                "names": list(fields),
                "formats": [(self._fields[label][0].base, shape) for label, shape in fields.values()],
                "offsets": [self._fields[label][1] for label, _ in fields.values()],
                "itemsize": self.dtype.itemsize,
            }
        )

    def parts(self, state: State) -> State:
        """Returns a view of the rows with a field for each tensor, or for each part of a tensor that has parts.

        Fields are named by `onward.model.manifest.part_label`.
        """
        return state.view(self.view({label: (label, dtype.shape) for label, (dtype, _) in self._fields.items()}))

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


def _parts(pair: StatePair, tensor: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the label and the inner shape of each part, or of a tensor without parts."""
    if not pair.parts:
        return [(pair.input, tensor.inner)]
    return [(part_label(pair.input, part.name), (part.size,)) for part in pair.parts]


def _initial_value(tensor: Tensor, init: float | Nested) -> NDArray[Any]:
    try:
        with np.errstate(over="ignore"):  # an overflow is reported below, as it is not finite
            value = np.asarray(init, tensor.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"state {tensor.name!r}: init is no {tensor.dtype}: {error}") from error
    if value.shape not in ((), tensor.inner):
        raise ValueError(f"state {tensor.name!r}: init has shape {value.shape}, one row has {tensor.inner}")
    if not np.isfinite(value).all():
        raise ValueError(f"state {tensor.name!r}: init is not finite")
    return value
