"""Networks of any kind and their inputs, and a reference of their input layer in numpy: loops over one session.

`network` and `export` make what a test needs. `prepare` and `hidden` are the independent side of comparisons: they are
in double precision and share no formula with the training package.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onward.model.inputs import InputArray
from onward.model.manifest import Feature
from onward.model.runner import StepModel
from onward.training.config import Model
from onward.training.export import export_bundle as exports
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network, Prepared, Signature
from onward.training.network.ops import TorchOps

Floats = NDArray[np.float64]

MEAN, STD = 10.0, 2.0
"""The mean and deviation of every number."""


def signature(features: Sequence[Feature], *targets: str, **attributes: Any) -> Signature:
    return Signature(tuple(features), targets, **attributes)


def statistics(signature: Signature, offset: float = 0.0) -> TrainingStatistics:
    """Returns the statistics of numbers with an offset added, in double precision if there is one."""
    numbers = [feature.kind == "number" for feature in signature.features]
    return TrainingStatistics(
        torch.tensor([MEAN + offset if number else 0.0 for number in numbers], dtype=torch.float64),
        torch.tensor([STD if number else 1.0 for number in numbers], dtype=torch.float64),
        torch.zeros(len(numbers), dtype=torch.float64),
        dtype=torch.float64 if offset else torch.float32,
    )


def network(
    signature: Signature, *, seed: int = 0, counts: Sequence[float] | None = None, offset: float = 0.0, **model: Any
) -> Network:
    """Returns a network with random weights. `model` are keys of the configuration's [model].

    offset: of all numbers; with one, the network reads them in double precision.

    No weight or bias is zero, so that a misplaced one changes the outputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        category_counts = None if counts is None else torch.tensor(counts)
        network = Network(Model.model_validate(model), signature, statistics(signature, offset), category_counts)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "weight_hh" in name:
                    parameter.mul_(0.7)  # a contraction, so that no state grows without bound
                reach = 0.1 if parameter.ndim == 1 else 0.3 / parameter.shape[1] ** 0.5
                parameter.add_(torch.randn_like(parameter) * reach)
    return network


def draw(features: Sequence[Feature], rows: int, steps: int, *, seed: int = 0, offset: float = 0.0) -> InputArray:
    """Returns (rows, steps, features): noise with those moments, any category, a tenth missing where values may be."""
    rng, columns = np.random.default_rng(seed), []
    for feature in features:
        column = rng.normal(MEAN, STD, (rows, steps)) + offset
        if feature.kind == "category":
            column = rng.integers(feature.category_count, size=(rows, steps)).astype(np.float64)
        if feature.nullable:
            column[rng.random((rows, steps)) < 0.1] = np.nan
        columns.append(column)
    return np.stack(columns, axis=-1).astype(np.float64 if offset else np.float32)


def export(network: Network, repository: Path | None = None, *, steps: int = 24, offset: float = 0.0) -> StepModel:
    """Exports the network as `<repository>/tiny/1`, or into a temporary folder, and returns its model.

    It is proven and checked on drawn inputs of so many steps.
    """
    sample = draw(network.signature.features, 7, steps, seed=1, offset=offset)
    if repository is not None:
        return exports.export(network, bundle=repository / "tiny" / "1", sample=sample)
    with tempfile.TemporaryDirectory() as scratch:
        return exports.export(network, bundle=Path(scratch) / "tiny" / "1", sample=sample)


@dataclass(frozen=True, slots=True)
class PreparedInputs:
    """The inputs that the recurrent layers read in a session, and the scale of its numbers: (time, ...) each."""

    dense: Floats
    """Fixed numbers, then streaming ones, then masks."""
    embedded: Floats
    mean: Floats  # (time, features), after each step
    std: Floats


