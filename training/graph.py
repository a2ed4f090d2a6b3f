"""The ONNX graph of a network, and what it declares of itself.

Owns every node of the graph. It is written node by node, because torch's exporters unroll or freeze recurrent layers
without an error. Knows nothing of files or of proofs.

Only operations whose answer for a row does not depend on the rows beside it are used, so that batches are bit-exact:
ONNX Runtime's MatMul and Exp are such, its Softplus, Log and long ReduceSum are not (their vectorised kernels treat the
tail of an array differently). That is why the state keeps the logarithm of the deviation, and why sums over targets
are products with a vector of ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model.manifest import Head, StatePair, Tensor
from training.nets import LOG_STD_BOUND, Network

OPSET, IR_VERSION = 21, 10

Array = NDArray[np.float32]

GATES = {"rnn_tanh": (0,), "rnn_relu": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""Places of torch's gates in ONNX's order: LSTM i,f,g,o -> i,o,f,c; GRU r,z,n -> z,r,h."""


@dataclass(slots=True)
class _Graph:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, kind: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> None:
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


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
    config, count = network.config, len(targets)
    mean, std = (tensor.numpy()[network.targets] for tensor in (network.scaling.mean, network.scaling.std))
    recurrent = ("h", "c") if config.cell == "lstm" else ("h",)
    state = [
        StatePair(input=f"{name}_in", output=f"{name}_out", shape=(config.layers, "batch", config.units))
        for name in recurrent
    ]
    last: dict[str, Array] = {"point": mean}
    if config.head == "gaussian":
        last = {"mean": mean, "std": std, "log_std": np.log(std)}
    state += [
        StatePair(input=f"last_{name}_in", output=f"last_{name}_out", shape=("batch", count), init=value.tolist())
        for name, value in last.items()
    ]
    said = tuple(name for name in last if name != "log_std")
    return Contract(
        inputs=(Tensor(name="inputs", shape=("time", "batch", len(features))),),
        lengths=Tensor(name="lengths", shape=("batch",), dtype="int32"),
        outputs=(
            *(Tensor(name=name, shape=("time", "batch", count)) for name in said),
            Tensor(name="surprise", shape=("time", "batch")),
        ),
        state=tuple(state),
        head=Head(
            kind=config.head,
            outputs=said,
            targets=tuple(targets),
            surprise="surprise",
            score="negative_log_likelihood" if config.head == "gaussian" else "scaled_absolute_error",
            last={name: f"last_{name}_in" for name in said},
        ),
    )


def build(network: Network, declared: Contract) -> onnx.ModelProto:
    """The graph: scaling, native recurrent nodes, head, surprise; dynamic batch and time, ragged lengths."""
    graph = _Graph()
    graph.constant("scaling_mean", network.scaling.mean.numpy())
    graph.constant("scaling_std", network.scaling.std.numpy())
    graph.add("Sub", ["inputs", "scaling_mean"], "centred")
    graph.add("Div", ["centred", "scaling_std"], "scaled")
    hidden = _recurrent(graph, network)
    predictions = _head(graph, network, hidden)
    priors = {name: _shifted(graph, name) for name in predictions}
    _surprise(graph, network, priors)
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "onward",
            [_info(tensor) for tensor in (*declared.inputs, declared.lengths)]
            + [_info(pair.tensor(pair.input)) for pair in declared.state],
            [_info(tensor) for tensor in declared.outputs]
            + [_info(pair.tensor(pair.output)) for pair in declared.state],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onward",
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _recurrent(graph: _Graph, network: Network) -> str:
    """One native node a layer; returns the name of the top layer's outputs, (time, batch, units)."""
    cell, layers, units = network.config.cell, network.config.layers, network.config.units
    kind = {"lstm": "LSTM", "gru": "GRU"}.get(cell, "RNN")
    attributes: dict[str, Any] = {"hidden_size": units}
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    if kind == "RNN":
        attributes["activations"] = ["Relu" if cell == "rnn_relu" else "Tanh"]
    carried = ("h", "c") if cell == "lstm" else ("h",)
    for name in carried:
        graph.add(
            "Split", [f"{name}_in"], [f"{name}_in_{layer}" for layer in range(layers)], axis=0, num_outputs=layers
        )
    graph.constant("direction_axis", np.array([1], np.int64))
    below = "scaled"
    for layer in range(layers):
        weights = _layer_weights(network, layer)
        names = [graph.constant(f"{name}_{layer}", value) for name, value in weights.items()]
        into = [below, *names, "lengths", *(f"{name}_in_{layer}" for name in carried)]
        out = [f"directed_{layer}", *(f"{name}_out_{layer}" for name in carried)]
        graph.add(kind, into, out, **attributes)
        graph.add("Squeeze", [f"directed_{layer}", "direction_axis"], f"hidden_{layer}")
        below = f"hidden_{layer}"
    for name in carried:
        graph.add("Concat", [f"{name}_out_{layer}" for layer in range(layers)], f"{name}_out", axis=0)
    return below


