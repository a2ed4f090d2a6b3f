"""Evaluates an existing bundle on a table: the table it was trained on, or newer data.

Owns the settings by which a table is read for a bundle. Knows nothing of torch.
"""

from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from onward.model.manifest import Manifest
from onward.model.runner import StepModel
from onward.model.tables.settings import TableSettings
from onward.training.config import Config, ConfigError, Data
from onward.training.data import datasets
from onward.training.evaluation import evaluation
from onward.training.evaluation.evaluation import Evaluation

_KEYS = ("split", "part", "short_series", "period", "horizon")
"""The settings that a bundle does not contain, and that are therefore taken from a configuration."""


def measure(model: StepModel, file: Path, config: Config | None = None) -> Evaluation:
    """Returns the evaluation of `model` on the held-out part of the table or text `file`, as after training.

    The columns are the features of the bundle, with the categories of the bundle. The settings of the
    table come from `config`, or else from the bundle; those of the split from the configuration of its training.
    Raises DataError or ConfigError.
    """
    settings = data_settings(model.manifest, file, config)
    declared = (model.manifest.features, model.manifest.head.classes)
    series = datasets.load(file, settings, declared, model.input_dtype).series
    return evaluation.measure(model, series, settings.period, settings.horizon)


def _table_keys(manifest: Manifest, config: Config | None) -> dict[str, Any]:
    """Returns how a table is read: as the configuration says, or as the bundle does."""
    if config is not None:
        return config.data.model_dump(include=set(TableSettings.model_fields))
    data = manifest.data or TableSettings.of_provenance(manifest.provenance)
    return data.model_dump()


def data_settings(manifest: Manifest, file: Path, config: Config | None) -> Data:
    """Returns the settings by which `file` is read for the bundle. Raises ConfigError."""
    provenance = cast("dict[str, Any]", manifest.provenance)
    configured = config.data.model_dump() if config else provenance.get("config", {}).get("data", {})
    keys = {key: configured[key] for key in _KEYS if key in configured} | _table_keys(manifest, config)
    measured = [feature for feature in manifest.features if feature.formula is None]
    head = manifest.head
    if text := manifest.features[0].text:
        keys = {"text": text, "unknown": manifest.features[0].unknown}
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
