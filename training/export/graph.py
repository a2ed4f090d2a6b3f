"""The ONNX graph of a network, and the contract of its inputs, outputs and state.

Owns the structure of the graph: layers, state, and which values of the last prediction are stored. The graph is written
node by node, because torch's exporters unroll or freeze recurrent layers without an error. Knows nothing of files or of
the proof.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from onward.model.inputs import InputArray
from onward.model.manifest import RANKED, Dtype, Head, Part, StatePair, Stored, Tensor
from onward.training.export.onnx_ops import Graph, GraphOps, Value
from onward.training.network.heads import stored_prediction, surprise
from onward.training.network.network import Network
from onward.training.network.ops import TorchOps

OPSET, IR_VERSION = 21, 10

Array = InputArray

GATES = {"rnn_tanh": (0,), "rnn_relu": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""The indices of torch's gates in ONNX's order: LSTM i,f,g,o -> i,o,f,c; GRU r,z,n -> z,r,h."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The tensors of the graph, as the manifest declares them."""

    inputs: tuple[Tensor, ...]
    lengths: Tensor
    outputs: tuple[Tensor, ...]
    state: tuple[StatePair, ...]
    head: Head


def contract(network: Network) -> Contract:
    """Returns the contract of the graph of this network.

    The states of the layers and the last prediction are parts of one tensor, because a tensor or a node costs a call
    the same time however small it is. The tensor's first axis is that of a layer's state in ONNX.

    The last prediction is state too. In a new session it is the head's marginal prediction, for numbers the mean and
    deviation of the training part, so that the first input also has a surprise.
    """
    config, head, signature = network.config, network.head, network.signature
    last, dtype = marginal(network), _precision(network)
    parts = _joined_parts(network, last)
    state = [
        StatePair(
            input="state_in",
            output="state_out",
            shape=(1, "batch", sum(part.size for part in parts)),
            init=[_joined_init(network, last)],
            parts=parts,
        )
    ]
    if running := network.input_layer.running:
        first = network.input_layer.first_statistics
        parts = tuple(Part(name=name, size=first.shape[1]) for name in running.parts)
        state.append(
            StatePair(
                input="statistics_in",
                output="statistics_out",
                shape=("batch", first.numel()),
                dtype="float64",
                init=first.flatten().tolist(),
                parts=parts,
            )
        )
    if differenced := len(network.input_layer.differenced):
        levels = network.input_layer.first_values.tolist()
        state += [
            StatePair(
                input="previous_in", output="previous_out", shape=("batch", differenced), dtype=dtype, init=levels
            ),
            StatePair(input="begun_in", output="begun_out", shape=("batch", differenced), dtype="float64"),
        ]
    state += [
        StatePair(
            input=f"last_{name}_in",
            output=f"last_{name}_out",
            shape=("batch", *value.shape),
            dtype=_dtype(value),
            init=value.tolist(),
        )
        for name, value in last.items()
        if _dtype(value) != "float32"
    ]
    return Contract(
        inputs=(Tensor(name="inputs", shape=("time", "batch", len(signature.features)), dtype=dtype),),
        lengths=Tensor(name="lengths", shape=("batch",), dtype="int32"),
        outputs=(
            *(
                Tensor(
                    name=name,
                    shape=("time", "batch", *last[name].shape),
                    dtype=dtype if _dtype(last[name]) == "float32" else _dtype(last[name]),
                )
                for name in head.outputs
            ),
            Tensor(name="surprise", shape=("time", "batch"), dtype=dtype),
        ),
        state=tuple(state),
        head=Head(
            kind=config.head,
            outputs=head.outputs,
            targets=signature.targets,
            surprise="surprise",
            score=head.score,
            levels=head.levels,
            transforms=head.transforms,
            last={
                name: Stored(state=f"last_{name}_in")
                if _dtype(last[name]) != "float32"
                else Stored(state="state_in", part=name)
                for name in head.outputs
            },
            classes=signature.classes,
            per="sequence" if signature.per_sequence else "step",
        ),
    )


def marginal(network: Network) -> dict[str, NDArray[Any]]:
    """Returns by name the values that a session stores of the prediction before any input."""
    numbers, head = network.signature.number_columns, network.head
    unit = network.input_layer.initial_target_scale(numbers) if numbers else None
    stored = stored_prediction(TorchOps(), head, head.marginal(unit), unit)
    return {name: value.cpu().numpy() for name, value in stored.items()}


