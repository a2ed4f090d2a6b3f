"""The ONNX graph of a network, and what it declares of itself.

Owns the graph's shape: layers, state, what is kept of the last prediction. It is written node by node, because torch's
exporters unroll or freeze recurrent layers without an error. Knows nothing of files or of proofs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from model.manifest import Head, StatePair, Tensor
from training.formula import Graph, GraphOps, Value
from training.nets import Network

OPSET, IR_VERSION = 21, 10

Array = NDArray[np.float32]

GATES = {"rnn_tanh": (0,), "rnn_relu": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""Places of torch's gates in ONNX's order: LSTM i,f,g,o -> i,o,f,c; GRU r,z,n -> z,r,h."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The graph's tensors, as the manifest declares them."""

    inputs: tuple[Tensor, ...]
    lengths: Tensor
    outputs: tuple[Tensor, ...]
    state: tuple[StatePair, ...]
    head: Head


def contract(network: Network, features: Sequence[str], targets: Sequence[str]) -> Contract:
    """What the graph of this network reads and returns.

    The last prediction is state too. Before anything was read it is the marginal of the training part, its mean and
    standard deviation, so that the first input has a surprise as well.
    """
    config, head = network.config, network.head
    mean, std = (tensor[network.targets] for tensor in (network.scaling.mean, network.scaling.std))
    last = {name: value.numpy() for name, value in head.marginal(mean, std).items()}
    state = [
        StatePair(input=f"{name}_in", output=f"{name}_out", shape=(config.layers, "batch", config.units))
        for name in _carried(network)
    ]
    state += [
        StatePair(
            input=f"last_{name}_in", output=f"last_{name}_out", shape=("batch", *value.shape), init=value.tolist()
        )
        for name, value in last.items()
    ]
    return Contract(
        inputs=(Tensor(name="inputs", shape=("time", "batch", len(features))),),
        lengths=Tensor(name="lengths", shape=("batch",), dtype="int32"),
        outputs=(
            *(Tensor(name=name, shape=("time", "batch", *last[name].shape)) for name in head.outputs),
            Tensor(name="surprise", shape=("time", "batch")),
        ),
        state=tuple(state),
        head=Head(
            kind=config.head,
            outputs=head.outputs,
            targets=tuple(targets),
            surprise="surprise",
            score=head.score,
            levels=head.levels,
            last={name: f"last_{name}_in" for name in head.outputs},
        ),
    )


def build(network: Network, declared: Contract) -> onnx.ModelProto:
    """The graph: scaling, native recurrent nodes, head, surprise; dynamic batch and time, ragged lengths."""
    graph = Graph()
    ops = GraphOps(graph)
    inputs = ops.value("inputs")
    scaled = (inputs - ops.constant("scaling_mean", network.scaling.mean)) / ops.constant(
        "scaling_std", network.scaling.std
    )
    hidden = _recurrent(graph, network, scaled.name)
    mean, std = (tensor[network.targets] for tensor in (network.scaling.mean, network.scaling.std))
    target_std = ops.constant("target_std", std)
    said = _readout(ops, network, hidden)
    told = network.head.told(
        ops, said, ops.constant("target_mean", mean), target_std, ops.constant("log_target_std", std.log())
    )
    ranks = {pair.input: len(pair.shape) for pair in declared.state}
    before = {name: _before(ops, name, value, ranks[f"last_{name}_in"]) for name, value in told.items()}
    places = graph.constant("target_places", np.array(network.targets, np.int64))
    actual = ops.value(graph.op("Gather", "inputs", places, axis=2))
    scores = network.head.surprise(ops, before, actual, target_std)
    ones = graph.constant("ones", np.ones((len(network.targets), 1), np.float32))
    total = graph.op("MatMul", scores.name, ones)  # a sum over the targets, exact in any batch
    graph.add("Squeeze", [total, graph.integers(2)], "surprise")
    for name in network.head.outputs:
        graph.rename(told[name].name, name)
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "onward",
            [_info(tensor) for tensor in (*declared.inputs, declared.lengths)]
            + [_info(pair.tensor(pair.input)) for pair in declared.state],
            [_info(tensor) for tensor in declared.outputs]
            + [_info(pair.tensor(pair.output)) for pair in declared.state],
            graph.used_constants(),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onward",
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _carried(network: Network) -> tuple[str, ...]:
    return ("h", "c") if network.config.cell == "lstm" else ("h",)


