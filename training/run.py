"""A training run, from configuration to bundle.

Owns the order of the steps: data, fit, export, proof, evaluation, report. Each step is owned by another module.
"""

import hashlib
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from onward.model.checks import CheckError
from onward.model.errors import OnwardError
from onward.model.inputs import InputArray
from onward.model.repository import next_version
from onward.model.runner import StepModel
from onward.model.tables.summary import Summary
from onward.training.config import Config
from onward.training.data import datasets, training_statistics
from onward.training.data.datasets import Dataset
from onward.training.errors import DataError, TrainingError
from onward.training.evaluation import evaluation, held_out
from onward.training.export import export_bundle
from onward.training.export.export_bundle import ExportError
from onward.training.export.publish import Measured
from onward.training.fit import checkpoint as checkpoints
from onward.training.fit import devices, output_folders, training_loop
from onward.training.fit.checkpoint import Checkpoint
from onward.training.network.network import Network, Signature
from onward.training.report import html_report, report_table


class LosesError(OnwardError):
    """The model loses to a naive forecast although it must beat all; the message is the table of scores."""


@dataclass(frozen=True, slots=True)
class FittedNetwork:
    """A trained network with its data and the history of its losses."""

    dataset: Dataset
    network: Network
    history: training_loop.History
    refitted: "FittedNetwork | None" = None
    """The network that was then trained on all of the data, and is the one that is published, where there is one."""


SummaryCallback = Callable[[Summary], None]


def train(
    config: Config, *, quiet: bool | None = None, resume: bool = False, must_beat: bool = False
) -> tuple[Path, StepModel]:
    """Fits, exports and evaluates the model of `config`; returns the folder of the new bundle and its model.

    `resume` continues a run that was stopped. Raises DataError, TrainingError, ExportError, CheckError, or, if the
    model `must_beat` the naive forecasts and does not, LosesError; then nothing is published. Of several processes all
    `fit`, and only the first may `publish`.
    """
    fitted = fit(config, quiet=quiet, resume=resume, must_beat=must_beat)
    return publish(config, fitted, must_beat=must_beat)


def fit(
    config: Config,
    *,
    quiet: bool | None = None,
    resume: bool = False,
    must_beat: bool = False,
    on_summary: SummaryCallback | None = None,
) -> FittedNetwork:
    """Loads the data and fits the network, and refits it where the configuration says so.

    `on_summary` receives the summary of a table before the training, in the first of several processes.
    All that can be verified without the trained network is verified before: the folders that are written, and whether
    the test part can be scored, which a model that `must_beat` the naive forecasts needs. Raises DataError or
    TrainingError.
    """
    require_writable_outputs(config)
    dataset = load_dataset(config)
    require_validation(config, dataset)
    require_held_out(config, dataset, must_beat=must_beat)
    if on_summary is not None and dataset.summary is not None and devices.is_first_process():
        on_summary(dataset.summary)
    if devices.is_first_process() and not resume:
        config.refit_checkpoint_file.unlink(missing_ok=True)  # it would be that of an earlier run
    fitted = fit_dataset(config, dataset, quiet=quiet, checkpoint=checkpoint_of(config, dataset), resume=resume)
    if not config.train.refit:
        return fitted
    return replace(fitted, refitted=refit(config, fitted, quiet=quiet, resume=resume))


def refit(config: Config, fitted: FittedNetwork, *, quiet: bool | None = None, resume: bool = False) -> FittedNetwork:
    """Trains a new network on all of the data, for as many epochs as the best one of the fit. Raises as `fit` does."""
    everything = config.model_copy(update={"data": config.data.everything})
    return fit_dataset(
        everything,
        load_dataset(everything),
        quiet=quiet,
        checkpoint=refit_checkpoint_of(config, fitted),
        resume=resume,
        repeated=fitted.history,
    )


def load_dataset(config: Config) -> Dataset:
    """Loads the data of the configuration. Raises DataError or ConfigError."""
    return datasets.load(config.data_file, config.data)


def require_writable_outputs(config: Config, weights: int = 0) -> None:
    """Raises TrainingError if the bundle or the checkpoint of a network of so many weights could not be written."""
    if devices.is_first_process():
        for folder in (config.repository, config.repository / config.name, config.checkpoint_file.parent):
            output_folders.require_writable(folder, weights)


def require_validation(config: Config, dataset: Dataset) -> None:
    """Raises DataError if a setting needs validation losses and no step validates."""
    needing = [
        f"train.{key}"
        for key, is_needing in (
            ("refit", config.train.refit),
            ('schedule = "plateau"', config.train.schedule == "plateau"),
        )
        if is_needing
    ]
    if needing and not dataset.has_validation:
        raise DataError(
            f"{config.data_file}: no step validates, which {' and '.join(needing)} needs: set data.validation"
        )