def build(network: Network, declared: Contract) -> onnx.ModelProto:
    """Returns the graph: input layer, native recurrent nodes, head and surprise, with dynamic batch and time axes."""
    graph = Graph(widths={"inputs": len(network.signature.features)})
    ops, signature, head = GraphOps(graph), network.signature, network.head
    inputs = ops.value("inputs")
    if network.input_layer.is_double:
        graph.doubles.add(inputs.name)
    values = network.input_layer.transform(ops, inputs)
    graph.widths[values.name] = len(signature.features)
    read = network.input_layer.scale_numbers(ops, values, signature.number_columns)
    terms = read.terms
    if network.input_layer.categories:
        terms += network.input_layer.embed(ops, ops.columns(values, network.input_layer.categories))
    recurrent = _recurrent_parts(network)
    first = marginal(network)
    stored = {name: array for name, array in first.items() if _dtype(array) == "float32"}
    sizes = [array.size for array in stored.values()]
    widths = graph.integers(*[network.config.units * signature.channels] * len(recurrent), sum(sizes))
    graph.add("Split", ["state_in", widths], [*(f"{name}_in" for name in recurrent), "stored"], axis=-1)
    scaled = ops.join(terms)
    graph.widths[scaled.name] = network.input_layer.joined
    hidden = _recurrent(ops, network, network.input_layer.by_channel(ops, scaled))
    around = head.predict(ops, head.read_out(ops, hidden), read.target_scale)
    last = stored_prediction(ops, head, around, read.target_scale)
    joined = ops.join([ops.flatten(last[name], array.shape) for name, array in stored.items()])
    graph.add("Concat", [*(f"{name}_out" for name in recurrent), ops.final(joined).name], "state_out", axis=-1)
    before = {
        name: ops.previous(f"last_{name}", last[name]) for name, array in first.items() if _dtype(array) == "float64"
    }
    for name in first.keys() - stored.keys() - before.keys():  # indices, which no surprise reads
        ops.store(f"last_{name}", last[name])
    shifted = ops.split_at(ops.shift(ops.value("stored"), joined), sizes)
    for (name, array), value in zip(stored.items(), shifted, strict=True):
        before[name] = ops.unflatten(value, array.shape)
    score = _surprise(ops, network, values, before, around, read.previous_level)
    for name, value in [*((name, last[name]) for name in head.outputs), ("surprise", score)]:
        is_widened = network.input_layer.is_double and name != RANKED[0]
        graph.rename(ops.double(value).name if is_widened else value.name, name)
    graph.prune([*(tensor.name for tensor in declared.outputs), *(pair.output for pair in declared.state)])
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "onward",
            [_info(tensor) for tensor in (*declared.inputs, declared.lengths)]
            + [_info(pair.tensor(pair.input)) for pair in declared.state],
            [_info(tensor) for tensor in declared.outputs]
            + [_info(pair.tensor(pair.output)) for pair in declared.state],
            graph.initializers(),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onward",
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _surprise(
    ops: GraphOps, network: Network, values: Value, before: dict[str, Any], around: dict[str, Any], level: Value | None
) -> Value:
    """Adds the surprise, (time, batch), of transformed values under the stored predictions `before`.

    level: see `ScaledNumbers`.
    """
    graph, signature = ops.graph, network.signature
    actual = ops.columns(values, signature.target_columns)  # a label has no columns
    nullable = any(signature.features[column].nullable for column in signature.target_columns)
    present = ops.present(actual) if nullable else None
    if nullable:
        actual = ops.fill_missing(actual, ops.constant("missing", torch.zeros(1)))
    scores = surprise(ops, network.head, before, around, actual, level)
    if present is not None:  # a missing value has a surprise of 0
        scores = scores * present
    if len(signature.targets) == 1:
        return ops.value(graph.op("Squeeze", scores.name, graph.integers(2)))
    ones = graph.constant("ones", np.ones(len(signature.targets), np.float32))
    return ops.value(graph.op("MatMul", scores.name, ones))  # a sum over the targets, exact in any batch


def _recurrent_state(network: Network) -> tuple[str, ...]:
    return ("h", "c") if network.config.cell == "lstm" else ("h",)


def _recurrent_parts(network: Network) -> list[str]:
    """Returns the names of the layers' states, (1, batch, channels * units) each."""
    return [f"{name}_{layer}" for name in _recurrent_state(network) for layer in range(network.config.layers)]


