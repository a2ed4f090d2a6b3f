"""A model's outputs as clients read them: numbers as arrays, indices of categories as the categories themselves.

Knows nothing of JSON: the service and the local client use the same fields.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from onward.model.manifest import RANKED, Category
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.layout import ANOMALY, ERROR, HIGH, LOW


def readable_outputs(model: StepModel, outputs: Outputs, names: Iterable[str]) -> dict[str, Any]:
    """Returns the named outputs (...) as arrays; indices of categories as nested lists of the categories."""
    manifest = model.manifest
    fields: dict[str, Any] = {name: np.ascontiguousarray(outputs[name]) for name in names}
    if manifest.head.ranks_categories and (indices := fields.get(RANKED[0])) is not None:
        fields[RANKED[0]] = category_names(indices.tolist(), manifest.categories)
    return fields


def category_names(indices: Any, categories: Sequence[Category]) -> Any:
    """Returns the categories of indices, nested as the indices are; None for an index beyond the categories."""
    if isinstance(indices, list):
        return [category_names(index, categories) for index in indices]
    return categories[indices] if indices < len(categories) else None


def step_fields(model: StepModel, outputs: Outputs) -> dict[str, Any]:
    """Returns `predictions`, `surprise` of steps (steps,), and the scores that a session adds."""
    head = model.manifest.head
    fields: dict[str, Any] = {"predictions": readable_outputs(model, outputs, head.outputs)}
    if head.surprise is not None:
        fields["surprise"] = np.ascontiguousarray(outputs[head.surprise])
    names = outputs.dtype.names or ()
    for name, added in (("error", ERROR), ("anomaly", ANOMALY)):
        if added in names:
            fields[name] = np.ascontiguousarray(outputs[added])
    if LOW in names:
        fields["interval"] = {"low": np.ascontiguousarray(outputs[LOW]), "high": np.ascontiguousarray(outputs[HIGH])}
    return fields | dtype_field(model)


def dtype_field(model: StepModel) -> dict[str, str]:
    """Returns `dtype` for a model whose numbers are in double precision; single precision is not named."""
    return {"dtype": "float64"} if model.input_dtype == np.float64 else {}


def forecast_fields(model: StepModel, outputs: Outputs) -> dict[str, Any]:
    """Returns the fields of a forecast (horizon,): only the output that was fed back.

    The other outputs describe the prediction of one step ahead.
    """
    head = model.manifest.head
    forecast = readable_outputs(model, outputs, head.outputs[:1])
    return {name: [row[:1] for row in rows] for name, rows in forecast.items()} if head.ranks_categories else forecast
