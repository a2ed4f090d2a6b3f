"""The bare network as an ONNX graph: the recurrent layers and the head of an LSTM, without the score and its state.

inputs (time, 1, 1), h and c (layers, 1, units) -> mean and std (time, 1, 1), h_out and c_out (layers, 1, units)
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench import limit
from onward.training.network.heads import LOG_BOUND
from onward.training.network.network import Network


def write(network: Network, file: Path, bundle: Path) -> None:
    """Writes the graph of a network that scales nothing, and asserts that it agrees with the exported bundle."""
    layers, units = network.config.layers, network.config.units
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    constants: dict[str, NDArray[np.generic]] = {
        "axis": np.array([1]), "low": np.array(-LOG_BOUND, np.float32), "high": np.array(LOG_BOUND, np.float32),
        "head_weight": weights["head.readout.weight"].T, "head_bias": weights["head.readout.bias"],
    }  # fmt: skip
    nodes = []
    for state in "hc":
        parts = [f"{state}_{layer}" for layer in range(layers)]
        nodes.append(helper.make_node("Split", [state], parts, axis=0, num_outputs=layers))
    hidden = "inputs"
    for layer in range(layers):
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w, r, *biases = (_gates(weights[f"layers.{layer}.{kind}_l0"]) for kind in kinds)
        constants |= {f"W_{layer}": w[None], f"R_{layer}": r[None], f"B_{layer}": np.concatenate(biases)[None]}
        inputs = [hidden, f"W_{layer}", f"R_{layer}", f"B_{layer}", "", f"h_{layer}", f"c_{layer}"]
        outputs = [f"Y_{layer}", f"h_out_{layer}", f"c_out_{layer}"]
        nodes.append(helper.make_node("LSTM", inputs, outputs, hidden_size=units))
        hidden = f"hidden_{layer}"
        nodes.append(helper.make_node("Squeeze", [f"Y_{layer}", "axis"], [hidden]))
    for state in "hc":
        parts = [f"{state}_out_{layer}" for layer in range(layers)]
        nodes.append(helper.make_node("Concat", parts, [f"{state}_out"], axis=0))
    nodes += [
        helper.make_node("MatMul", [hidden, "head_weight"], ["product"]),
        helper.make_node("Add", ["product", "head_bias"], ["readouts"]),
        helper.make_node("Split", ["readouts"], ["mean", "log_std"], axis=-1, num_outputs=2),
        helper.make_node("Clip", ["log_std", "low", "high"], ["clipped"]),
        helper.make_node("Exp", ["clipped"], ["std"]),
    ]
    memory, values = (layers, 1, units), ("time", 1, 1)
    graph = helper.make_graph(
        nodes, "network",
        [_tensor("inputs", values), _tensor("h", memory), _tensor("c", memory)],
        [_tensor("mean", values), _tensor("std", values), _tensor("h_out", memory), _tensor("c_out", memory)],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)

    exported, feeds = limit.opened(bundle, rows=1, steps=16)
    zeros = np.zeros(memory, np.float32)
    own = ort.InferenceSession(file).run(["mean", "std"], {"inputs": feeds["inputs"], "h": zeros, "c": zeros})
    np.testing.assert_allclose(own, exported.run(["mean", "std"], feeds), rtol=1e-5, atol=1e-6)


def _gates(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns torch's gates i, f, g, o in ONNX's order i, o, f, g."""
    i, f, g, o = np.split(weight, 4)
    return np.concatenate([i, o, f, g])


def _tensor(name: str, shape: tuple[str | int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
