"""The call of a model on a batch, with the states as rows of bytes; a worker makes thousands of calls a second."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model.runner import Outputs, StepModel
from onward.model.state import State

Inputs = NDArray[np.float32]
_FLOAT32 = np.dtype(np.float32)


class ModelCall:
    def __init__(self, model: StepModel, *, row_by_row: bool = False) -> None:
        """row_by_row: calls the model for each row alone, if its kernels' results depend on the rows beside it."""
        self._model, self._row_by_row = model, row_by_row
        self._is_float32 = all_float32(model.output_dtype) and all_float32(model.layout.dtype)

    def __call__(self, inputs: Inputs, sizes: Sequence[int], states: State) -> tuple[Outputs, State, list[bool]]:
        """Returns the outputs (rows, longest), the states after them (rows,), and whether each row is finite.

        inputs: (rows, longest, features); each row has as many steps as `sizes` says, then padding, whose outputs mean
        nothing. states: (rows,) before the inputs.
        """
        if self._row_by_row and len(sizes) > 1:
            slices = [slice(row, row + 1) for row in range(len(sizes))]
            parts = [self(inputs[row], sizes[row], states[row]) for row in slices]
            outputs = np.concatenate([part for part, _, _ in parts])
            return outputs, np.concatenate([part for _, part, _ in parts]), [is_finite for _, _, (is_finite,) in parts]
        outputs, states_after = self._model.run(inputs, np.array(sizes, np.int32), states)
        return outputs, states_after, _finite_rows(outputs, states_after, sizes)

    def step(self, inputs: Inputs, state: State) -> tuple[bytes, bytes, bool]:
        """Returns the bytes of the outputs and of the state after one step of one row, and whether they are finite.

        inputs: (1, features). state: (1,).
        """
        outputs, after = self._model.run_step(inputs, state)
        if self._is_float32:
            return outputs, after, b"\0" not in np.isfinite(np.frombuffer(outputs + after, _FLOAT32)).tobytes()
        is_finite = finite(np.frombuffer(outputs, self._model.output_dtype)) and finite(
            np.frombuffer(after, state.dtype)
        )
        return outputs, after, is_finite


def split(rows: State | Outputs) -> list[bytes]:
    """Returns the bytes of each row."""
    data, size = rows.tobytes(), rows.itemsize * (rows.size // len(rows))
    return [data[start : start + size] for start in range(0, len(data), size)]


def padded(row_inputs: Sequence[Inputs]) -> tuple[Inputs, list[int]]:
    """Returns all rows' inputs, each (steps, features), as one array (rows, longest, features), and their lengths."""
    sizes = [len(steps) for steps in row_inputs]
    longest = max(sizes)
    if min(sizes) == longest:
        return np.concatenate(row_inputs).reshape(len(row_inputs), longest, -1), sizes
    inputs = np.zeros((len(row_inputs), longest, row_inputs[0].shape[1]), np.float32)
    for row, steps in enumerate(row_inputs):
        inputs[row, : len(steps)] = steps
    return inputs, sizes


def _finite_rows(outputs: Outputs, states_after: State, sizes: Sequence[int]) -> list[bool]:
    """Returns whether each row is finite, padding left out. All are checked at once first: nearly always all are."""
    if finite(outputs) and finite(states_after):
        return [True] * len(sizes)
    return [finite(outputs[row, :size]) and finite(states_after[row : row + 1]) for row, size in enumerate(sizes)]


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Returns the parts, one after another, as one array.

    It is faster than `np.concatenate`, which looks at the fields of each structured array anew.
    """
    if len(parts) == 1:
        return parts[0]
    return np.frombuffer(b"".join([part.tobytes() for part in parts]), parts[0].dtype)


@cache
def all_float32(dtype: np.dtype[np.void]) -> bool:
    """Returns whether every field of structured rows is of 32-bit floats."""
    return {kind[0].base for kind in (dtype.fields or {}).values()} == {np.dtype(np.float32)}


def finite(rows: Outputs | State) -> bool:
    """Returns whether every number in structured rows is finite."""
    if all_float32(rows.dtype) and rows.flags.c_contiguous:
        return _are_finite(np.frombuffer(rows, _FLOAT32))
    return all(_are_finite(rows[name]) for name in rows.dtype.names or ())


def _are_finite(numbers: NDArray[Any]) -> bool:
    return b"\0" not in np.isfinite(numbers).tobytes()
