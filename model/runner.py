"""StepModel: one bundle's graph, run on batches of rows.

Owns the ONNX Runtime session and the placing of axes. Knows nothing of sessions, stores or HTTP.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model.manifest import BATCH, TIME, BundleError, Manifest, Tensor
from model.state import Layout, State

Outputs = NDArray[np.void]
"""Rows of a model's output dtype: one field an output of the graph."""


class StepModel:
    """`(y_t, s_t) = R(x_t, s_{t-1})` for many rows and many steps in one call. Open it after a fork."""

    def __init__(self, file: Path, manifest: Manifest, *, threads: int = 1) -> None:
        """Opens the graph in `file` and holds it to its manifest.

        Raises BundleError where the file is no graph, or its tensors are not those that the manifest declares.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is raised, with its file
        try:
            self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise BundleError(file, f"ONNX Runtime cannot open it: {error}") from error
        self.manifest = manifest
        self.digest = bytes.fromhex(manifest.sha256)
        _hold_to_manifest(file, self._session, manifest)
        try:
            self.layout = Layout(manifest.state)
        except ValueError as error:
            raise BundleError(file.with_name("manifest.json"), str(error)) from error
        self.output_dtype = np.dtype([(out.name, np.dtype(out.dtype), out.inner) for out in manifest.outputs])
        self._names = [out.name for out in manifest.outputs] + [pair.output for pair in manifest.state]
        self._state_axes = [_axis(pair.tensor(pair.input), BATCH) for pair in manifest.state]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of a step's numbers, in order."""
        return self.manifest.names

    def run(self, inputs: NDArray[np.float32], lengths: NDArray[np.int32], state: State) -> tuple[Outputs, State]:
        """Advances every row by its own number of steps.

        inputs: (batch, time, features), in the client's units, categories by their places and missing values NaN; a
        row's steps beyond its length are padding, any numbers.
        lengths: (batch,), each from 1 to time. state: (batch,) of the layout's dtype.

        Returns outputs (batch, time), where a row's steps beyond its length mean nothing, and the new state (batch,).
        """
        source, manifest = inputs, self.manifest
        feeds = {manifest.inputs[0].name: _placed(source, manifest.inputs[0]), manifest.lengths.name: lengths}
        for pair, axis in zip(manifest.state, self._state_axes, strict=True):
            feeds[pair.input] = np.ascontiguousarray(np.moveaxis(state[pair.input], 0, axis))
        results = self._session.run(self._names, feeds)
        outputs = np.empty(inputs.shape[:2], self.output_dtype)
        for tensor, result in zip(manifest.outputs, results, strict=False):
            outputs[tensor.name] = np.moveaxis(result, (_axis(tensor, BATCH), _axis(tensor, TIME)), (0, 1))
        after = np.empty(len(state), self.layout.dtype)
        rest = results[len(manifest.outputs) :]
        for pair, axis, result in zip(manifest.state, self._state_axes, rest, strict=True):
            after[pair.input] = np.moveaxis(result, axis, 0)
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

    def fed_back(self, predictions: Outputs) -> NDArray[np.float32]:
        """(..., targets) the inputs that a rollout takes predictions for."""
        head = self.manifest.head
        return np.asarray(predictions[head.outputs[0]][..., : len(head.targets)], np.float32)


def _axis(tensor: Tensor, name: str) -> int:
    return tensor.shape.index(name)


def _placed(rows: NDArray[np.float32], tensor: Tensor) -> NDArray[np.float32]:
    """(batch, time, ...) with its axes where the graph's tensor has them."""
    return np.ascontiguousarray(np.moveaxis(rows, (0, 1), (_axis(tensor, BATCH), _axis(tensor, TIME))))


_DTYPES = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "uint8": "tensor(uint8)",
}


def _hold_to_manifest(file: Path, session: ort.InferenceSession, manifest: Manifest) -> None:
    into = [*manifest.inputs, manifest.lengths, *(pair.tensor(pair.input) for pair in manifest.state)]
    out = [*manifest.outputs, *(pair.tensor(pair.output) for pair in manifest.state)]
    for side, declared, found in (("input", into, session.get_inputs()), ("output", out, session.get_outputs())):
        _same_tensors(file, side, declared, {node.name: node for node in found})


def _same_tensors(file: Path, side: str, declared: Sequence[Tensor], found: dict[str, ort.NodeArg]) -> None:
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