def require_held_out(config: Config, dataset: Dataset, *, must_beat: bool = False) -> None:
    """Raises DataError if the evaluation after the training could not score the test part.

    Without a test part nothing is evaluated, unless the model `must_beat` the naive forecasts.
    """
    if not dataset.has_test:
        if must_beat:
            raise DataError(
                f"{config.data_file}: nothing is held out, so no naive forecast can be beaten: set data.test"
            )
        return
    columns = {name: index for index, name in enumerate(config.data.inputs) if name in config.data.predicted}
    try:
        if config.data.predicts == "labels":
            held_out.require_labels(dataset.series)
        elif config.data.predicts == "categories":
            held_out.require_categories(dataset.series, *columns.values())
        else:
            held_out.require_numbers(dataset.series, columns, config.data.period)
    except ValueError as error:
        raise DataError(f"{config.data_file}: {error}") from error


def fit_dataset(
    config: Config,
    dataset: Dataset,
    *,
    quiet: bool | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    on_epoch_end: training_loop.EpochCallback | None = None,
    repeated: training_loop.History | None = None,
) -> FittedNetwork:
    """Fits the network to loaded data. Raises as `training_loop.fit` does."""
    torch.manual_seed(config.train.seed)
    network = build_network(config, dataset)
    if checkpoint is not None:
        require_writable_outputs(config, sum(weights.numel() for weights in network.parameters()))
    history = training_loop.fit(
        network,
        dataset.series,
        config.train,
        quiet=quiet,
        checkpoint=checkpoint,
        resume=resume,
        on_epoch_end=on_epoch_end,
        repeated=repeated,
    )
    return FittedNetwork(dataset, network, history)


def restore_stopped(config: Config) -> FittedNetwork:
    """Loads the best weights so far of a run that was stopped, and those of its refit if that was complete.

    Raises DataError or TrainingError.
    """
    require_writable_outputs(config)
    fitted = _restored(config, checkpoint_of(config, dataset := load_dataset(config)), dataset)
    if fitted is None:
        raise TrainingError(f"{config.checkpoint_file}: no run of this configuration was stopped; train it first")
    if not (config.train.refit and config.refit_checkpoint_file.exists()):
        return fitted
    everything = config.model_copy(update={"data": config.data.everything})
    refitted = _restored(everything, refit_checkpoint_of(config, fitted), load_dataset(everything))
    is_complete = refitted is not None and refitted.history.best == fitted.history.best
    return replace(fitted, refitted=refitted if is_complete else None)


def _restored(config: Config, checkpoint: Checkpoint, dataset: Dataset) -> FittedNetwork | None:
    content = checkpoint.read()
    if content is None:
        return None
    network = build_network(config, dataset)
    return FittedNetwork(dataset, network, training_loop.restore(network, checkpoint.state(content)))


def checkpoint_of(config: Config, dataset: Dataset) -> Checkpoint:
    """Returns the checkpoint of the run of this configuration on these data.

    The run is the same wherever its data lie, its bundle is published and its weights are computed, and however it is
    described and evaluated.
    """
    return Checkpoint(config.checkpoint_file, _identity(config, dataset))


def refit_checkpoint_of(config: Config, fitted: FittedNetwork) -> Checkpoint:
    """Returns the checkpoint of the refit that follows this fit."""
    history = fitted.history
    repeated = {"best epoch": history.best + 1, "validation losses": history.validation}
    return Checkpoint(config.refit_checkpoint_file, _identity(config, fitted.dataset) | {"refit of": repeated})


