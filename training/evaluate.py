"""How good a bundle is on held-out time, measured on the exported graph by the runner that serves.

Owns the metrics and the baselines. Knows nothing of torch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.runner import StepModel
from training.data import Series

CHUNK = 256

Array = NDArray[np.float64]


def one_step(model: StepModel, series: Sequence[Series], period: int | None) -> dict[str, Any]:
    """The error of predicting each held-out step from all steps before it, beside the naive forecasts.

    The session starts with the series, reads training and validation part as it would in service, and is scored on the
    test part. mae: mean absolute error, rmse: root mean squared error, both in the target's units. `last_value` repeats
    the step before, `seasonal_naive` the step one period before (Hyndman and Athanasopoulos 2021, section 5.2).
    `better` is the share by which the model's error is lower: 0.25 is a quarter less, negative is worse.
    """
    places = [model.features.index(target) for target in model.manifest.head.targets]
    errors: dict[str, list[Array]] = {"model": [], "last_value": []}
    if period is not None:
        errors["seasonal_naive"] = []
    surprises = []
    for one in series:
        outputs = predictions(model, one.values)
        centre = outputs[model.manifest.head.outputs[0]].astype(np.float64)
        actual, held = one.values[:, places].astype(np.float64), slice(one.test_from, None)
        errors["model"].append((centre[:-1] - actual[1:])[one.test_from - 1 :])
        errors["last_value"].append((actual[:-1] - actual[1:])[one.test_from - 1 :])
        if period is not None:
            if period > one.test_from:
                raise ValueError(f"data.period: {period} steps is more than series {one.name} has before its test part")
            errors["seasonal_naive"].append(actual[one.test_from - period : len(actual) - period] - actual[held])
        if model.manifest.head.surprise:
            surprises.append(outputs[model.manifest.head.surprise][held].astype(np.float64))
    joined = {name: np.concatenate(parts) for name, parts in errors.items()}
    report: dict[str, Any] = {"steps": len(joined["model"]), "targets": {}}
    for column, target in enumerate(model.manifest.head.targets):
        report["targets"][target] = _table({name: error[:, column] for name, error in joined.items()})
    if surprises:
        report["mean_surprise"] = float(np.concatenate(surprises).mean())
    return report


def predictions(model: StepModel, values: NDArray[np.float32]) -> NDArray[np.void]:
    """(time,) outputs for values (time, features), as one session would get them."""
    state, parts = model.layout.initial(1), []
    for start in range(0, len(values), CHUNK):
        outputs, state = model.run_row(values[start : start + CHUNK], state)
        parts.append(outputs)
    return np.concatenate(parts)


def beaten_everywhere(report: dict[str, Any]) -> bool:
    """Whether the model's errors are below every baseline's, for every target and measure."""
    return not losses(report)


def losses(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The (target, baseline, measure) whose error the model's own is not below."""
    return [
        (target, baseline, measure)
        for target, table in report["targets"].items()
        for baseline in table["better"]
        for measure, error in table["model"].items()
        if not error < table[baseline][measure]
    ]


def _table(errors: dict[str, Array]) -> dict[str, Any]:
    table: dict[str, Any] = {
        name: {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}
        for name, error in errors.items()
    }
    own = table["model"]
    table["better"] = {
        name: {measure: 1 - own[measure] / table[name][measure] for measure in own if table[name][measure] > 0}
        for name in errors
        if name != "model"
    }
    return table
