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
    dense, embedded = [], []
    mean, std = np.zeros(row.shape), np.ones(row.shape)
    for t, step in enumerate(row.astype(np.float64)):
        for i in numbers:
            seen = row[: t + 1, i].astype(np.float64)
            mean[t, i], std[t, i] = _moments(kind, seen[~np.isnan(seen)]) if i in streaming else (MEAN, STD)
        scaled = [0.0 if np.isnan(step[i]) else (step[i] - mean[t, i]) / std[t, i] for i in order]
        dense.append([*scaled, *(float(np.isnan(step[i])) for i in numbers if features[i].nullable)])
        embedded.append(_embed(network, step))
    return PreparedInputs(np.array(dense), np.array(embedded), mean, std)


def _moments(kind: str, seen: Floats) -> tuple[float, float]:
    n = len(seen)
    if kind == "mean":
        return 0.0, 1.0 + (float(np.abs(seen).mean()) if n else MEAN)
    if not n:
        return MEAN, STD
    guess = 0.5 * float(np.sqrt((seen**2).mean())) / n
    return float(seen.mean()), float(np.sqrt(seen.var() + guess**2 + (STD * 1e-6) ** 2))


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
