"""Networks of any kind, their inputs, and the same computed plainly: loops in double precision over one session.

`network` and `export` make what a test needs; `reading` and `hidden` are the independent side of comparisons, with none
of training's own formulas in them.
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

from onward.model.manifest import Feature
from onward.model.runner import StepModel
from onward.training.config import Model
from onward.training.export import export_bundle as exports
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network, Prepared, Signature
from onward.training.network.ops import TorchOps

Floats = NDArray[np.float64]

MEAN, STD = 10.0, 2.0
"""Of every number."""


def signature(features: Sequence[Feature], *targets: str, **told: Any) -> Signature:
    return Signature(tuple(features), targets, **told)


def scaling(spoken: Signature) -> TrainingStatistics:
    numbers = [feature.kind == "number" for feature in spoken.features]
    return TrainingStatistics(
        torch.tensor([MEAN if number else 0.0 for number in numbers], dtype=torch.float64),
        torch.tensor([STD if number else 1.0 for number in numbers], dtype=torch.float64),
    )


def network(spoken: Signature, *, seed: int = 0, counts: Sequence[float] | None = None, **model: Any) -> Network:
    """No weight or bias is zero, so none can be misplaced unseen. `model` are keys of the configuration's [model]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        counted = None if counts is None else torch.tensor(counts)
        made = Network(Model.model_validate(model), spoken, scaling(spoken), counted)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "weight_hh" in name:
                    parameter.mul_(0.7)  # a contraction, so that no state grows without bound
                reach = 0.1 if parameter.ndim == 1 else 0.3 / parameter.shape[1] ** 0.5
                parameter.add_(torch.randn_like(parameter) * reach)
    return made


def draw(features: Sequence[Feature], rows: int, steps: int, *, seed: int = 0) -> NDArray[np.float32]:
    """(rows, steps, features) noise with those moments, any category, a tenth missing where values may be."""
    rng, columns = np.random.default_rng(seed), []
    for feature in features:
        column = rng.normal(MEAN, STD, (rows, steps))
        if feature.kind == "category":
            column = rng.integers(feature.category_count, size=(rows, steps)).astype(np.float64)
        if feature.nullable:
            column[rng.random((rows, steps)) < 0.1] = np.nan
        columns.append(column)
    return np.stack(columns, axis=-1).astype(np.float32)


def export(made: Network, repository: Path | None = None, *, steps: int = 24) -> StepModel:
    """Published as `<repository>/tiny/1`, or nowhere, on inputs drawn for it: proven and checked over so many steps."""
    sample = draw(made.signature.features, 7, steps, seed=1)
    if repository is not None:
        return exports.export(made, bundle=repository / "tiny" / "1", sample=sample)
    with tempfile.TemporaryDirectory() as scratch:
        return exports.export(made, bundle=Path(scratch) / "tiny" / "1", sample=sample)


@dataclass(frozen=True, slots=True)
class Read:
    """What the network reads of a session, and the units that its numbers have after each step: (time, ...) each."""

    dense: Floats
    """Fixed numbers, then streaming ones, then masks."""
    embedded: Floats
    mean: Floats  # (time, features) of numbers
    std: Floats


def reading(made: Network, row: NDArray[np.float32]) -> Read:
    """Step by step; moments are those of a list of what was seen. row: (time, features)."""
    features, kind = made.signature.features, made.config.scaling
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
        embedded.append(_embedded(made, step))
    return Read(np.array(dense), np.array(embedded), mean, std)


def _moments(kind: str, seen: Floats) -> tuple[float, float]:
    n = len(seen)
    if kind == "mean":
        return 0.0, 1.0 + (float(np.abs(seen).mean()) if n else MEAN)
    if not n:
        return MEAN, STD
    guess = 0.5 * float(np.sqrt((seen**2).mean())) / n
    return float(seen.mean()), float(np.sqrt(seen.var() + guess**2 + (STD * 1e-6) ** 2))


def _embedded(made: Network, step: Floats) -> list[float]:
    told: list[float] = []
    categories = [i for i, feature in enumerate(made.signature.features) if feature.kind == "category"]
    for i, table in zip(categories, made.input_layer.embeddings, strict=True):
        weight = cast("nn.Embedding", table).weight.detach().double().numpy()
        told += weight[made.signature.features[i].category_count if np.isnan(step[i]) else int(step[i])].tolist()
    return told


def hidden(made: Network, inputs: Floats) -> Floats:
    """(time, units) torch's own layer in double precision. inputs: (time, read); a network of one layer."""
    (layer,) = made.layers
    kind = type(cast("nn.RNNBase", layer))
    more = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    twin = kind(inputs.shape[1], made.config.units, dtype=torch.float64, **more)
    twin.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    with torch.no_grad():
        told: Floats = twin(torch.from_numpy(inputs))[0].numpy()
    return told


def told(made: Network, prepared: Prepared) -> dict[str, torch.Tensor]:
    """What the network says after each step of prepared sessions, (time, batch, ...) by name."""
    found, ops = made(prepared.inputs, made.initial(prepared.inputs.shape[1]))[0], TorchOps()
    return made.head.predict(ops, made.head.read_out(ops, found), prepared.target_scale)
