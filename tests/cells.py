"""The recurrent cells in float64 numpy, written from the papers' equations: a reference that shares no code.

elman: h = phi(W x + b + R h + r) (Elman 1990). lstm: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et
al. 2000. gru: Cho et al. 2014, in the form whose reset gate follows the recurrent product, as cuDNN's, torch's and
ONNX's `linear_before_reset=1` have it. Gates lie as torch keeps them: LSTM i, f, g, o; GRU r, z, n.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training.nets import LOG_STD_BOUND, Network

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)), np.float64)


def elman(phi: Callable[[Array], Array], x: Array, state: list[Array], p: dict[str, Array]) -> list[Array]:
    (h,) = state
    return [phi(p["W"] @ x + p["b"] + p["R"] @ h + p["r"])]


def lstm(x: Array, state: list[Array], p: dict[str, Array]) -> list[Array]:
    h, c = state
    i, f, g, o = np.split(p["W"] @ x + p["b"] + p["R"] @ h + p["r"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru(x: Array, state: list[Array], p: dict[str, Array]) -> list[Array]:
    (h,) = state
    from_x, from_h = np.split(p["W"] @ x + p["b"], 3), np.split(p["R"] @ h + p["r"], 3)
    r, z = sigmoid(from_x[0] + from_h[0]), sigmoid(from_x[1] + from_h[1])
    return [(1 - z) * np.tanh(from_x[2] + r * from_h[2]) + z * h]


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def _tanh(x: Array) -> Array:
    return np.asarray(np.tanh(x), np.float64)


CELLS: dict[str, Callable[[Array, list[Array], dict[str, Array]], list[Array]]] = {
    "rnn_tanh": lambda x, state, p: elman(_tanh, x, state, p),
    "rnn_relu": lambda x, state, p: elman(_relu, x, state, p),
    "lstm": lstm,
    "gru": gru,
}


def nll(value: Array, mean: Array, std: Array) -> Array:
    """-log N(value; mean, std^2), elementwise."""
    return np.asarray(0.5 * math.log(2 * math.pi) + np.log(std) + (value - mean) ** 2 / (2 * std**2), np.float64)


def run(network: Network, inputs: NDArray[np.float32]) -> tuple[dict[str, Array], dict[str, Array]]:
    """What the network must say of one row: inputs (time, features) -> outputs (time, ...), last state by input."""
    weights = {name: value.detach().numpy().astype(np.float64) for name, value in network.state_dict().items()}
    config, targets = network.config, network.targets
    layers = [
        {short: weights[f"rnn.{long}_l{layer}"] for short, long in _NAMES.items()} for layer in range(config.layers)
    ]
    mean, std = weights["scaling.mean"], weights["scaling.std"]
    tensors = 2 if config.cell == "lstm" else 1
    states = [[np.zeros(config.units)] * tensors for _ in layers]
    said = []
    for raw in inputs.astype(np.float64):
        x: Array = (raw - mean) / std
        for layer, weight in enumerate(layers):
            states[layer] = CELLS[config.cell](x, states[layer], weight)
            x = states[layer][0]
        said.append((weights["readout.weight"] @ x + weights["readout.bias"]).reshape(len(targets), -1))
    prediction = np.stack(said)  # (time, targets, parameters)
    marginal, spread = mean[targets], std[targets]
    centre = prediction[..., 0] * spread + marginal
    actual = inputs[:, targets].astype(np.float64)
    before = np.concatenate([marginal[None], centre[:-1]])
    state = {
        f"{name}_in": np.stack([layer[place] for layer in states]) for place, name in enumerate(("h", "c")[:tensors])
    }
    if config.head == "point":
        surprise = (np.abs(actual - before) / spread).sum(axis=-1)
        return {"point": centre, "surprise": surprise}, state | {"last_point_in": centre[-1]}
    deviation = np.exp(np.clip(prediction[..., 1], -LOG_STD_BOUND, LOG_STD_BOUND)) * spread
    surprise = nll(actual, before, np.concatenate([spread[None], deviation[:-1]])).sum(axis=-1)
    state |= {"last_mean_in": centre[-1], "last_std_in": deviation[-1], "last_log_std_in": np.log(deviation[-1])}
    return {"mean": centre, "std": deviation, "surprise": surprise}, state


_NAMES = {"W": "weight_ih", "R": "weight_hh", "b": "bias_ih", "r": "bias_hh"}
