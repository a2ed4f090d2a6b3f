"""The model runner: one bundle's graph, run on batches of rows.

Owns the ONNX Runtime session and the order of axes. Knows nothing of sessions, stores or HTTP. ONNX Runtime is imported
with the first model: it starts a thread, and the service imports this module before it forks its workers.
"""

import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onward.model.errors import BundleError
from onward.model.finite import common_float, finite
from onward.model.inputs import InputArray, InputDtype
from onward.model.manifest import BATCH, TIME, Manifest, Tensor
from onward.model.state import Layout, State
from onward.model.step_buffers import StepBuffers

if TYPE_CHECKING:
    import onnxruntime as ort

Outputs = NDArray[np.void]
"""Rows of a model's output dtype, which has one field per output of the graph."""


class StepModel:
    """`(y_t, s_t) = R(x_t, s_{t-1})` for many rows and many steps in one call. Open it after a fork."""

    def __init__(self, file: Path, manifest: Manifest, *, graph: bytes | None = None, threads: int = 1) -> None:
        """Opens the graph in `file` and compares it with its manifest.

        graph: the content of `file` if it was read before; the file is then not read again. Raises BundleError if the
        file is no graph, or if its tensors are not those that the manifest declares.
        """
        import onnxruntime as ort  # noqa: PLC0415  (see the module's docstring)

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # errors are raised, with the file's name
        try:
            self._session = ort.InferenceSession(
                str(file) if graph is None else graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise BundleError(file, f"ONNX Runtime cannot open it: {error}") from error
        self.manifest, self.features = manifest, manifest.feature_names
        """`features`: the names of the features, in the order of a step's numbers."""
        _compare_with_manifest(file, self._session, manifest)
        try:
            self.layout = Layout(manifest.state)
        except ValueError as error:
            raise BundleError(file.with_name("manifest.json"), str(error)) from error
        self.input_dtype: InputDtype = np.dtype(manifest.dtype)
        """float64 where float32 has too few digits for the inputs; predictions are then float64 too."""
        fields: list[Any] = [(out.name, out.dtype, out.inner) for out in manifest.outputs]
        self.output_dtype = np.dtype(fields)
        self._is_float32 = {common_float(self.output_dtype), common_float(self.layout.dtype)} == {np.dtype(np.float32)}
        meaning = (manifest.sha256, self.layout.dtype.descr, self.output_dtype.descr)
        self.digest = sha256(repr(meaning).encode()).digest()
        """The digest of the graph and of the memory layout of its states and outputs, which stored bytes depend on."""
        inner = {out.name: out.inner for out in manifest.outputs}
        self.stored_prediction_dtype = self.layout.view(
            {name: (stored.label, inner[name]) for name, stored in manifest.head.last.items()}
        )
        self._names = [out.name for out in manifest.outputs] + [pair.output for pair in manifest.state]
        # transposes are computed once: to compute them for each call would cost more than a small model's run
        self.has_plain_numbers = all(
            feature.kind == "number" and feature.limits is None for feature in manifest.features
        )
        """True if every feature is a number without limits, so that most inputs are plain lists of numbers."""
        above = [-math.inf if feature.transform is None else feature.transform.above for feature in manifest.features]
        self.above: InputArray | None = None if set(above) == {-math.inf} else np.array(above, self.input_dtype)
        """The numbers (features,) that inputs must be above; None if they may be any numbers."""
        self._input, self._lengths = manifest.inputs[0].name, manifest.lengths.name
        self._input_transpose = _to_tensor(manifest.inputs[0].shape, (BATCH, TIME))
        self._step_buffers = list[StepBuffers]()
        """Those that no thread uses at present."""
        self._target_columns = [self.features.index(name) for name in manifest.head.targets if name in self.features]
        self._all_columns = list(range(len(self.features)))
        self._future_columns = [self.features.index(name) for name in manifest.future_covariates]
        self._outputs = [(out.name, _to_rows(out.shape, (BATCH, TIME))) for out in manifest.outputs]
        self._states = [
            (pair.input, _to_tensor(pair.shape, (BATCH,)), _to_rows(pair.shape, (BATCH,))) for pair in manifest.state
        ]

    def run(self, inputs: InputArray, lengths: NDArray[np.int32], state: State) -> tuple[Outputs, State]:
        """Advances every row by its own number of steps.

        inputs: (batch, time, features) in the client's units, categories as indices and missing values as NaN; steps
        beyond a row's length are padding, with any numbers. lengths: (batch,), each from 1 to time. state: (batch,) of
        the layout's dtype.

        Returns outputs (batch, time), which are undefined beyond a row's length, and the new state (batch,).
        """
        if inputs.shape[:2] == (1, 1):
            row, after, _ = self.run_step(inputs[0], state.tobytes())
            return np.ndarray((1, 1), self.output_dtype, bytearray(row)), np.ndarray(
                1, self.layout.dtype, bytearray(after)
            )
        feeds = {self._input: np.ascontiguousarray(inputs.transpose(self._input_transpose)), self._lengths: lengths}
        for name, to_tensor, _ in self._states:
            feeds[name] = np.ascontiguousarray(state[name].transpose(to_tensor))
        results = self._session.run(self._names, feeds)
        tensors, states = results[: len(self._outputs)], results[len(self._outputs) :]
        outputs = np.empty(inputs.shape[:2], self.output_dtype)
        for (name, to_rows), result in zip(self._outputs, tensors, strict=True):
            outputs[name] = result.transpose(to_rows)
        if len(states) == 1:
            rows = np.ascontiguousarray(states[0].transpose(self._states[0][2]))  # a copy only if axes must move
            return outputs, np.ndarray(len(inputs), self.layout.dtype, rows)
        states_after = np.empty(len(inputs), self.layout.dtype)
        for (name, _, to_rows), result in zip(self._states, states, strict=True):
            states_after[name] = result.transpose(to_rows)
        return outputs, states_after

    def run_step(self, inputs: InputArray, state: bytes) -> tuple[bytes, bytes, bool]:
        """Advances one row by one step: inputs (1, features), and the bytes of the state.

        Returns the bytes of the outputs and of the state after them, in the layouts of `output_dtype` and of
        `layout.dtype`, and whether all their numbers are finite.
        """
        try:
            buffers = self._step_buffers.pop()
        except IndexError:  # each is in use, or there is none yet
            buffers = StepBuffers(self._session, self.manifest)
        outputs, after = buffers.run(inputs, state)
        self._step_buffers.append(buffers)
        if self._is_float32:  # both at once, at less cost
            return outputs, after, b"\0" not in np.isfinite(np.frombuffer(outputs + after, np.float32)).tobytes()
        is_finite = finite(np.frombuffer(outputs, self.output_dtype)) and finite(
            np.frombuffer(after, self.layout.dtype)
        )
        return outputs, after, is_finite

    def run_row(self, inputs: InputArray, state: State) -> tuple[Outputs, State]:
        """Advances a batch of one row: inputs (time, features), state (1,) -> outputs (time,), state (1,)."""
        outputs, after = self.run(inputs[np.newaxis], np.array([len(inputs)], np.int32), state)
        return outputs[0], after

    def stored_prediction(self, state: State) -> Outputs:
        """Returns the predictions (batch,) of the next input that the states hold: a view with a field per output."""
        return state.view(self.stored_prediction_dtype)

    def last_prediction(self, state: State) -> Outputs:
        """Returns the predictions (batch,) of the next input that the states hold (`head.last`), as outputs of a step.

        Outputs that the state does not hold, such as the surprise, are zero.
        """
        predictions, stored = np.zeros(len(state), self.output_dtype), self.stored_prediction(state)
        for name in self.manifest.head.last:
            predictions[name] = stored[name]
        return predictions

    def feedback(self, predictions: Outputs) -> InputArray:
        """Returns the target values (..., targets) that a rollout feeds back for predictions (...)."""
        head = self.manifest.head
        return np.asarray(predictions[head.outputs[0]][..., : len(head.targets)], self.input_dtype)

    def next_inputs(self, targets: InputArray, future: InputArray | None = None) -> InputArray:
        """Returns inputs (rows, features) with the values of the targets (rows, targets) in their columns.

        future: (rows, covariates), the values of `manifest.future_covariates`.
        """
        if self._target_columns == self._all_columns:
            return targets
        inputs = np.empty((len(targets), len(self.features)), self.input_dtype)
        inputs[:, self._target_columns] = targets
        if future is not None:
            inputs[:, self._future_columns] = future
        return inputs


def _to_tensor(shape: Sequence[int | str], first: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the transpose from rows, whose axes are `first` and then the rest, to a tensor of this shape."""
    rest = iter(range(len(first), len(shape)))
    return tuple(first.index(axis) if isinstance(axis, str) else next(rest) for axis in shape)


def _to_rows(shape: Sequence[int | str], first: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the transpose from a tensor of this shape back to rows."""
    return tuple(int(axis) for axis in np.argsort(_to_tensor(shape, first)))


_DTYPES = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "uint8": "tensor(uint8)",
}


def _compare_with_manifest(file: Path, session: "ort.InferenceSession", manifest: Manifest) -> None:
    into = [*manifest.inputs, manifest.lengths, *(pair.tensor(pair.input) for pair in manifest.state)]
    out = [*manifest.outputs, *(pair.tensor(pair.output) for pair in manifest.state)]
    for side, declared, found in (("input", into, session.get_inputs()), ("output", out, session.get_outputs())):
        _compare_tensors(file, side, declared, {node.name: node for node in found})


def _compare_tensors(file: Path, side: str, declared: Sequence[Tensor], found: "dict[str, ort.NodeArg]") -> None:
    if missing := [tensor.name for tensor in declared if tensor.name not in found]:
        raise BundleError(file, f"the graph has no {side} {', '.join(missing)} that the manifest declares")
    if extra := sorted(set(found) - {tensor.name for tensor in declared}):
        raise BundleError(file, f"the graph has {side} {', '.join(extra)} that the manifest does not declare")
    for tensor in declared:
        node = found[tensor.name]
        if node.type != _DTYPES[tensor.dtype]:
            raise BundleError(file, f"{side} {tensor.name!r} is {node.type}, the manifest says {tensor.dtype}")
        fits = len(node.shape) == len(tensor.shape) and all(
            not isinstance(actual, int)
            if isinstance(declared_axis, str)
            else actual in (declared_axis, None) or isinstance(actual, str)
            for declared_axis, actual in zip(tensor.shape, node.shape, strict=True)
        )
        if not fits:
            raise BundleError(
                file, f"{side} {tensor.name!r} has shape {node.shape}, the manifest says {list(tensor.shape)}"
            )
