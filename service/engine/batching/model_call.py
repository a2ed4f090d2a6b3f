"""The call of a model on a batch, with the states as rows of bytes; a worker makes thousands of calls a second."""

from collections.abc import Sequence

import numpy as np

from onward.model.finite import finite
from onward.model.inputs import InputArray
from onward.model.runner import Outputs, StepModel
from onward.model.state import State


class ModelCall:
    def __init__(self, model: StepModel, *, row_by_row: bool = False) -> None:
        """row_by_row: calls the model for each row alone, if its kernels' results depend on the rows beside it."""
        self._model, self._row_by_row = model, row_by_row

    def __call__(self, inputs: InputArray, sizes: Sequence[int], states: State) -> tuple[Outputs, State, list[bool]]:
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


def split(rows: State | Outputs) -> list[bytes]:
    """Returns the bytes of each row."""
    data, size = rows.tobytes(), rows.itemsize * (rows.size // len(rows))
    return [data[start : start + size] for start in range(0, len(data), size)]


def padded(row_inputs: Sequence[InputArray]) -> tuple[InputArray, list[int]]:
    """Returns all rows' inputs, each (steps, features), as one array (rows, longest, features), and their lengths."""
    sizes = [len(steps) for steps in row_inputs]
    longest = max(sizes)
    if min(sizes) == longest:
        return np.concatenate(row_inputs).reshape(len(row_inputs), longest, -1), sizes
    inputs: InputArray = np.zeros((len(row_inputs), longest, row_inputs[0].shape[1]), row_inputs[0].dtype)
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
