"""One training run, from configuration to bundle.

Owns the order of things: data, fit, export, proof, evaluation. Each of them is another module's.
"""

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onward.model.repository import next_version
from onward.model.runner import StepModel
from onward.training.config import Config
from onward.training.data import datasets, split, training_statistics
from onward.training.data.datasets import Dataset
from onward.training.errors import DataError, TrainingError
from onward.training.evaluation import evaluation
from onward.training.export import export_bundle
from onward.training.export.publish import Measured
from onward.training.fit import checkpoint as checkpoints
from onward.training.fit import training_loop
from onward.training.fit.checkpoint import Checkpoint
from onward.training.network.network import Network, Signature
from onward.training.report import html_report, report_table


class LosesError(Exception):
    """A network that loses to a naive forecast where it must not; the message is its table."""


@dataclass(frozen=True, slots=True)
class Fitted:
    dataset: Dataset
    network: Network
    history: training_loop.History


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
    loaded = dataset(config)
    return fitted(config, loaded, quiet=quiet, checkpoint=checkpoint(config, loaded), resume=resume)


def dataset(config: Config) -> Dataset:
    return datasets.load(config.data_file, config.data)


def fitted(
    config: Config,
    loaded: Dataset,
    *,
    quiet: bool | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    on_epoch_end: training_loop.EpochCallback | None = None,
) -> Fitted:
    """The network, fitted to data that were loaded before. Raises as `loop.fit` does."""
    torch.manual_seed(config.train.seed)
    network = build(config, loaded)
    history = training_loop.fit(
        network,
        loaded.series,
        config.train,
        quiet=quiet,
        checkpoint=checkpoint,
        resume=resume,
        on_epoch_end=on_epoch_end,
    )
    return Fitted(loaded, network, history)


def stopped(config: Config) -> Fitted:
    """What a run that was stopped has come to: the best weights so far. Raises DataError, TrainingError."""
    loaded = dataset(config)
    kept, network = checkpoint(config, loaded), build(config, loaded)
    content = kept.read()
    if content is None:
        raise TrainingError(f"{kept.file}: no run of this configuration was stopped; train it first")
    return Fitted(loaded, network, training_loop.restore(network, kept.state(content)))


def checkpoint(config: Config, loaded: Dataset) -> Checkpoint:
    """Where the run of this configuration on these data is kept."""
    told = config.model_dump(mode="json", exclude={"tune"}) | {"data file": {"sha256": loaded.sha256}}
    return Checkpoint(config.checkpoint_file, told)


def publish(
    config: Config, fitted: Fitted, *, must_beat: bool = False, finished: bool = True
) -> tuple[Path, StepModel]:
    """A run that is not `finished` can still go on."""
    dataset = fitted.dataset
    bundle = config.repository / config.name / str(next_version(config.repository, config.name))
    model = export_bundle.export(
        fitted.network,
        bundle=bundle,
        sample=sample(dataset),
        description=config.description,
        provenance=provenance(config, dataset, fitted.history),
        measure=lambda model: measured(model, config, dataset, must_beat=must_beat),
    )
    if finished:
        checkpoints.remove(config.checkpoint_file)
    return bundle, model


def measured(model: StepModel, config: Config, dataset: Dataset, *, must_beat: bool) -> Measured:
    """The metrics and the report of them. Raises DataError, LosesError."""
    try:
        found = evaluation.measure(model, dataset.series, config.data.period, config.data.horizon)
    except ValueError as error:
        raise DataError(f"{config.data_file}: {error}") from error
    if must_beat and evaluation.unbeaten_baselines(found.metrics):
        raise LosesError(report_table.text(model.manifest.model_copy(update={"metrics": found.metrics})))
    return Measured(
        found.metrics, lambda manifest: {html_report.REPORT: html_report.html(manifest, found.illustration)}
    )


def build(config: Config, dataset: Dataset) -> Network:
    """The network that the configuration asks for, with its first weights."""
    signature = Signature(
        dataset.features,
        config.data.predicted,
        dataset.classes,
        per_sequence=config.data.label is not None and config.data.per == "sequence",
        differenced=config.data.changes,
    )
    return Network(
        config.model,
        signature,
        training_statistics.compute(dataset),
        training_statistics.category_counts(dataset, signature),
    )


def sample(dataset: Dataset, rows: int = 7) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(rows, 200, features) real stretches, spread over the series; short series are repeated to that length."""
    stretches = []
    for row in range(rows):
        values = dataset.series[row % len(dataset.series)].values
        start = (len(values) - export_bundle.PROOF_STEPS) * row // rows
        stretches.append(values[max(0, start) :][: export_bundle.PROOF_STEPS])
    return np.stack([np.resize(stretch, (export_bundle.PROOF_STEPS, stretch.shape[1])) for stretch in stretches])


def provenance(config: Config, dataset: Dataset, history: training_loop.History) -> dict[str, Any]:
    """Where the bundle comes from: enough to make it again."""
    told = config.model_dump(mode="json", exclude={"tune"})
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
        "config_sha256": hashlib.sha256(config.model_dump_json(exclude={"tune"}).encode()).hexdigest(),
        "epochs": len(history.train),
        "best_epoch": history.best + 1,
        "losses": {"train": history.train, "validation": history.validation},
        "gradient_norms": {"mean": history.gradient_mean, "largest": history.gradient_largest},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("onward", "torch", "onnx", "onnxruntime", "numpy", "polars")},
        },
    }
