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

_KEYS = ("series", "time", "calendar", "period", "horizon")
"""What the bundle itself does not say: taken from the configuration."""


def measure(model: StepModel, file: Path, config: Config | None = None) -> Evaluation:
    """The metrics of `model` on the last part of each series of the table `file`, as after training.

    The columns are the bundle's features. How the table tells series, time and seasons is in `config`, or else in the
    configuration that the bundle was trained with, if it has one. Raises DataError or ConfigError.
    """
    settings = reading(model.manifest, file, config)
    series = data.load(file, settings).series
    return evaluate.measure(model, series, settings.period, settings.horizon)


def reading(manifest: Manifest, file: Path, config: Config | None) -> Data:
    """How to read `file` for the bundle. Raises ConfigError."""
    provenance = cast("dict[str, Any]", manifest.provenance)
    known = config.data.model_dump() if config else provenance.get("config", {}).get("data", {})
    told = {key: known[key] for key in _KEYS if key in known}
    try:
        settings = Data.model_validate(
            {
                "path": file.name,
                "targets": list(manifest.head.targets),
                "features": [name for name in manifest.features if name not in manifest.derived],
                **told,
            }
        )
    except ValidationError as error:
        raise ConfigError(f"{file}: {error.errors()[0]['msg']}") from error
    if settings.inputs != manifest.features:
        raise ConfigError(
            f"{file}: the bundle reads {', '.join(manifest.features)}, "
            f"the configuration would give it {', '.join(settings.inputs)}"
        )
    return settings
