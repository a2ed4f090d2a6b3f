"""One training run, from configuration to bundle.

Owns the order of things: data, fit, export, proof, evaluation. Each of them is another module's.
"""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.repository import next_version
from model.runner import StepModel
from training import calendar, data, evaluate, export, loop
from training.config import Config
from training.data import Dataset
from training.nets import Network, Scaling


def train(config: Config, *, quiet: bool | None = None) -> tuple[Path, StepModel]:
    """Fits, exports and measures what `config` says; returns the new bundle's folder and its model.

    Raises DataError, TrainingError, ExportError, CheckError, or OSError from writing; then nothing is published.
    """
    torch.manual_seed(config.train.seed)
    dataset = data.load(config.data_file, config.data)
    features, targets = config.data.inputs, config.data.targets
    network = Network(config.model, scaling(dataset), [features.index(target) for target in targets])
    history = loop.fit(network, dataset.series, config.train, quiet=quiet)
    bundle = config.repository / config.name / str(next_version(config.repository, config.name))
    model = export.export(
        network,
        bundle=bundle,
        features=features,
        targets=targets,
        sample=sample(dataset),
        description=config.description,
        derived=calendar.formulas(config.data.time or "", config.data.calendar),
        provenance=provenance(config, dataset, history),
        measure=lambda model: evaluate.one_step(model, dataset.series, config.data.period),
    )
    return bundle, model


def scaling(dataset: Dataset) -> Scaling:
    """Mean and deviation of the training parts."""
    values = np.concatenate([one.train for one in dataset.series]).astype(np.float64)
    return Scaling(torch.from_numpy(values.mean(axis=0)), torch.from_numpy(values.std(axis=0)))


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
            "validation_share": data.VALIDATION,
            "test_share": data.TEST,
        },
        "config": told,
        "config_sha256": hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
        "epochs": len(history.train),
        "best_epoch": history.best + 1,
        "losses": {"train": history.train, "validation": history.validation},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("onward", "torch", "onnx", "onnxruntime", "numpy", "polars")},
        },
    }
