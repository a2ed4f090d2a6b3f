"""Evaluates an existing bundle on a table: the table it was trained on, or newer data.

Owns the settings by which a table is read for a bundle. Knows nothing of torch.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from onward.model.manifest import Manifest
from onward.model.runner import StepModel
from onward.model.tables.settings import TableSettings
from onward.training.config import Config, ConfigError, Data, Moment
from onward.training.data import datasets
from onward.training.evaluation import evaluation
from onward.training.evaluation.evaluation import Evaluation

_KEYS = (
    "split", "validation", "test", "validation_from", "test_from", "part", "short_series", "period", "horizon",
)  # fmt: skip
"""The settings that a bundle does not contain, and that are therefore taken from a configuration."""


def measure(
    model: StepModel, file: Path, config: Config | None = None, *, test_from: Moment | None = None
) -> Evaluation:
    """Returns the evaluation of `model` on the held-out part of the table or text `file`, as after training.

    test_from: the time from which the steps of the table are scored; by default the configuration decides. The metrics
    have `trained` where the model was trained on the scored steps too.

    The columns are the features of the bundle, with the categories of the bundle. The settings of the
    table come from `config`, or else from the bundle; those of the split from the configuration of its training.
    Raises DataError or ConfigError.
    """
    settings = data_settings(model.manifest, file, config, test_from)
    declared = (model.manifest.features, model.manifest.head.classes)
    dataset = datasets.load(file, settings, declared, model.input_dtype)
    if not dataset.has_test:
        raise ConfigError(f"{file}: nothing is held out: name the first scored time by --test-from, or use --config")
    evaluated = evaluation.measure(model, dataset.series, settings.period, settings.horizon)
    if _is_trained_on_all(model.manifest) and dataset.sha256 == _origin(model.manifest, "data").get("sha256"):
        return replace(evaluated, metrics={**evaluated.metrics, "trained": True})
    return evaluated


def _origin(manifest: Manifest, section: str) -> dict[str, Any]:
    return cast("dict[str, dict[str, Any]]", manifest.provenance).get(section, {})


def _is_trained_on_all(manifest: Manifest) -> bool:
    return bool(_origin(manifest, "refit")) or _origin(manifest, "config").get("data", {}).get("split") == "none"


def _table_keys(manifest: Manifest, config: Config | None) -> dict[str, Any]:
    """Returns how a table is read: as the configuration says, or as the bundle does."""
    if config is not None:
        return config.data.model_dump(include=set(TableSettings.model_fields))
    data = manifest.data or TableSettings.of_provenance(manifest.provenance)
    return data.model_dump()


def data_settings(manifest: Manifest, file: Path, config: Config | None, test_from: Moment | None = None) -> Data:
    """Returns the settings by which `file` is read for the bundle. Raises ConfigError."""
    configured = config.data.model_dump() if config else _origin(manifest, "config").get("data", {})
    if test_from is not None:
        configured = configured | {"split": "ends", "part": None, "validation_from": None, "validation": 0.0}
        configured["test_from"] = test_from
    keys = {key: configured[key] for key in _KEYS if key in configured} | _table_keys(manifest, config)
    measured = [feature for feature in manifest.features if feature.formula is None]
    head = manifest.head
    if text := manifest.features[0].text:
        shares = {key: value for key, value in keys.items() if key in ("split", "validation", "test")}
        keys = {"text": text, "unknown": manifest.features[0].unknown, **shares}
    elif head.kind == "label":
        keys |= {"label": head.targets[0], "per": head.per}
    else:
        keys |= {"targets": list(head.targets)}
    if not text:
        keys |= {
            "features": [feature.name for feature in measured],
            "categories": [feature.name for feature in measured if feature.kind == "category"],
            "known": [feature.name for feature in measured if feature.role == "known"],
            "static": [feature.name for feature in measured if feature.role == "static"],
            "missing": [feature.name for feature in measured if feature.nullable],
        }
    try:
        settings = Data.model_validate({"path": file.name, **keys})
    except ValidationError as error:
        raise ConfigError(f"{file}: {error.errors()[0]['msg']}") from error
    if settings.inputs != manifest.feature_names:
        raise ConfigError(
            f"{file}: the bundle reads {', '.join(manifest.feature_names)}, "
            f"the configuration would give it {', '.join(settings.inputs)}"
        )
    return settings
