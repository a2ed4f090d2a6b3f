"""Units in which the numbers of a model are compared: what matters in them, and what rounding alone makes of them.

Owns the unit of each output and of each part of the state. A difference in that unit is compared with a tolerance of
1e-5, or that of the parity vectors. A prediction on its target's axis counts by the target's deviation: so neither a
large level nor a small scale hides an error, and predictions that are all near zero need not agree any closer. Beside
it there is room for the rounding of the numbers themselves.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model import tolerance
from onward.model.runner import StepModel

Numbers = NDArray[Any]

ROUNDINGS = 4
"""Roundings of the largest magnitude by which two computations of a number may differ."""
TOLERANCE = 1e-5
"""The allowed difference in the unit of a number."""

LOCATIONS = frozenset({"point", "mean", "median", "quantiles"})
"""Outputs in the units of the data."""
TRANSFORMED = frozenset({"location", "transformed_quantiles"})
"""Outputs and stored values in transformed units, where targets are transformed."""
DEVIATIONS = ("unit", "std", "scale")
"""Stored values that are the target's deviation in the training part, before a session's first input."""
ON_AXIS = LOCATIONS | TRANSFORMED | set(DEVIATIONS)
"""Outputs and stored values that lie on their target's axis, or are distances on it."""
_NEAR = "near_"
_OF_DATA = ("statistics_in", "previous_in")
"""The tensors of the state that hold numbers of the data."""


def units(
    model: StepModel, outputs: Mapping[str, Numbers], states: Mapping[str, Numbers], deviation: Numbers | None = None
) -> dict[str, Numbers]:
    """Returns the unit of each tensor by name, to be broadcast to its rows.

    outputs, states: expected values, (steps, ...) or of a single step. deviation: (targets,) of the session's targets;
    by default that of the training part or, if that is larger, the spread of the predictions.
    """
    first = _first_values(model)
    targets = _deviation(first)
    if targets is not None:
        targets = _spread(model, outputs, targets) if deviation is None else np.maximum(deviation, targets)
    result = {}
    for name, values in {**outputs, **states}.items():
        if name == model.manifest.head.surprise:
            continue
        result[name] = _unit(model, name, values, first[name], targets)
        in_data_units = bare_name(name) in LOCATIONS and not is_near(name)  # those relative to a level are transformed
        if targets is not None and model.manifest.head.transforms and in_data_units:
            result[name] = _unit_in_data_units(outputs, values, first[name], targets)
        output = bare_name(name)
        if output in result and name != output and not is_near(name):  # it was an output of the last step
            of_output = np.broadcast_to(result[output], first[output].shape)
            result[name] = np.maximum(result[name], of_output.reshape(first[name].shape))
    if (surprise := model.manifest.head.surprise) in outputs:
        assert surprise is not None
        result[surprise] = _surprise_unit(model, outputs, surprise, targets, result)
    return result


