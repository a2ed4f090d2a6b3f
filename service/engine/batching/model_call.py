"""The call of a model, as a worker makes it thousands of times a second: on states as rows of bytes."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from onward.model.runner import Outputs, StepModel
from onward.model.state import State

Inputs = NDArray[np.float32]
_FLOAT32 = np.dtype(np.float32)


class Caller:
    def __init__(self, model: StepModel, *, alone: bool = False) -> None:
        """alone: row by row, for kernels whose answers depend on the rows beside them."""
        self._model, self._alone = model, alone
        self._bytes = model.layout.dtype.itemsize

    def __call__(self, inputs: Inputs, sizes: Sequence[int], states: State) -> tuple[Outputs, State, list[bool]]:
        """inputs: (rows, longest, features), of which the first `sizes` of each row count. states: (rows,) before them.

        Returns outputs (rows, longest), where what lies beyond a row's own steps means nothing, the states after them
        (rows,), and of each row whether it has finite numbers only.
        """
        if self._alone and len(sizes) > 1:
            each = [slice(row, row + 1) for row in range(len(sizes))]
            parts = [self(inputs[row], sizes[row], states[row]) for row in each]
            outputs = np.concatenate([part for part, _, _ in parts])
            return outputs, np.concatenate([part for _, part, _ in parts]), [sound for _, _, (sound,) in parts]
        outputs, after = self._model.run(inputs, np.array(sizes, np.int32), states)
        return outputs, after, _sound(outputs, after, sizes)

    def memories(self, states: State) -> list[bytes]:
        data = states.tobytes()
        return [data[start : start + self._bytes] for start in range(0, len(data), self._bytes)]


def padded(taken: Sequence[Inputs]) -> tuple[Inputs, list[int]]:
    """Of each row its inputs (steps, features), as one array (rows, longest, features), and how many each has."""
    sizes = [len(steps) for steps in taken]
    longest = max(sizes)
    if min(sizes) == longest:
        return np.concatenate(taken).reshape(len(taken), longest, -1), sizes
    inputs = np.zeros((len(taken), longest, taken[0].shape[1]), np.float32)
    for row, steps in enumerate(taken):
        inputs[row, : len(steps)] = steps
    return inputs, sizes


def _sound(outputs: Outputs, after: State, sizes: Sequence[int]) -> list[bool]:
    """Nearly always all are, which is seen at once; padding and the rows at fault are only then told apart."""
    if finite(outputs) and finite(after):
        return [True] * len(sizes)
    return [finite(outputs[row, :size]) and finite(after[row : row + 1]) for row, size in enumerate(sizes)]


def joined(parts: Sequence[Outputs]) -> Outputs:
    """One after another; numpy's own way with structured arrays looks at each part's fields anew."""
    if len(parts) == 1:
        return parts[0]
    return np.frombuffer(b"".join([part.tobytes() for part in parts]), parts[0].dtype)


@cache
def all_float32(dtype: np.dtype[np.void]) -> bool:
    """Whether structured rows hold such numbers only."""
    return {kind[0].base for kind in (dtype.fields or {}).values()} == {np.dtype(np.float32)}


def finite(rows: Outputs | State) -> bool:
    """Whether every number in structured rows is finite."""
    if all_float32(rows.dtype) and rows.flags.c_contiguous:
        sound = np.isfinite(np.frombuffer(rows, _FLOAT32))
        return int(np.count_nonzero(sound)) == sound.size
    return all(bool(np.isfinite(rows[name]).all()) for name in rows.dtype.names or ())
