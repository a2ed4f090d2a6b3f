"""An existing bundle, measured on a table: the one it was trained on, or newer data.

Owns how a table is read for a bundle. Knows nothing of torch.
"""

from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from model.manifest import Manifest
from model.runner import StepModel
from training import data, evaluate
from training.config import Config, ConfigError, Data
from training.evaluate import Evaluation

_KEYS = ("series", "time", "calendar", "split", "part", "period", "horizon")
"""What the bundle itself does not say: taken from the configuration."""


def measure(model: StepModel, file: Path, config: Config | None = None) -> Evaluation:
    """The metrics of `model` on what the table or text `file` holds out, as after training.

    The columns are the bundle's features, and its categories hold. How the table tells series, time and seasons is in
    `config`, or else in the configuration that the bundle was trained with, if it has one. Raises DataError or
    ConfigError.
    """
    settings = reading(model.manifest, file, config)
    series = data.load(file, settings, (model.manifest.features, model.manifest.head.classes)).series
    return evaluate.measure(model, series, settings.period, settings.horizon)


def reading(manifest: Manifest, file: Path, config: Config | None) -> Data:
    """How to read `file` for the bundle. Raises ConfigError."""
    provenance = cast("dict[str, Any]", manifest.provenance)
    known = config.data.model_dump() if config else provenance.get("config", {}).get("data", {})
    told = {key: known[key] for key in _KEYS if key in known}
    measured = [feature for feature in manifest.features if feature.formula is None]
    head = manifest.head
    if text := manifest.features[0].text:
        told = {"text": text, "unknown": manifest.features[0].unknown}
    elif head.kind == "label":
        told |= {"label": head.targets[0], "per": head.per}
    else:
        told |= {"targets": list(head.targets)}
    if not text:
        told |= {
            "features": [feature.name for feature in measured],
            "categories": [feature.name for feature in measured if feature.kind == "category"],
            "known": [feature.name for feature in measured if feature.role == "known"],
            "static": [feature.name for feature in measured if feature.role == "static"],
            "missing": [feature.name for feature in measured if feature.nullable],
        }
    try:
        settings = Data.model_validate({"path": file.name, **told})
    except ValidationError as error:
        raise ConfigError(f"{file}: {error.errors()[0]['msg']}") from error
    if settings.inputs != manifest.names:
        raise ConfigError(
            f"{file}: the bundle reads {', '.join(manifest.names)}, "
            f"the configuration would give it {', '.join(settings.inputs)}"
        )
    return settings
