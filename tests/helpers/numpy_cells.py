"""The recurrent cells in float64 numpy, written from the papers' equations: a reference that shares no code with ours.

elman: h = phi(W x + b + R h + r) (Elman 1990). lstm: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et
al. 2000. gru: Cho et al. 2014, in the form whose reset gate follows the recurrent product, as cuDNN's, torch's and
ONNX's `linear_before_reset=1` have it. Gates are in torch's order: LSTM i, f, g, o; GRU r, z, n.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from onward.training.network.heads import LOG_BOUND
from onward.training.network.network import Network

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
    """Returns the expected outputs (time, ...) of one row of inputs (time, features), and the last state by input."""
    weights = {name: value.detach().numpy().astype(np.float64) for name, value in network.state_dict().items()}
    config, names = network.config, [feature.name for feature in network.signature.features]
    targets = [names.index(target) for target in network.signature.targets]
    layers = [
        {short: weights[f"layers.{layer}.{long}_l0"] for short, long in _NAMES.items()}
        for layer in range(config.layers)
    ]
    mean, std = weights["input_layer.statistics.mean"], weights["input_layer.statistics.std"]
    tensors = 2 if config.cell == "lstm" else 1
    states = [[np.zeros(config.units)] * tensors for _ in layers]
    readouts = []
    for raw in inputs.astype(np.float64):
        x: Array = (raw - mean) / std
        for layer, weight in enumerate(layers):
            below = x
            states[layer] = CELLS[config.cell](x, states[layer], weight)
            x = states[layer][0]
            if config.residual and layer > 0:
                x = x + below
            if config.layer_norm:  # Ba et al. 2016, equation 3
                x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
                x = x * weights[f"norms.{layer}.weight"] + weights[f"norms.{layer}.bias"]
        values = weights["head.readout.weight"] @ x + weights["head.readout.bias"]
        readouts.append(values.reshape(-1, len(targets)).T)
    prediction = np.stack(readouts)  # (time, targets, parameters)
    actual = inputs[:, targets].astype(np.float64)
    predicted, surprise = _HEADS[config.head](network, prediction, mean[targets], std[targets], actual)
    state = {
        f"{name}_{number}": layer[index]
        for index, name in enumerate(("h", "c")[:tensors])
        for number, layer in enumerate(states)
    }
    state |= {name: value[-1] for name, value in predicted.items()}
    outputs = {name: predicted[name] for name in network.head.outputs}
    return outputs | {"surprise": surprise.sum(axis=-1)}, state


Prediction = tuple[dict[str, Array], Array]


def _shift(first: Array, predictions: Array) -> Array:
    """Returns the prediction before each step: the marginal before the first."""
    return np.concatenate([first[None], predictions[:-1]])


def _point(network: Network, readouts: Array, mean: Array, std: Array, actual: Array) -> Prediction:
    centre = readouts[..., 0] * std + mean
    error = np.abs(actual - _shift(mean, centre)) / std
    scores = {"mae": error, "mse": error**2, "huber": np.where(error < 1, 0.5 * error**2, error - 0.5)}
    return {"point": centre, "unit": np.broadcast_to(std, centre.shape)}, scores[network.config.loss]


def _deviation(readouts: Array, std: Array) -> Array:
    return np.asarray(np.exp(np.clip(readouts[..., 1], -LOG_BOUND, LOG_BOUND)) * std, np.float64)


def _gaussian(network: Network, readouts: Array, mean: Array, std: Array, actual: Array) -> Prediction:
    del network
    centre, deviation = readouts[..., 0] * std + mean, _deviation(readouts, std)
    surprise = nll(actual, _shift(mean, centre), _shift(std, deviation))
    return {"mean": centre, "std": deviation, "log_std": np.log(deviation)}, surprise


def _student_t(network: Network, readouts: Array, mean: Array, std: Array, actual: Array) -> Prediction:
    df = 2 + np.log1p(np.exp(network.get_parameter("head.free").detach().numpy().astype(np.float64)))
    centre, scale = readouts[..., 0] * std + mean, _deviation(readouts, std)
    z = (actual - _shift(mean, centre)) / _shift(std, scale)
    constant = [math.lgamma((v + 1) / 2) - math.lgamma(v / 2) - 0.5 * math.log(v * math.pi) for v in df]
    density = np.array(constant) - np.log(_shift(std, scale)) - (df + 1) / 2 * np.log1p(z**2 / df)
    prediction = {"mean": centre, "scale": scale, "df": np.broadcast_to(df, centre.shape), "log_scale": np.log(scale)}
    return prediction, -density


def _quantiles(network: Network, readouts: Array, mean: Array, std: Array, actual: Array) -> Prediction:
    levels = np.array(network.config.quantiles)
    middle = list(levels).index(0.5)
    up = np.where(readouts > 0, readouts + 1, np.exp(np.clip(readouts, -LOG_BOUND, 0)))
    scaled = np.empty_like(readouts)
    for level in range(len(levels)):
        between = up[..., middle + 1 : level + 1].sum(axis=-1) - up[..., level:middle].sum(axis=-1)
        scaled[..., level] = readouts[..., middle] + between
    quantiles = scaled * std[:, None] + mean[:, None]
    normal = np.array([NormalDist().inv_cdf(level) for level in levels])
    before = _shift(mean[:, None] + std[:, None] * normal, quantiles)
    error = (actual[..., None] - before) / std[:, None]
    losses = np.where(error >= 0, levels * error, (levels - 1) * error)
    unit = {"unit": np.broadcast_to(std, readouts.shape[:2])}
    return {"median": quantiles[..., middle], "quantiles": quantiles} | unit, 2 * losses.mean(axis=-1)


_HEADS: dict[str, Callable[[Network, Array, Array, Array, Array], Prediction]] = {
    "point": _point,
    "gaussian": _gaussian,
    "student_t": _student_t,
    "quantiles": _quantiles,
}
_NAMES = {"W": "weight_ih", "R": "weight_hh", "b": "bias_ih", "r": "bias_hh"}