def _identity(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Returns all that the weights depend on, by name; nothing that they do not depend on."""
    has_categories = any(feature.kind == "category" for feature in dataset.features)
    return {
        "data": {
            "features": [feature.name for feature in dataset.features],
            "predicted": list(config.data.predicted),
            "per": config.data.per if config.data.label else "step",
            "parts": dataset.parts,
            "sha256": dataset.digest,
        },
        "model": config.model.effective(has_categories=has_categories),
        "train": config.train.effective(),
    }


def publish(
    config: Config, fitted: FittedNetwork, *, must_beat: bool = False, finished: bool = True
) -> tuple[Path, StepModel]:
    """Exports, proves and evaluates a fitted network; returns the bundle's folder and its model.

    Of a network that was refitted the metrics are those of the first fit, which did not see the held-out part. The
    checkpoint of a run that is not `finished` stays, so that the run can resume. So does that of a bundle that could
    not be written. Raises as `train` does.
    """
    bundle = config.repository / config.name / str(next_version(config.repository, config.name))
    first, published = fitted, fitted.refitted or fitted
    try:
        measured = None if published is first else _measure_apart(config, first, must_beat=must_beat)
        model = _export(
            config,
            published,
            bundle,
            provenance(config, first),
            lambda model: measured or evaluate(model, config, first.dataset, must_beat=must_beat),
        )
    except (ExportError, CheckError) as error:
        raise type(error)(
            f"{error}; nothing is published; the weights are in {config.checkpoint_file}, from which `onward export` "
            "tries again"
        ) from error
    except OSError as error:
        raise TrainingError(
            f"{bundle}: cannot be written: {error.strerror or error}; nothing is published; the weights are in "
            f"{config.checkpoint_file}, from which `onward export` publishes them, to another output.repository too"
        ) from error
    if finished:
        checkpoints.remove(config.checkpoint_file)
    return bundle, model


def _export(
    config: Config,
    fitted: FittedNetwork,
    bundle: Path,
    origin: dict[str, Any],
    measure: Callable[[StepModel], Measured] = lambda _: Measured(),
) -> StepModel:
    return export_bundle.export(
        fitted.network,
        bundle=bundle,
        sample=proof_sample(fitted.dataset),
        description=config.description,
        provenance=origin,
        data=fitted.dataset.table,
        measure=measure,
    )


def _measure_apart(config: Config, fitted: FittedNetwork, *, must_beat: bool) -> Measured:
    """Returns the metrics of a first fit, whose own graph is not published."""
    assert fitted.refitted is not None
    with tempfile.TemporaryDirectory() as scratch:
        model = _export(config, fitted, Path(scratch) / config.name / "1", {})
        measured = evaluate(model, config, fitted.dataset, must_beat=must_beat)
    repeated: dict[str, JsonValue] = {
        "epochs": len(fitted.refitted.history.train),
        "steps": fitted.refitted.dataset.steps,
    }
    return replace(measured, metrics={**measured.metrics, "refit": repeated})


def evaluate(model: StepModel, config: Config, dataset: Dataset, *, must_beat: bool) -> Measured:
    """Returns the metrics of the model and the report of them. Raises DataError or LosesError.

    Where nothing is held out, no target has figures.
    """
    if not dataset.has_test:
        metrics: dict[str, JsonValue] = {"task": model.manifest.task, "steps": 0, "targets": {}}
        return Measured(
            metrics, lambda manifest: {html_report.REPORT: html_report.html(manifest, None, dataset.summary)}
        )
    try:
        evaluated = evaluation.measure(model, dataset.series, config.data.period, config.data.horizon)
    except ValueError as error:
        raise DataError(f"{config.data_file}: {error}") from error
    if must_beat and evaluation.unbeaten_baselines(evaluated.metrics):
        raise LosesError(report_table.text(model.manifest.model_copy(update={"metrics": evaluated.metrics})))
    return Measured(
        evaluated.metrics,
        lambda manifest: {html_report.REPORT: html_report.html(manifest, evaluated.illustration, dataset.summary)},
    )


def build_network(config: Config, dataset: Dataset) -> Network:
    """Returns the network of the configuration with its initial weights."""
    signature = Signature(
        dataset.features,
        config.data.predicted,
        dataset.classes,
        per_sequence=config.data.label is not None and config.data.per == "sequence",
        differenced=config.data.differenced,
        independent=config.data.channels == "independent",
    )
    return Network(
        config.model,
        signature,
        training_statistics.compute(dataset),
        training_statistics.category_counts(dataset, signature),
    )


def proof_sample(dataset: Dataset, rows: int = 7) -> list[InputArray]:
    """Returns stretches (at most 200 steps, features) of the data, spread over the series.

    The stretches of a short series overlap and differ in their beginnings. Series of less than half as many steps as
    others have are left out.
    """
    longest = min(export_bundle.PROOF_STEPS, max(len(series.values) for series in dataset.series))
    usable = [series.values for series in dataset.series if 2 * len(series.values) >= longest]
    stretches = []
    for row in range(rows):
        values = usable[row % len(usable)]
        start = max(len(values) - export_bundle.PROOF_STEPS, len(values) // 2) * row // rows
        stretches.append(values[start:][: export_bundle.PROOF_STEPS])
    return stretches


def provenance(config: Config, fitted: FittedNetwork) -> dict[str, Any]:
    """Returns the origin of the bundle, in enough detail to reproduce it.

    `epochs`, `losses` and `gradient_norms` are those of the first fit; `refit` has those of the second one.
    """
    dataset, history, refitted = fitted.dataset, fitted.history, fitted.refitted
    published = dataset if refitted is None else refitted.dataset
    return {
        "data": {
            "file": config.data_file.name,
            "sha256": dataset.sha256,
            "series": len(dataset.series),
            "steps": dataset.steps,
            "parts": dataset.parts,
            **(
                {"double_precision": {name: scale._asdict() for name, scale in published.doubles.items()}}
                if published.doubles
                else {}
            ),
            **({"facts": dataset.summary.facts(), "hints": dataset.summary.hints()} if dataset.summary else {}),
        },
        "config": config.model_dump(mode="json", exclude={"tune"}),
        "config_sha256": hashlib.sha256(config.model_dump_json(exclude={"tune"}).encode()).hexdigest(),
        "epochs": len(history.train),
        "best_epoch": history.best + 1,
        "learning_rate": history.learning_rate,
        "losses": {"train": history.train, "validation": history.validation},
        "gradient_norms": {"mean": history.gradient_mean, "largest": history.gradient_largest},
        **({"refit": _refit_provenance(refitted)} if refitted else {}),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("onward", "torch", "onnx", "onnxruntime", "numpy", "polars")},
        },
    }


def _refit_provenance(refitted: FittedNetwork) -> dict[str, Any]:
    history = refitted.history
    return {
        "epochs": len(history.train),
        "steps": refitted.dataset.steps,
        "losses": {"train": history.train},
        "gradient_norms": {"mean": history.gradient_mean, "largest": history.gradient_largest},
    }
