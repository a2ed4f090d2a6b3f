"""How good a bundle is on what was held out, measured on the exported graph by the runner that serves.

Owns which measurement fits a bundle, and what it means to beat a naive one. Knows nothing of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.runner import StepModel
from training import backtest, choices
from training.backtest import Trace
from training.choices import Confusion, Stretch
from training.data import Series

DECIDE = {"label": ("accuracy", "macro_f1"), "tokens": ("bits", "mrr"), "forecast": ("mae", "rmse")}
"""By task, the measures by which a model is better or worse than a naive one."""

HIGHER = frozenset({"accuracy", "macro_f1", "mrr", "recall_10", "recall_20"})
"""Measures of which more is better."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    metrics: dict[str, Any]
    picture: Trace | Stretch | Confusion
    """What a page shows of it beside the figures."""


def measure(model: StepModel, series: Sequence[Series], period: int | None = None, horizon: int = 1) -> Evaluation:
    """Everything that a manifest's `metrics` say.

    `task`, `steps` scored, and `targets`: by target, `model` and each naive forecast with their scores, and `better`:
    by naive forecast and measure, how much better the model is: for errors the share by which its own is lower (0.25
    is a quarter less), for the others the share by which it is higher; negative is worse. What else there is depends on
    the task: `training.backtest` and `training.choices`. Raises ValueError where nothing is held out.
    """
    task = model.manifest.task
    metrics: dict[str, Any]
    picture: Trace | Stretch | Confusion
    if task == "label":
        metrics, picture = choices.labels(model, series)
    elif task == "tokens":
        metrics, picture = choices.tokens(model, series)
    else:
        metrics, picture = backtest.measure(model, series, period, horizon)
    for table in metrics["targets"].values():
        table["better"] = _better(table, DECIDE[task])
    return Evaluation({"task": task, **metrics}, picture)


def beaten_everywhere(metrics: dict[str, Any]) -> bool:
    """Whether the model is better than every naive forecast, for every target and measure that decides."""
    return not losses(metrics)


def losses(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The (target, naive forecast, measure) that the model is not better than."""
    return [
        (target, naive, measure)
        for target, table in metrics["targets"].items()
        for naive in table["better"]
        for measure in DECIDE[metrics["task"]]
        if not _beats(measure, table["model"][measure], table[naive][measure])
    ]


def _beats(measure: str, own: float, other: float) -> bool:
    return own > other if measure in HIGHER else own < other


def _better(table: dict[str, Any], measures: Sequence[str]) -> dict[str, Any]:
    own = table["model"]
    return {
        name: {
            measure: own[measure] / errors[measure] - 1 if measure in HIGHER else 1 - own[measure] / errors[measure]
            for measure in measures
            if errors[measure] > 0
        }
        for name, errors in table.items()
        if name not in ("model", "reliability")
    }
