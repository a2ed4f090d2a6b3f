"""The limit: ONNX Runtime in a bare loop over the arrays of a batch. Prints row-steps a CPU second.

python -m bench.limit BUNDLE ROWS STEPS SECONDS
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Feeds = dict[str, NDArray[np.generic]]


def opened(bundle: Path, rows: int, steps: int) -> tuple[ort.InferenceSession, Feeds]:
    """The graph of a bundle, and arrays to feed it: random inputs, and states of new sessions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = ort.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feeds: Feeds = {
        "inputs": np.random.default_rng(0).standard_normal((steps, rows, 1)).astype(np.float32),
        "lengths": np.full(rows, steps, np.int32),
    }
    for pair in json.loads((bundle / "manifest.json").read_text())["state"]:
        shape = [rows if axis == "batch" else axis for axis in pair["shape"]]
        value = np.array(pair["init"], np.float32)
        feeds[pair["input"]] = np.ascontiguousarray(np.broadcast_to(value, shape))
    return model, feeds


def rate(bundle: Path, rows: int, steps: int, seconds: float) -> float:
    model, feeds = opened(bundle, rows, steps)
    model.run(None, feeds)
    began, calls = time.process_time(), 0
    while time.process_time() - began < seconds:
        model.run(None, feeds)
        calls += 1
    return calls * rows * steps / (time.process_time() - began)


if __name__ == "__main__":
    print(rate(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
