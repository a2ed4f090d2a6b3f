"""The naive server, as one writes it in 30 lines: Flask, a dict of states, one row a call. Not durable.

BUNDLE=<repository>/<name>/<version> gunicorn bench.naive:app
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from flask import Flask, Response, abort, jsonify, request

bundle = Path(os.environ["BUNDLE"])
pairs = json.loads((bundle / "manifest.json").read_text())["state"]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
model = ort.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
outputs = [node.name for node in model.get_outputs()]
states: dict[str, dict[str, np.ndarray]] = {}
app = Flask(__name__)


@app.post("/sessions/<name>")
def create(name: str) -> Response:
    shapes = {pair["input"]: [1 if axis == "batch" else axis for axis in pair["shape"]] for pair in pairs}
    states[name] = {
        pair["input"]: np.broadcast_to(np.array(pair["init"], np.float32), shapes[pair["input"]]).copy()
        for pair in pairs
    }
    return jsonify(session=name)


@app.post("/sessions/<name>/steps")
def step(name: str) -> Response:
    if name not in states:
        abort(404)
    inputs = np.array(request.get_json()["inputs"], np.float32)[:, np.newaxis]  # (time, 1, features)
    feeds = {"inputs": inputs, "lengths": np.array([len(inputs)], np.int32), **states[name]}
    values = dict(zip(outputs, model.run(outputs, feeds), strict=True))
    states[name] = {pair["input"]: values.pop(pair["output"]) for pair in pairs}
    return jsonify({output: value[:, 0].tolist() for output, value in values.items()})
