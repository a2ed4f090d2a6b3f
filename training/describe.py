"""What a bundle asks for and costs: the graph's contract, sizes, and the time of a step.

Owns the description, for people and for programs. Knows nothing of torch or of how a bundle came to be.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from model.manifest import Dim, Feature
from model.repository import GRAPH
from model.runner import StepModel

ROWS, CALLS = (1, 32), 200
"""Batches whose step is timed, and how often; the median counts."""

_NUMBERS = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
"""Types of weights; integers of other types are axes and shapes."""


def describe(bundle: Path, model: StepModel) -> dict[str, Any]:
    """Everything that `onward inspect` tells, as JSON. The bundle is one that was opened and verified."""
    manifest, graph = model.manifest, bundle / GRAPH
    weights = onnx.load(graph).graph.initializer
    return {
        "name": manifest.name,
        "version": manifest.version,
        "description": manifest.description,
        "task": manifest.task,
        "features": [_feature(feature) for feature in manifest.features],
        "head": manifest.head.model_dump(mode="json"),
        "forecasts": manifest.forecasts,
        "future": manifest.future,
        "exact": manifest.exact,
        "inputs": [_tensor(one.name, one.shape, one.dtype) for one in (*manifest.inputs, manifest.lengths)],
        "outputs": [_tensor(one.name, one.shape, one.dtype) for one in manifest.outputs],
        "state": [
            {**_tensor(pair.input, pair.shape, pair.dtype), "output": pair.output, "bytes": _bytes(model, pair.input)}
            for pair in manifest.state
        ],
        "state_bytes_per_session": model.layout.dtype.itemsize,
        "graph_bytes": graph.stat().st_size,
        "parameters": sum(int(np.prod(one.dims)) for one in weights if one.data_type in _NUMBERS),
        "sha256": manifest.sha256,
        "step_us": {str(rows): round(cost_us(model, rows), 1) for rows in ROWS},
    }


def cost_us(model: StepModel, rows: int) -> float:
    """The median time of one call that advances `rows` sessions by one step, in microseconds."""
    known = np.asarray(model.manifest.parity.inputs[0][:1], np.float32)  # (1, features)
    inputs, ones = np.repeat(known[np.newaxis], rows, axis=0), np.ones(rows, np.int32)
    state, times = model.layout.initial(rows), []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        _, state = model.run(inputs, ones, state)
        times.append(time.perf_counter_ns() - start)
    return median(times) / 1000


def _forecasts(told: dict[str, Any]) -> str:
    if not told["forecasts"]:
        return "no: it keeps no last prediction of its inputs"
    return f"yes, where {', '.join(told['future'])} of the future are told" if told["future"] else "yes"


def text(told: dict[str, Any]) -> str:
    """The same as tables for people."""
    head = told["head"]
    lines = [f"{told['name']} {told['version']}: {told['description'] or told['task']}", ""]
    facts = {
        "features": ", ".join(_said(feature) for feature in told["features"]),
        "derived": "; ".join(f"{one['name']} = {one['formula']}" for one in told["features"] if one["formula"]),
        "head": f"{head['kind']} of {', '.join(head['targets'])}",
        "surprise": (head["score"] or "a score").replace("_", " ") if head["surprise"] else "none",
        "forecasts": _forecasts(told),
        "same bits in any batch": "yes" if told["exact"] else "no, to 1e-5",
        "parameters": f"{told['parameters']:,}",
        "graph": f"{told['graph_bytes']:,} bytes, sha256 {told['sha256']}",
        "state": f"{told['state_bytes_per_session']:,} bytes a session",
    }
    for rows, cost in told["step_us"].items():
        each = f", {cost / int(rows):,.1f} us each" if rows != "1" else ""
        facts[f"a step of {rows}"] = f"{cost:,.1f} us{each}, on this machine"
    lines += [f"{name:<24}{value}" for name, value in facts.items() if value]
    for side in ("inputs", "outputs", "state"):
        lines += ["", f"{side:<28}{'shape':<28}type"]
        for one in told[side]:
            more = f"{one['bytes']:>8,} bytes  -> {one['output']}" if side == "state" else ""
            lines.append(
                f"  {one['name']:<25} {' x '.join(map(str, one['shape'])):<28}{one['dtype']:<9}{more}".rstrip()
            )
    return "\n".join(lines)


def _tensor(name: str, shape: tuple[Dim, ...], dtype: str) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": dtype}


def _feature(feature: Feature) -> dict[str, Any]:
    return {**feature.model_dump(mode="json", exclude={"categories"}), "categories": len(feature.categories)}


def _said(feature: dict[str, Any]) -> str:
    more = [feature["role"]] if feature["role"] != "observed" else []
    more += [f"one of {feature['categories']:,}"] if feature["categories"] else []
    more += ["may be missing"] if feature["nullable"] else []
    return f"{feature['name']} ({', '.join(more)})" if more else str(feature["name"])


def _bytes(model: StepModel, name: str) -> int:
    return model.layout.dtype[name].itemsize