def _recurrent(graph: Graph, network: Network, scaled: str) -> str:
    """One native node a layer; returns the name of the top layer's outputs, (time, batch, units)."""
    cell, layers = network.config.cell, network.config.layers
    kind = {"lstm": "LSTM", "gru": "GRU"}.get(cell, "RNN")
    attributes: dict[str, Any] = {"hidden_size": network.config.units}
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    if kind == "RNN":
        attributes["activations"] = ["Relu" if cell == "rnn_relu" else "Tanh"]
    carried = _carried(network)
    for name in carried:
        split = [f"{name}_in_{layer}" for layer in range(layers)]
        graph.add("Split", [f"{name}_in"], split, axis=0, num_outputs=layers)
    hidden = scaled
    for layer in range(layers):
        below = hidden
        weights = _layer_weights(network, layer)
        names = [graph.constant(f"{name}_{layer}", value) for name, value in weights.items()]
        into = [below, *names, "lengths", *(f"{name}_in_{layer}" for name in carried)]
        directed = f"directed_{layer}"
        graph.add(kind, into, [directed, *(f"{name}_out_{layer}" for name in carried)], **attributes)
        hidden = graph.op("Squeeze", directed, graph.integers(1))
        if network.config.residual and layer > 0:
            hidden = graph.op("Add", hidden, below)
        if network.config.layer_norm:
            norm = cast("nn.LayerNorm", network.norms[layer])
            scale = graph.constant(f"norm_scale_{layer}", norm.weight.detach().cpu().numpy())
            shift = graph.constant(f"norm_shift_{layer}", norm.bias.detach().cpu().numpy())
            hidden = graph.op("LayerNormalization", hidden, scale, shift, axis=-1, epsilon=norm.eps)
    for name in carried:
        graph.add("Concat", [f"{name}_out_{layer}" for layer in range(layers)], f"{name}_out", axis=0)
    return hidden


def _layer_weights(network: Network, layer: int) -> dict[str, Array]:
    """W (1, gates x units, inputs), R (1, gates x units, units), B (1, 2 x gates x units), in ONNX's gate order."""
    order = GATES[network.config.cell]

    def reordered(name: str) -> Array:
        weight = getattr(network.layers[layer], f"{name}_l0").detach().cpu().numpy()
        gates = np.split(weight, len(order))
        return np.concatenate([gates[place] for place in order])

    bias = np.concatenate([reordered("bias_ih"), reordered("bias_hh")])
    return {"W": reordered("weight_ih")[None], "R": reordered("weight_hh")[None], "B": bias[None]}


def _readout(ops: GraphOps, network: Network, hidden: str) -> list[Value]:
    """The head's numbers, each (time, batch, targets)."""
    weight = network.readout.weight.detach().cpu().numpy().reshape(len(network.targets), network.head.width, -1)
    bias = network.readout.bias.detach().cpu().numpy().reshape(len(network.targets), network.head.width)
    said = []
    for number in range(network.head.width):
        product = ops.graph.op("MatMul", hidden, ops.graph.constant(f"readout_weight_{number}", weight[:, number].T))
        said.append(ops.value(product) + ops.value(ops.graph.constant(f"readout_bias_{number}", bias[:, number])))
    return said


def _before(ops: GraphOps, name: str, told: Value, rank: int) -> Value:
    """What was told before each input, (time, batch, targets, ...); and the last of each row, as state.

    With the one kept from before in front, what was told before input t is at t, and a row's last one at its length.
    `rank` is that of the state, which has no time.
    """
    graph = ops.graph
    kept = graph.op("Unsqueeze", f"last_{name}_in", graph.integers(0))
    both = graph.op("Concat", kept, told.name, axis=0)  # (time + 1, batch, ...)
    before = graph.op("Slice", both, graph.integers(0), graph.integers(-1), graph.integers(0))
    lengths = graph.op("Cast", "lengths", to=TensorProto.INT64)
    places = graph.op("Unsqueeze", lengths, graph.integers(1))  # (batch, 1)
    rows = graph.op("Transpose", both, perm=[1, 0, *range(2, rank + 1)])
    graph.add("GatherND", [rows, places], f"last_{name}_out", batch_dims=1)
    return ops.value(before)


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, getattr(TensorProto, _ONNX[tensor.dtype]), list(tensor.shape))


_ONNX = {"float32": "FLOAT", "int32": "INT32"}
