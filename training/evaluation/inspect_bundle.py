"""A description of a bundle: the contract of its graph, its sizes, and the time of a step.

Owns the description, as text and as JSON. Knows nothing of torch or of how a bundle was made.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from onward.model.manifest import Dim, Feature
from onward.model.repository import GRAPH
from onward.model.runner import StepModel

ROWS, CALLS = (1, 32), 200
"""The batch sizes whose step is timed, and the number of calls of which the median is taken."""

_WEIGHT_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
"""The types of weights; integers of other types are axes and shapes."""


def inspect(bundle: Path, model: StepModel) -> dict[str, Any]:
    """Returns the description that `onward inspect` prints, as JSON. `model` is the opened and verified `bundle`."""
    manifest, graph = model.manifest, bundle / GRAPH
    weights = onnx.load(graph).graph.initializer
    return {
        "name": manifest.name,
        "version": manifest.version,
        "description": manifest.description,
        "task": manifest.task,
        "features": [_feature(feature) for feature in manifest.features],
        "head": manifest.head.model_dump(mode="json"),
        "forecasts": manifest.can_forecast,
        "future": manifest.future_covariates,
        "exact": manifest.exact,
        "inputs": [_tensor(tensor.name, tensor.shape, tensor.dtype) for tensor in (*manifest.inputs, manifest.lengths)],
        "outputs": [_tensor(tensor.name, tensor.shape, tensor.dtype) for tensor in manifest.outputs],
        "state": [
            {
                **_tensor(pair.input, pair.shape, pair.dtype),
                "output": pair.output,
                "bytes": _bytes(model, pair.input),
                "parts": {part.name: part.size for part in pair.parts},
            }
            for pair in manifest.state
        ],
        "state_bytes_per_session": model.layout.dtype.itemsize,
        "graph_bytes": graph.stat().st_size,
        "parameters": sum(int(np.prod(tensor.dims)) for tensor in weights if tensor.data_type in _WEIGHT_TYPES),
        "sha256": manifest.sha256,
        "step_us": {str(rows): round(cost_us(model, rows), 1) for rows in ROWS},
    }


def cost_us(model: StepModel, rows: int) -> float:
    """Returns the median time in microseconds of a call that advances `rows` sessions by a single step."""
    step = np.asarray(model.manifest.parity.inputs[0][:1], model.input_dtype)  # (1, features)
    inputs, ones = np.repeat(step[np.newaxis], rows, axis=0), np.ones(rows, np.int32)
    state, times = model.layout.initial(rows), []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        _, state = model.run(inputs, ones, state)
        times.append(time.perf_counter_ns() - start)
    return median(times) / 1000


def _forecasts(description: dict[str, Any]) -> str:
    if not description["forecasts"]:
        return "no: its state has no last prediction of its inputs"
    future = ", ".join(description["future"])
    return f"yes, if the request gives the future values of {future}" if future else "yes"


def text(description: dict[str, Any]) -> str:
    """Returns the description as tables for people."""
    head = description["head"]
    name, version = description["name"], description["version"]
    lines = [f"{name} {version}: {description['description'] or description['task']}", ""]
    facts = {
        "features": ", ".join(_feature_text(feature) for feature in description["features"]),
        "derived": "; ".join(
            f"{feature['name']} = {feature['formula']}" for feature in description["features"] if feature["formula"]
        ),
        "head": f"{head['kind']} of {', '.join(head['targets'])}",
        "surprise": (head["score"] or "a score").replace("_", " ") if head["surprise"] else "none",
        "forecasts": _forecasts(description),
        "same bits in any batch": "yes" if description["exact"] else "no, to 1e-5",
        "parameters": f"{description['parameters']:,}",
        "graph": f"{description['graph_bytes']:,} bytes, sha256 {description['sha256']}",
        "state": f"{description['state_bytes_per_session']:,} bytes a session",
    }
    for rows, cost in description["step_us"].items():
        share = f", {cost / int(rows):,.1f} us each" if rows != "1" else ""
        facts[f"a step of {rows}"] = f"{cost:,.1f} us{share}, on this machine"
    lines += [f"{name:<24}{value}" for name, value in facts.items() if value]
    for side in ("inputs", "outputs", "state"):
        lines += ["", f"{side:<28}{'shape':<28}type"]
        for tensor in description[side]:
            shape = " x ".join(map(str, tensor["shape"]))
            more = f"{tensor['bytes']:>8,} bytes  -> {tensor['output']}" if side == "state" else ""
            lines.append(f"  {tensor['name']:<25} {shape:<28}{tensor['dtype']:<9}{more}".rstrip())
            lines += [f"    {name:<24} {size}" for name, size in tensor.get("parts", {}).items()]
    return "\n".join(lines)


def _tensor(name: str, shape: tuple[Dim, ...], dtype: str) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": dtype}


def _feature(feature: Feature) -> dict[str, Any]:
    described = feature.model_dump(mode="json", exclude={"categories"}) | {"categories": len(feature.categories)}
    return described | {"transform": feature.transform and feature.transform.label}


def _feature_text(feature: dict[str, Any]) -> str:
    more = [feature["role"]] if feature["role"] != "observed" else []
    more += ["of the predicted step"] if feature["lead"] else []
    more += [f"one of {feature['categories']:,}"] if feature["categories"] else []
    more += ["may be missing"] if feature["nullable"] else []
    more += [feature["transform"]] if feature["transform"] else []
    more += ["differenced"] if feature["differenced"] else []
    return f"{feature['name']} ({', '.join(more)})" if more else str(feature["name"])


def _bytes(model: StepModel, name: str) -> int:
    return model.layout.dtype[name].itemsize
