"""StepModel: one bundle's graph, run on batches of rows.

Owns the ONNX Runtime session and the placing of axes. Knows nothing of sessions, stores or HTTP. ONNX Runtime itself
is imported with the first model: it starts a thread, and a service imports this before it forks its workers.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onward.model.errors import BundleError
from onward.model.manifest import BATCH, TIME, Manifest, Tensor
from onward.model.state import Layout, State

if TYPE_CHECKING:
    import onnxruntime as ort

Outputs = NDArray[np.void]
"""Rows of a model's output dtype: one field an output of the graph."""


class StepModel:
    """`(y_t, s_t) = R(x_t, s_{t-1})` for many rows and many steps in one call. Open it after a fork."""

    def __init__(self, file: Path, manifest: Manifest, *, graph: bytes | None = None, threads: int = 1) -> None:
        """Opens the graph in `file` and holds it to its manifest.

        graph: the content of `file` where it was read before; the file is not read again.
        Raises BundleError where the file is no graph, or its tensors are not those that the manifest declares.
        """
        import onnxruntime as ort  # noqa: PLC0415  (see above)

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is raised, with its file
        try:
            self._session = ort.InferenceSession(
                str(file) if graph is None else graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise BundleError(file, f"ONNX Runtime cannot open it: {error}") from error
        self.manifest = manifest
        _hold_to_manifest(file, self._session, manifest)
        try:
            self.layout = Layout(manifest.state)
        except ValueError as error:
            raise BundleError(file.with_name("manifest.json"), str(error)) from error
        fields: list[Any] = [(out.name, out.dtype, out.inner) for out in manifest.outputs]
        self.output_dtype = np.dtype(fields)
        meaning = (manifest.sha256, self.layout.dtype.descr, self.output_dtype.descr)
        self.digest = sha256(repr(meaning).encode()).digest()
        """Of the graph and of how its states and outputs lie in memory: bytes of one mean nothing to another."""
        self._names = [out.name for out in manifest.outputs] + [pair.output for pair in manifest.state]
        # transposes are found once: finding them for each call would cost a small model more than running does
        self._input, self._lengths = manifest.inputs[0].name, manifest.lengths.name
        self._placed = _into(manifest.inputs[0].shape, (BATCH, TIME))
        self._predicted = [self.features.index(name) for name in manifest.head.targets if name in self.features]
        self._in_order = list(range(len(self.features)))
        self._others = [self.features.index(name) for name in manifest.future_covariates]
        self._outputs = [(out.name, _out_of(out.shape, (BATCH, TIME))) for out in manifest.outputs]
        self._states = [
            (pair.input, _into(pair.shape, (BATCH,)), _out_of(pair.shape, (BATCH,))) for pair in manifest.state
        ]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of a step's numbers, in order."""
        return self.manifest.feature_names

    def run(self, inputs: NDArray[np.float32], lengths: NDArray[np.int32], state: State) -> tuple[Outputs, State]:
        """Advances every row by its own number of steps.

        inputs: (batch, time, features), in the client's units, categories by their places and missing values NaN; a
        row's steps beyond its length are padding, any numbers.
        lengths: (batch,), each from 1 to time. state: (batch,) of the layout's dtype.

        Returns outputs (batch, time), where a row's steps beyond its length mean nothing, and the new state (batch,).
        """
        feeds = {self._input: np.ascontiguousarray(inputs.transpose(self._placed)), self._lengths: lengths}
        for name, placed, _ in self._states:
            feeds[name] = np.ascontiguousarray(state[name].transpose(placed))
        results = self._session.run(self._names, feeds)
        said, states = results[: len(self._outputs)], results[len(self._outputs) :]
        if inputs.shape[:2] == (1, 1):  # each tensor's memory is its field's, wherever its axes of one place lie
            told = np.ndarray((1, 1), self.output_dtype, _joined(said))
            return told, np.ndarray(1, self.layout.dtype, _joined(states))
        outputs, after = np.empty(inputs.shape[:2], self.output_dtype), np.empty(len(inputs), self.layout.dtype)
        for (name, back), result in zip(self._outputs, said, strict=True):
            outputs[name] = result.transpose(back)
        for (name, _, back), result in zip(self._states, states, strict=True):
            after[name] = result.transpose(back)
        return outputs, after

    def run_row(self, inputs: NDArray[np.float32], state: State) -> tuple[Outputs, State]:
        """A batch of one: inputs (time, features), state (1,) -> outputs (time,), state (1,)."""
        outputs, after = self.run(inputs[np.newaxis], np.array([len(inputs)], np.int32), state)
        return outputs[0], after

    def last_prediction(self, state: State) -> Outputs:
        """(batch,) what the state says of the next input, where the model keeps it (`head.last`).

        Outputs that are no prediction, such as the surprise, are zero.
        """
        predictions = np.zeros(len(state), self.output_dtype)
        for output, held in self.manifest.head.last.items():
            predictions[output] = state[held]
        return predictions

    def feedback(self, predictions: Outputs) -> NDArray[np.float32]:
        """(..., targets) the inputs that a rollout takes predictions for."""
        head = self.manifest.head
        return np.asarray(predictions[head.outputs[0]][..., : len(head.targets)], np.float32)

    def next_inputs(self, said: NDArray[np.float32], known: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(rows, features): what is said of the targets (rows, targets), each in its own column.

        known: (rows, others) of the features that are not predicted, in the order of `manifest.future_covariates`.
        """
        if self._predicted == self._in_order:
            return said
        inputs = np.empty((len(said), len(self.features)), np.float32)
        inputs[:, self._predicted] = said
        if known is not None:
            inputs[:, self._others] = known
        return inputs


def _joined(tensors: Sequence[NDArray[Any]]) -> bytearray:
    """Their memory, one behind the other."""
    return bytearray().join([tensor.tobytes() for tensor in tensors])


def _into(shape: Sequence[int | str], first: tuple[str, ...]) -> tuple[int, ...]:
    """The transpose from rows, whose axes are `first` and then the others, to a tensor of this shape."""
    others = iter(range(len(first), len(shape)))
    return tuple(first.index(axis) if isinstance(axis, str) else next(others) for axis in shape)


def _out_of(shape: Sequence[int | str], first: tuple[str, ...]) -> tuple[int, ...]:
    """The transpose back."""
    return tuple(int(place) for place in np.argsort(_into(shape, first)))


_DTYPES = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "uint8": "tensor(uint8)",
}


def _hold_to_manifest(file: Path, session: "ort.InferenceSession", manifest: Manifest) -> None:
    into = [*manifest.inputs, manifest.lengths, *(pair.tensor(pair.input) for pair in manifest.state)]
    out = [*manifest.outputs, *(pair.tensor(pair.output) for pair in manifest.state)]
    for side, declared, found in (("input", into, session.get_inputs()), ("output", out, session.get_outputs())):
        _same_tensors(file, side, declared, {node.name: node for node in found})


def _same_tensors(file: Path, side: str, declared: Sequence[Tensor], found: "dict[str, ort.NodeArg]") -> None:
    if missing := [tensor.name for tensor in declared if tensor.name not in found]:
        raise BundleError(file, f"the graph has no {side} {', '.join(missing)} that the manifest declares")
    if extra := sorted(set(found) - {tensor.name for tensor in declared}):
        raise BundleError(file, f"the graph has {side} {', '.join(extra)} that the manifest does not declare")
    for tensor in declared:
        node = found[tensor.name]
        if node.type != _DTYPES[tensor.dtype]:
            raise BundleError(file, f"{side} {tensor.name!r} is {node.type}, the manifest says {tensor.dtype}")
        fits = len(node.shape) == len(tensor.shape) and all(
            not isinstance(have, int) if isinstance(want, str) else have in (want, None) or isinstance(have, str)
            for want, have in zip(tensor.shape, node.shape, strict=True)
        )
        if not fits:
            raise BundleError(
                file, f"{side} {tensor.name!r} has shape {node.shape}, the manifest says {list(tensor.shape)}"
            )
