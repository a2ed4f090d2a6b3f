"""What a model's outputs say, as clients read them: numbers as they are, places as the categories they stand for.

Knows nothing of JSON: the service and whoever runs a bundle in process tell answers alike.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from onward.model.manifest import RANKED, Category
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.layout import ANOMALY, ERROR, HIGH, LOW


def readable_outputs(model: StepModel, outputs: Outputs, names: Iterable[str]) -> dict[str, Any]:
    """These of the outputs (...): arrays, or, for places of categories, nested lists of what they stand for."""
    manifest = model.manifest
    told: dict[str, Any] = {name: np.ascontiguousarray(outputs[name]) for name in names}
    if manifest.head.ranks_categories and (places := told.get(RANKED[0])) is not None:
        told[RANKED[0]] = category_names(places.tolist(), manifest.categories)
    return told


def category_names(places: Any, categories: Sequence[Category]) -> Any:
    """Places, however nested, by name; None for those that are no category's."""
    if isinstance(places, list):
        return [category_names(place, categories) for place in places]
    return categories[places] if places < len(categories) else None


def step_fields(model: StepModel, outputs: Outputs) -> dict[str, Any]:
    """`predictions` and `surprise` of outputs (steps,), and of a session's what its answers have beside them."""
    head = model.manifest.head
    told: dict[str, Any] = {"predictions": readable_outputs(model, outputs, head.outputs)}
    if head.surprise is not None:
        told["surprise"] = np.ascontiguousarray(outputs[head.surprise])
    names = outputs.dtype.names or ()
    for name, added in (("error", ERROR), ("anomaly", ANOMALY)):
        if added in names:
            told[name] = np.ascontiguousarray(outputs[added])
    if LOW in names:
        told["interval"] = {"low": np.ascontiguousarray(outputs[LOW]), "high": np.ascontiguousarray(outputs[HIGH])}
    return told


def forecast_fields(model: StepModel, outputs: Outputs) -> dict[str, Any]:
    """A forecast (horizon,): what was fed back, and nothing that holds for one step ahead only."""
    head = model.manifest.head
    told = readable_outputs(model, outputs, head.outputs[:1])
    return {name: [row[:1] for row in rows] for name, rows in told.items()} if head.ranks_categories else told
