"""The identity of a run: exactly the settings and data that its weights depend on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from onward.training import config, run
from onward.training.config import Config
from tests.training.test_run import CONFIG, project

__all__ = ["project"]

CHANGES: dict[str, dict[str, Any]] = {
    "data": {
        "path": "moved.csv", "separator": ",", "encoding": "utf-8", "missing_values": ["?"], "duplicates": "first",
        "gaps": "refuse", "unsorted": "refuse", "interval": 1.0, "min_count": 1, "unknown": True,
        "short_series": "drop", "period": 6, "horizon": 3,
        "features": ["level", "wind"], "targets": ["wind", "level"], "static": [],
        "missing": ["wind"], "transforms": {"wind": "asinh"}, "changes": ["level"], "validation": 0.2, "test": 0.2,
        "split": "none", "validation_from": 90, "test_from": 100, "calendar": [],
    },
    "model": {
        "cell": "lstm", "layers": 2, "units": 7, "dropout": 0.5, "input_dropout": 0.5, "embedding_dropout": 0.5,
        "residual": True, "layer_norm": True, "locked_dropout": True, "weight_drop": 0.5, "scaling": "causal",
        "half_life": 7.0, "embedding": 3, "tied": True, "negatives": 5, "top": 3, "head": "point", "loss": "mse",
        "quantiles": [0.2, 0.5, 0.8],
    },
    "train": {
        "seed": 4, "epochs": 3, "sampling": "windows", "window": 10, "batch": 3, "learning_rate": 0.01, "warmup": 5,
        "schedule": "cosine", "weight_decay": 0.3, "clip": 0.01, "averaging": 0.5, "refit": True, "device": "cpu",
    },
}  # fmt: skip
"""Another value of each key that a fit of numbers on a CPU may have."""
ELSEWHERE = {
    "data": {
        "package", "text", "label", "per", "categories", "part", "series", "time", "time_format", "time_zone",
        "decimal", "known", "lead", "channels", "thousands", "lines_above_header",
        "lines_below_header", "refuse_beyond",
    },
    "model": {"label_smoothing"},
    "train": {"burn_in", "patience", "precision", "compile", "threads"},
}  # fmt: skip
"""The keys of other kinds of data and machines, or whose effect shows in other runs only."""


def changed(settings: Config, section: str, key: str) -> Config:
    document = settings.model_dump()
    document[section][key] = CHANGES[section][key]
    return Config.model_validate(document, strict=False).model_copy(update={"folder": settings.folder})


def weights(settings: Config) -> dict[str, torch.Tensor]:
    network = run.fit_dataset(settings, run.load_dataset(settings), quiet=True).network
    return {name: value for name, value in network.state_dict().items() if value.numel()}


@pytest.mark.slow
def test_the_identity_has_what_the_weights_depend_on_and_nothing_else(project: Path) -> None:
    """A key is part of the identity if and only if the run of another value has other weights."""
    (project / "tide.toml").write_text(CONFIG.replace("epochs = 3", "epochs = 2"))
    (project / "moved.csv").write_text((project / "tide.csv").read_text())
    settings = config.read(project / "tide.toml")
    before, identity = weights(settings), run.checkpoint_of(settings, run.load_dataset(settings)).run
    wrong = []
    for section, keys in CHANGES.items():
        for key in keys:
            changed_settings = changed(settings, section, key)
            after = weights(changed_settings)
            has_same_weights = before.keys() == after.keys() and all(
                torch.equal(before[name], value) for name, value in after.items()
            )
            is_same_run = run.checkpoint_of(changed_settings, run.load_dataset(changed_settings)).run == identity
            if has_same_weights != is_same_run:
                wrong.append(f"{section}.{key}: {has_same_weights=} {is_same_run=}")
    assert wrong == []


def test_every_key_is_classified() -> None:
    """A new key of the configuration is added to one of the two tables."""
    sections: dict[str, type[config.Section]] = {"data": config.Data, "model": config.Model, "train": config.Train}
    for section, model in sections.items():
        assert CHANGES[section].keys() | ELSEWHERE[section] == set(model.model_fields), section
        assert not CHANGES[section].keys() & ELSEWHERE[section]