def _layer_weights(network: Network, layer: int) -> dict[str, Array]:
    """W (1, gates x units, inputs), R (1, gates x units, units), B (1, 2 x gates x units), in ONNX's gate order."""
    order = GATES[network.config.cell]

    def reordered(name: str) -> Array:
        weight = getattr(network.rnn, f"{name}_l{layer}").detach().cpu().numpy()
        gates = np.split(weight, len(order))
        return np.concatenate([gates[place] for place in order])

    bias = np.concatenate([reordered("bias_ih"), reordered("bias_hh")])
    return {"W": reordered("weight_ih")[None], "R": reordered("weight_hh")[None], "B": bias[None]}


def _head(graph: _Graph, network: Network, hidden: str) -> list[str]:
    """Predictions in the data's units, each (time, batch, targets); returns their names."""
    weight = network.readout.weight.detach().cpu().numpy().reshape(len(network.targets), network.parameters_each, -1)
    bias = network.readout.bias.detach().cpu().numpy().reshape(len(network.targets), network.parameters_each)
    mean, std = (tensor.numpy()[network.targets] for tensor in (network.scaling.mean, network.scaling.std))
    graph.constant("target_mean", mean)
    graph.constant("target_std", std)

    def linear(parameter: int, name: str) -> None:
        graph.constant(f"{name}_weight", weight[:, parameter].T)
        graph.constant(f"{name}_bias", bias[:, parameter])
        graph.add("MatMul", [hidden, f"{name}_weight"], f"{name}_product")
        graph.add("Add", [f"{name}_product", f"{name}_bias"], f"{name}_scaled")

    centre = "mean" if network.config.head == "gaussian" else "point"
    linear(0, centre)
    graph.add("Mul", [f"{centre}_scaled", "target_std"], f"{centre}_spread")
    graph.add("Add", [f"{centre}_spread", "target_mean"], centre)
    if network.config.head == "point":
        return [centre]
    linear(1, "log_std")
    graph.constant("log_std_low", np.array(-LOG_STD_BOUND, np.float32))
    graph.constant("log_std_high", np.array(LOG_STD_BOUND, np.float32))
    graph.constant("log_target_std", np.log(std))
    graph.add("Clip", ["log_std_scaled", "log_std_low", "log_std_high"], "log_std_clipped")
    graph.add("Add", ["log_std_clipped", "log_target_std"], "log_std")
    graph.add("Exp", ["log_std"], "std")
    return [centre, "std", "log_std"]


def _shifted(graph: _Graph, name: str) -> str:
    """The prediction made before each input, (time, batch, targets), and the last one of each row as state.

    With the one kept from before in front, the prediction before input t is at t, and a row's last one at its length.
    """
    if "first_axis" not in {constant.name for constant in graph.constants}:
        graph.constant("first_axis", np.array([0], np.int64))
        graph.constant("second_axis", np.array([1], np.int64))
        graph.constant("zero", np.array([0], np.int64))
        graph.constant("minus_one", np.array([-1], np.int64))
        graph.add("Cast", ["lengths"], "lengths_int64", to=TensorProto.INT64)
        graph.add("Unsqueeze", ["lengths_int64", "second_axis"], "last_place")  # (batch, 1)
    graph.add("Unsqueeze", [f"last_{name}_in", "first_axis"], f"{name}_before")
    graph.add("Concat", [f"{name}_before", name], f"{name}_all", axis=0)  # (time + 1, batch, targets)
    graph.add("Slice", [f"{name}_all", "zero", "minus_one", "first_axis"], f"{name}_prior")
    graph.add("Transpose", [f"{name}_all"], f"{name}_rows", perm=[1, 0, 2])
    graph.add("GatherND", [f"{name}_rows", "last_place"], f"last_{name}_out", batch_dims=1)
    return f"{name}_prior"


def _surprise(graph: _Graph, network: Network, priors: dict[str, str]) -> None:
    """The score of each input under the prediction before it, summed over the targets: (time, batch)."""
    graph.constant("target_places", np.array(network.targets, np.int64))
    graph.add("Gather", ["inputs", "target_places"], "actual", axis=2)
    if network.config.head == "gaussian":
        graph.add("Sub", ["actual", priors["mean"]], "error")
        graph.add("Div", ["error", priors["std"]], "standardised")
        graph.add("Mul", ["standardised", "standardised"], "squared")
        graph.constant("half", np.array(0.5, np.float32))
        graph.constant("half_log_two_pi", np.array(0.5 * math.log(2 * math.pi), np.float32))
        graph.add("Mul", ["squared", "half"], "exponent")
        graph.add("Add", ["exponent", priors["log_std"]], "unnormalised")
        graph.add("Add", ["unnormalised", "half_log_two_pi"], "scores")
    else:
        graph.add("Sub", ["actual", priors["point"]], "error")
        graph.add("Div", ["error", "target_std"], "standardised")
        graph.add("Abs", ["standardised"], "scores")
    graph.constant("ones", np.ones((len(network.targets), 1), np.float32))
    graph.constant("third_axis", np.array([2], np.int64))
    graph.add("MatMul", ["scores", "ones"], "summed")
    graph.add("Squeeze", ["summed", "third_axis"], "surprise")


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, getattr(TensorProto, _ONNX[tensor.dtype]), list(tensor.shape))


_ONNX = {"float32": "FLOAT", "int32": "INT32"}
