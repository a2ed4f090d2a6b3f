"""Models with closed-form distributions, as ONNX graphs in text form.

`ar1` is x' = phi x + sigma e, with a normal e. In `markov` the next category depends on the last one alone.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from onward.model.repository import GRAPH, MANIFEST
from tests.helpers.recorded_bundles import recorded_graph

LAST = """
    one = Constant <value_ints: ints = [1]> ()
    long = Cast <to: int = 7> (lengths)
    wide = Unsqueeze (long, one)
    at = Sub (wide, one)
"""
"""Nodes that compute `at`, (batch, 1): the index of each row's last step."""


def ar1(
    repository: Path, phi: float, sigma: float, *, name: str = "ar1", version: int = 1, dtype: str = "float32"
) -> None:
    """Writes a bundle with the feature x and the head gaussian, whose first prediction is 0 with deviation 1.

    dtype: of all numbers, float32 or float64.
    """
    kind, typed = {"float32": "float", "float64": "double"}[dtype], {"dtype": dtype}
    graph = f"""
    <ir_version: 10, opset_import: ["": 17]>
    known ({kind}[batch, time, 1] inputs, int32[batch] lengths, {kind}[batch, 1] mean_in, {kind}[batch, 1] std_in)
    => ({kind}[batch, time, 1] mean, {kind}[batch, time, 1] std, {kind}[batch, 1] mean_out, {kind}[batch, 1] std_out)
    <{kind} phi = {{{phi}}}, {kind} sigma = {{{sigma}}}, {kind} zero = {{0.0}}>
    {{
        mean = Mul (inputs, phi)
        nothing = Mul (inputs, zero)
        std = Add (nothing, sigma)
        {LAST}
        mean_out = GatherND <batch_dims: int = 1> (mean, at)
        std_out = GatherND <batch_dims: int = 1> (std, at)
    }}"""
    _publish(
        repository / name / str(version),
        graph,
        name=name,
        version=version,
        task="forecast",
        inputs=[_tensor("inputs", "batch", "time", 1) | typed],
        outputs=[_tensor(output, "batch", "time", 1) | typed for output in ("mean", "std")],
        state=[
            {"input": f"{output}_in", "output": f"{output}_out", "shape": ["batch", 1], "init": init, **typed}
            for output, init in (("mean", 0.0), ("std", 1.0))
        ],
        features=[{"name": "x"}],
        head={
            "kind": "gaussian", "outputs": ["mean", "std"], "targets": ["x"],
            "last": {"mean": "mean_in", "std": "std_in"},
        },
        parity={"inputs": [[[2.0]]], "lengths": [1], "outputs": {"mean": [[[2 * phi]]], "std": [[[sigma]]]}},
    )  # fmt: skip


def markov(
    repository: Path,
    probabilities: Sequence[Sequence[float]],
    categories: Sequence[str | int],
    *,
    top: int | None = None,
    name: str = "markov",
    **feature: Any,
) -> None:
    """Writes a bundle with the feature token and the head categorical.

    probabilities: row i has the probability of each category after category i; the first prediction is row 0. top: the
    number of categories in a prediction, all by default. With `unknown=True` there is one row more than categories.
    """
    transitions = np.array(probabilities)
    tops = np.argsort(-transitions, axis=1, kind="stable")[:, :top]
    scores = np.log(np.take_along_axis(transitions, tops, axis=1)).astype(np.float32)
    rows, width = tops.shape

    def listed(array: np.ndarray[Any, Any]) -> str:
        return ", ".join(map(str, array.reshape(-1).tolist()))

    graph = f"""
    <ir_version: 10, opset_import: ["": 17]>
    known (float[batch, time, 1] inputs, int32[batch] lengths, int64[batch, {width}] top_in,
           float[batch, {width}] score_in)
    => (int64[batch, time, {width}] top, float[batch, time, {width}] log_probability, int64[batch, {width}] top_out,
        float[batch, {width}] score_out)
    <int64[{rows}, {width}] tops = {{{listed(tops)}}}, float[{rows}, {width}] scores = {{{listed(scores)}}},
     float zero = {{0.0}}, float most = {{{rows - 1}.0}}>
    {{
        last = Constant <value_ints: ints = [2]> ()
        flat = Squeeze (inputs, last)
        inside = Clip (flat, zero, most)
        place = Cast <to: int = 7> (inside)
        top = Gather (tops, place)
        log_probability = Gather (scores, place)
        {LAST}
        top_out = GatherND <batch_dims: int = 1> (top, at)
        score_out = GatherND <batch_dims: int = 1> (log_probability, at)
    }}"""
    _publish(
        repository / name / "1",
        graph,
        name=name,
        task="tokens",
        outputs=[
            _tensor("top", "batch", "time", width) | {"dtype": "int64"},
            _tensor("log_probability", "batch", "time", width),
        ],
        state=[
            {"input": "top_in", "output": "top_out", "shape": ["batch", width], "dtype": "int64",
             "init": tops[0].tolist()},
            {"input": "score_in", "output": "score_out", "shape": ["batch", width], "init": scores[0].tolist()},
        ],
        features=[{"name": "token", "kind": "category", "categories": list(categories), **feature}],
        head={
            "kind": "categorical", "outputs": ["top", "log_probability"], "targets": ["token"],
            "last": {"top": "top_in", "log_probability": "score_in"},
        },
        parity={
            "inputs": [[[1]]], "lengths": [1],
            "outputs": {"top": [[tops[1].tolist()]], "log_probability": [[scores[1].tolist()]]},
        },
    )  # fmt: skip


def _tensor(name: str, *shape: str | int) -> dict[str, Any]:
    return {"name": name, "shape": list(shape)}


def _publish(bundle: Path, graph: str, **manifest: Any) -> None:
    data = recorded_graph(graph)
    bundle.mkdir(parents=True)
    (bundle / GRAPH).write_bytes(data)
    defaults = {
        "version": 1,
        "inputs": [_tensor("inputs", "batch", "time", 1)],
        "lengths": _tensor("lengths", "batch") | {"dtype": "int32"},
        "exact": True,
        "sha256": sha256(data).hexdigest(),
    }
    (bundle / MANIFEST).write_text(json.dumps(defaults | manifest))