def _joined_parts(network: Network, last: dict[str, NDArray[Any]]) -> tuple[Part, ...]:
    size = network.config.units * network.signature.channels
    recurrent = [Part(name=name, size=size) for name in _recurrent_parts(network)]
    stored = [Part(name=name, size=value.size) for name, value in last.items() if _dtype(value) == "float32"]
    return (*recurrent, *stored)


def _joined_init(network: Network, last: dict[str, NDArray[Any]]) -> list[float]:
    size = network.config.units * network.signature.channels
    zeros = np.zeros(size * len(_recurrent_parts(network)), np.float32)
    stored = [value.ravel() for value in last.values() if _dtype(value) == "float32"]
    init: list[float] = np.concatenate([zeros, *stored]).tolist()
    return init


def _recurrent(ops: GraphOps, network: Network, scaled: Value) -> Value:
    """Adds a native node for each layer, and returns the top layer's outputs, (time, batch * channels, units)."""
    graph, cell, layers, units = ops.graph, network.config.cell, network.config.layers, network.config.units
    channels = network.signature.channels
    kind = {"lstm": "LSTM", "gru": "GRU"}.get(cell, "RNN")
    attributes: dict[str, Any] = {"hidden_size": units}
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    if kind == "RNN":
        attributes["activations"] = ["Relu" if cell == "rnn_relu" else "Tanh"]
    state = _recurrent_state(network)
    lengths = _channel_lengths(graph, channels) if channels > 1 else "lengths"
    hidden, divisor = graph.divided.get(scaled.name, (scaled.name, np.ones(1, np.float32)))
    for layer in range(layers):
        below = hidden
        weights = _layer_weights(network, layer)
        if layer == 0:  # the deviation by which the inputs are divided is in the weights
            weights["W"] = (weights["W"] / divisor.astype(np.float64)).astype(np.float32)
        names = [graph.constant(f"{name}_{layer}", value) for name, value in weights.items()]
        before = [ops.value(f"{name}_{layer}_in") for name in state]
        if channels > 1:
            before = [ops.rows(value, units) for value in before]
        directed, after = f"directed_{layer}", [f"{name}_{layer}_out" for name in state]
        last = [f"{name}_of_channels" for name in after] if channels > 1 else after
        graph.add(kind, [below, *names, lengths, *(value.name for value in before)], [directed, *last], **attributes)
        for name, value in zip(after, last, strict=True) if channels > 1 else ():
            graph.add("Reshape", [value, graph.integers(0, -1, channels * units)], name)
        hidden = graph.op("Squeeze", directed, graph.integers(1))
        if network.config.residual and layer > 0:
            hidden = graph.op("Add", hidden, below)
        if network.config.layer_norm:
            norm = cast("nn.LayerNorm", network.norms[layer])
            scale = graph.constant(f"norm_scale_{layer}", norm.weight.detach().cpu().numpy())
            shift = graph.constant(f"norm_shift_{layer}", norm.bias.detach().cpu().numpy())
            hidden = graph.op("LayerNormalization", hidden, scale, shift, axis=-1, epsilon=norm.eps)
    return ops.value(hidden)


def _channel_lengths(graph: Graph, channels: int) -> str:
    """Returns each row's length once for each of its channels, (batch * channels,)."""
    repeated = graph.op("Expand", graph.op("Unsqueeze", "lengths", graph.integers(1)), graph.integers(1, channels))
    return graph.op("Reshape", repeated, graph.integers(-1))


def _layer_weights(network: Network, layer: int) -> dict[str, Array]:
    """Returns W (1, gates x units, inputs), R (1, gates x units, units), B (1, 2 x gates x units) in ONNX's order."""
    order = GATES[network.config.cell]

    def reordered(name: str) -> Array:
        weight = getattr(network.layers[layer], f"{name}_l0").detach().cpu().numpy()
        gates = np.split(weight, len(order))
        return np.concatenate([gates[index] for index in order])

    bias = np.concatenate([reordered("bias_ih"), reordered("bias_hh")])
    return {"W": reordered("weight_ih")[None], "R": reordered("weight_hh")[None], "B": bias[None]}


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, getattr(TensorProto, _ONNX[tensor.dtype]), list(tensor.shape))


def _precision(network: Network) -> Dtype:
    """Returns the type of the inputs, and of all outputs but indices."""
    return "float64" if network.input_layer.is_double else "float32"


def _dtype(value: NDArray[Any]) -> Dtype:
    return "int64" if value.dtype == np.int64 else "float64" if value.dtype == np.float64 else "float32"


_ONNX = {"float32": "FLOAT", "float64": "DOUBLE", "int32": "INT32", "int64": "INT64"}
