"""One training run, from configuration to bundle.

Owns the order of things: data, fit, export, proof, evaluation. Each of them is another module's.
"""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.repository import next_version
from model.runner import StepModel
from training import checkpoint as checkpoints
from training import data, evaluate, export, loop, report, split, table
from training.checkpoint import Checkpoint
from training.config import Config
from training.data import Dataset
from training.errors import DataError
from training.nets import Network, Signature
from training.publish import Measured
from training.reading import Scaling
from training.scores import Array


class LosesError(Exception):
    """A network that loses to a naive forecast where it must not; the message is its table."""


@dataclass(frozen=True, slots=True)
class Fitted:
    dataset: Dataset
    network: Network
    history: loop.History


def train(
    config: Config, *, quiet: bool | None = None, resume: bool = False, must_beat: bool = False
) -> tuple[Path, StepModel]:
    """Fits, exports and measures what `config` says; returns the new bundle's folder and its model.

    `resume` goes on where a killed run stood. Raises DataError, TrainingError, ExportError, CheckError, OSError from
    writing, or, where it `must_beat` the naive forecasts, LosesError; then nothing is published. Of several processes
    only the first is to `publish` what all `fit`.
    """
    return publish(config, fit(config, quiet=quiet, resume=resume), must_beat=must_beat)


def fit(config: Config, *, quiet: bool | None = None, resume: bool = False) -> Fitted:
    torch.manual_seed(config.train.seed)
    dataset = data.load(config.data_file, config.data)
    network = build(config, dataset)
    checkpoint = Checkpoint(
        config.checkpoint_file, config.model_dump(mode="json") | {"data file": {"sha256": dataset.sha256}}
    )
    history = loop.fit(network, dataset.series, config.train, quiet=quiet, checkpoint=checkpoint, resume=resume)
    return Fitted(dataset, network, history)


def publish(config: Config, fitted: Fitted, *, must_beat: bool = False) -> tuple[Path, StepModel]:
    dataset = fitted.dataset
    bundle = config.repository / config.name / str(next_version(config.repository, config.name))
    model = export.export(
        fitted.network,
        bundle=bundle,
        sample=sample(dataset),
        description=config.description,
        provenance=provenance(config, dataset, fitted.history),
        measure=lambda model: measured(model, config, dataset, must_beat=must_beat),
    )
    checkpoints.remove(config.checkpoint_file)
    return bundle, model


def measured(model: StepModel, config: Config, dataset: Dataset, *, must_beat: bool) -> Measured:
    """The metrics and the report of them. Raises DataError, LosesError."""
    try:
        found = evaluate.measure(model, dataset.series, config.data.period, config.data.horizon)
    except ValueError as error:
        raise DataError(f"{config.data_file}: {error}") from error
    if must_beat and not evaluate.beaten_everywhere(found.metrics):
        raise LosesError(table.text(model.manifest.model_copy(update={"metrics": found.metrics})))
    return Measured(found.metrics, lambda manifest: {report.REPORT: report.html(manifest, found.picture)})


def build(config: Config, dataset: Dataset) -> Network:
    """The network that the configuration asks for, with its first weights."""
    signature = Signature(
        dataset.features,
        config.data.predicted,
        dataset.classes,
        per_sequence=config.data.label is not None and config.data.per == "sequence",
        changes=config.data.changes,
    )
    return Network(config.model, signature, scaling(dataset), counts(dataset, signature))


def scaling(dataset: Dataset) -> Scaling:
    """Mean and deviation of the training parts, and of their changes; categories are left as they are."""
    parts = [one.train.astype(np.float64) for one in dataset.series]
    moments = [*_moments(parts, dataset), *_moments([changes(part) for part in parts], dataset)]
    return Scaling(*(torch.from_numpy(moment) for moment in moments))


def _moments(parts: Sequence[Array], dataset: Dataset) -> tuple[Array, Array]:
    values = np.concatenate(parts)
    there = ~np.isnan(values)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, values, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(there, values - mean, 0.0) ** 2).sum(axis=0) / count)
    numbers = np.array([feature.kind == "number" for feature in dataset.features])
    return np.where(numbers, mean, 0.0), np.where(numbers, std, 1.0)


def changes(values: Array) -> Array:
    """(time, features) from the last value seen to each; NaN where there is none."""
    steps = np.where(np.isnan(values), -1, np.arange(len(values))[:, np.newaxis])
    last = np.maximum.accumulate(steps, axis=0)[:-1]
    before = np.where(last < 0, np.nan, np.take_along_axis(values, np.maximum(last, 0), axis=0))
    return np.concatenate([np.full_like(values[:1], np.nan), values[1:] - before])


def counts(dataset: Dataset, signature: Signature) -> torch.Tensor:
    """(places,) how often the training part has each category or class that is predicted."""
    if not signature.chosen:
        return torch.zeros(0)
    seen = [
        one.train[:, signature.places[0]] if one.labels is None else one.labels[: one.validation_from]
        for one in dataset.series
    ]
    places = np.concatenate(seen)
    places = places[~np.isnan(places)].astype(np.int64)
    return torch.from_numpy(np.bincount(places, minlength=signature.chosen).astype(np.float32))


def sample(dataset: Dataset, rows: int = 7) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(rows, 200, features) real stretches, spread over the series; short series are repeated to that length."""
    stretches = []
    for row in range(rows):
        values = dataset.series[row % len(dataset.series)].values
        start = (len(values) - export.PROOF_STEPS) * row // rows
        stretches.append(values[max(0, start) :][: export.PROOF_STEPS])
    return np.stack([np.resize(stretch, (export.PROOF_STEPS, stretch.shape[1])) for stretch in stretches])


def provenance(config: Config, dataset: Dataset, history: loop.History) -> dict[str, Any]:
    """Where the bundle comes from: enough to make it again."""
    told = config.model_dump(mode="json")
    return {
        "data": {
            "file": config.data_file.name,
            "sha256": dataset.sha256,
            "series": len(dataset.series),
            "steps": dataset.steps,
            "validation_share": split.VALIDATION,
            "test_share": split.TEST,
        },
        "config": told,
        "config_sha256": hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
        "epochs": len(history.train),
        "best_epoch": history.best + 1,
        "losses": {"train": history.train, "validation": history.validation},
        "gradient_norms": {"mean": history.gradient_mean, "largest": history.gradient_largest},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("onward", "torch", "onnx", "onnxruntime", "numpy", "polars")},
        },
    }
