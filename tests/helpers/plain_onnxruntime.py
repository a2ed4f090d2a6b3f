"""Plain calls of ONNX Runtime, with which the runner is compared."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onward.model.manifest import Manifest


def session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def zeros(manifest: Manifest, rows: int) -> dict[str, NDArray[Any]]:
    """The initial state of our own exports, as their graphs take it."""
    state: dict[str, NDArray[Any]] = {}
    for pair in manifest.state:
        inner = [axis for axis in pair.shape if isinstance(axis, int)]
        first = np.broadcast_to(np.asarray(pair.init, pair.dtype), inner)
        state[pair.input] = np.stack([first] * rows, axis=pair.shape.index("batch"))
    return state


def call(
    opened: ort.InferenceSession, inputs: NDArray[np.float32], lengths: list[int], state: dict[str, NDArray[Any]]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Runs the graph: inputs (time, batch, features) -> outputs by name, (time, batch, ...), and the next state."""
    names = [node.name for node in opened.get_outputs()]
    feeds = {"inputs": inputs, "lengths": np.array(lengths, np.int32), **state}
    results = dict(zip(names, opened.run(names, feeds), strict=True))
    after = {name: results.pop(name.removesuffix("_in") + "_out") for name in state}
    return results, after