def in_units(actual: Numbers, expected: Numbers, unit: Numbers) -> float:
    """Returns the largest difference in its unit: NaN if either array has one, infinite if the shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    return float((difference / unit).max(initial=0.0))


def _unit(model: StepModel, name: str, values: Numbers, first: Numbers, targets: Numbers | None) -> Numbers:
    rows = values.astype(np.float64).reshape(-1, *first.shape)
    magnitude = np.abs(rows).max(axis=0, initial=0.0)
    epsilon, bare = float(np.finfo(model.input_dtype).eps), bare_name(name)
    rounding = ROUNDINGS * epsilon / TOLERANCE
    if targets is not None and bare in ON_AXIS:
        spread = np.repeat(targets, first.size // len(targets)).reshape(first.shape)
        is_distance = bare in DEVIATIONS or is_near(name)
        reach = magnitude if is_distance else np.abs(rows - rows.mean(axis=0)).max(axis=0, initial=0.0)
        return np.asarray(np.maximum(spread, reach) + rounding * magnitude)
    if targets is not None and name.startswith(_OF_DATA):
        return np.where(magnitude > 0, magnitude, 1.0)
    largest = magnitude.max(initial=0.0)
    if model.input_dtype == np.float64:
        largest = max(tolerance.max_magnitude(rows - first), rounding * largest)
    has_no_unit = targets is not None or model.manifest.head.ranks_categories
    return np.asarray(max(largest, 1.0 if has_no_unit else 1e-30))


def _unit_in_data_units(outputs: Mapping[str, Numbers], values: Numbers, first: Numbers, targets: Numbers) -> Numbers:
    """Returns the unit of the inverse of a transform: an error in transformed units is one in proportion to the value.

    The proportion is that of the logarithm, whose mean grows with the square of the predicted deviation.
    """
    magnitude = np.abs(values.astype(np.float64)).reshape(-1, *first.shape).max(axis=0, initial=0.0)
    scale = outputs.get("scale", targets).astype(np.float64).reshape(-1, len(targets)).max(axis=0, initial=0.0)
    proportion = 1 + np.maximum(targets, scale) + scale**2
    return np.asarray(
        np.maximum(magnitude, 1e-30) * np.repeat(proportion, first.size // len(targets)).reshape(first.shape)
    )


def _surprise_unit(
    model: StepModel, outputs: Mapping[str, Numbers], name: str, targets: Numbers | None, found: Mapping[str, Numbers]
) -> Numbers:
    """Returns the magnitude of a surprise, and the effect on it of a prediction that is off by its own tolerance.

    The surprise of an error of e predicted deviations is about e^2 / 2, which changes by e for a change of e by 1.
    """
    magnitude = tolerance.max_magnitude(outputs[name])
    head = model.manifest.head
    if targets is None:
        return np.asarray(max(magnitude, 1.0 if head.ranks_categories else 1e-30))
    smallest = targets
    for output in DEVIATIONS:
        if output in outputs:
            smallest = np.minimum(smallest, outputs[output].reshape(-1, len(targets)).min(axis=0))
    smallest = np.maximum(smallest, 1e-6 * targets)  # no head predicts less, but parity vectors may be damaged
    name = "location" if "location" in found else head.outputs[0]
    location = targets if head.transforms and name != "location" else found[name].reshape(len(targets), -1).max(axis=-1)
    share = float((location / smallest).sum())
    return np.asarray(max(magnitude, 1.0) + share * (1 + np.sqrt(2 * magnitude)))


def _first_values(model: StepModel) -> dict[str, Numbers]:
    """Returns the values of one row before a session's first input: of outputs, and of the state by `Layout.parts`."""
    state = model.layout.initial(1)
    rows = (model.last_prediction(state)[0], model.layout.parts(state)[0])
    return {name: row[name] for row in rows for name in row.dtype.names or ()}


def _deviation(first: Mapping[str, Numbers]) -> Numbers | None:
    """Returns the deviation (targets,) of the training part, if the state has it."""
    for name in DEVIATIONS:
        for label, values in first.items():
            if bare_name(label) == name and values.size and (values > 0).all():
                return np.asarray(values, np.float64).ravel()
    return None


def _spread(model: StepModel, outputs: Mapping[str, Numbers], deviation: Numbers) -> Numbers:
    head = model.manifest.head
    name = "location" if head.transforms else head.outputs[0]
    if name not in outputs:
        return deviation
    centre = np.asarray(outputs[name], np.float64).reshape(-1, len(deviation))
    return np.asarray(np.maximum(deviation, np.abs(centre - centre.mean(axis=0)).max(axis=0, initial=0.0)))


def bare_name(label: str) -> str:
    """Returns the name of the output or of the stored value that a tensor or a part of the state has."""
    if label.startswith(_OF_DATA):
        return label
    name = label.rpartition(".")[2]
    if name.startswith("last_") and name.endswith("_in"):
        name = name.removeprefix("last_").removesuffix("_in")
    return name.removeprefix(_NEAR)


def is_near(label: str) -> bool:
    """Returns whether a stored value is relative to the last value of its target."""
    return label.rpartition(".")[2].removeprefix("last_").startswith(_NEAR)