def prepare(network: Network, row: NDArray[np.float32]) -> PreparedInputs:
    """Prepares row (time, features) step by step; the statistics are those of a list of the values seen."""
    features, kind = network.signature.features, network.config.scaling
    numbers = [i for i, feature in enumerate(features) if feature.kind == "number"]
    streaming = [i for i in numbers if features[i].role == "observed" and kind != "fixed"]
    order = [*[i for i in numbers if i not in streaming], *streaming]
    moments = {i: RunningMoments(kind, network.config.half_life) for i in streaming}
    dense, embedded = [], []
    mean, std = np.zeros(row.shape), np.ones(row.shape)
    for t, step in enumerate(row.astype(np.float64)):
        for i in numbers:
            if i in streaming and not np.isnan(step[i]):
                moments[i].add(step[i])
            mean[t, i], std[t, i] = moments[i].moments() if i in streaming else (MEAN, STD)
        scaled = [0.0 if np.isnan(step[i]) else (step[i] - mean[t, i]) / std[t, i] for i in order]
        scaled = [float(np.clip(x, -10, 10)) if i in streaming else x for i, x in zip(order, scaled, strict=True)]
        dense.append([*scaled, *(float(np.isnan(step[i])) for i in numbers if features[i].nullable)])
        embedded.append(_embed(network, step))
    return PreparedInputs(np.array(dense), np.array(embedded), mean, std)


class RunningMoments:
    """The mean and deviation of one session's values by their definition: weighted sums over a list of the values."""

    def __init__(self, kind: str, half_life: float) -> None:
        self.kind, self.least_gain = kind, 1 - 2 ** (-1 / half_life) if half_life else 0.0
        self.values, self.weights = np.zeros(0), np.zeros(0)
        self.further_variance = 0.0
        """The variance that is not that of the listed values: at first of the guess, later of the level before."""
        self.count, self.run = 0.0, list[float]()

    def moments(self) -> tuple[float, float]:
        if self.kind == "mean":
            return 0.0, 1 + (float(self.weights @ self.values) if self.count else MEAN)
        if not self.count:
            return MEAN, STD
        return float(self.weights @ self.values), float(np.sqrt(self._variance() + (STD * 1e-6) ** 2))

    def _variance(self) -> float:
        deviations = self.values - self.weights @ self.values
        return float(self.weights @ deviations**2) + self.further_variance

    def add(self, x: float) -> None:
        x = abs(x) if self.kind == "mean" else x
        if not self.count:
            self.further_variance = min(0.25, STD**2 / (MEAN**2 + STD**2)) * x**2
            self._list(x)
            return
        center = float(self.weights @ self.values)
        spread = 1 + center if self.kind == "mean" else np.sqrt(self._variance())
        if self.kind == "causal" and spread <= STD * 1e-6:
            spread = STD
        limit = (5 if self.run else 10) * spread
        if abs(x - center) <= limit:
            self.run = []
            self._list(x)
            return
        self.run.append(x)
        if len(self.run) == 1:
            self._list(center + limit * np.sign(x - center))
        if len(self.run) == 3:
            level = float(np.mean(self.run))
            self.further_variance = float(np.maximum(self._variance(), (x - level) ** 2))
            self.values, self.weights = np.array([level]), np.ones(1)
            self.count, self.run = 3, []

    def _list(self, x: float) -> None:
        gain = max(1 / (self.count + 1), self.least_gain)
        self.values, self.weights = np.append(self.values, x), np.append(self.weights * (1 - gain), gain)
        self.further_variance *= 1 - gain if self.count else 1
        self.count = 1 / gain


def _embed(network: Network, step: Floats) -> list[float]:
    embedded: list[float] = []
    categories = [i for i, feature in enumerate(network.signature.features) if feature.kind == "category"]
    for i, table in zip(categories, network.input_layer.embeddings, strict=True):
        weight = cast("nn.Embedding", table).weight.detach().double().numpy()
        embedded += weight[network.signature.features[i].category_count if np.isnan(step[i]) else int(step[i])].tolist()
    return embedded


def hidden(network: Network, inputs: Floats) -> Floats:
    """Returns the states (time, units) of torch's own layer in double precision, for a network of one layer.

    inputs: (time, read).
    """
    (layer,) = network.layers
    kind = type(cast("nn.RNNBase", layer))
    options = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    double = kind(inputs.shape[1], network.config.units, dtype=torch.float64, **options)
    double.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    with torch.no_grad():
        states: Floats = double(torch.from_numpy(inputs))[0].numpy()
    return states


def predict(network: Network, prepared: Prepared) -> dict[str, torch.Tensor]:
    """Returns the prediction after each step of prepared sessions, (time, batch, ...) by name."""
    states, ops = network(prepared.inputs, network.initial(prepared.inputs.shape[1]))[0], TorchOps()
    return network.head.predict(ops, network.head.read_out(ops, states), prepared.target_scale)
