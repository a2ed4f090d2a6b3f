"""The evaluation of a bundle on held-out data, run on the exported graph by the runner that serves.

Owns which evaluation fits a task, and the rule by which a model beats a naive forecast. Knows nothing of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onward.model.runner import StepModel
from onward.training.data.datasets import Series
from onward.training.evaluation import backtest, classification
from onward.training.evaluation.backtest import Trace
from onward.training.evaluation.classification import Confusion, Stretch

DECISIVE = {"label": ("accuracy", "macro_f1"), "tokens": ("bits", "mrr"), "forecast": ("mae", "rmse")}
"""The measures by task that decide whether a model beats a naive forecast."""

HIGHER_IS_BETTER = frozenset({"accuracy", "macro_f1", "mrr", "recall_10", "recall_20"})


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of a bundle, and the data that the report illustrates them with."""

    metrics: dict[str, Any]
    illustration: Trace | Stretch | Confusion


def measure(model: StepModel, series: Sequence[Series], period: int | None = None, horizon: int = 1) -> Evaluation:
    """Returns all that a manifest's `metrics` contain.

    `task`, the number of `steps` scored, and `targets`: by target, `model` and each naive forecast with their scores,
    and `better`: by naive forecast and measure, how much better the model is. For errors that is the share by which the
    model's error is lower (0.25 is a quarter less), for other measures the share by which the model's value is higher;
    a negative share is worse. Further keys depend on the task: see `onward.training.evaluation.backtest` and
    `onward.training.evaluation.classification`. Raises ValueError if nothing is held out.
    """
    task = model.manifest.task
    metrics: dict[str, Any]
    illustration: Trace | Stretch | Confusion
    if task == "label":
        metrics, illustration = classification.labels(model, series)
    elif task == "tokens":
        metrics, illustration = classification.tokens(model, series)
    else:
        metrics, illustration = backtest.measure(model, series, period, horizon)
    for table in metrics["targets"].values():
        table["better"] = _better(table, DECISIVE[task])
    return Evaluation({"task": task, **metrics}, illustration)


def unbeaten_baselines(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns each (target, naive forecast, measure) for which the model is not better."""
    return [
        (target, naive, measure)
        for target, table in metrics["targets"].items()
        for naive in table["better"]
        for measure in DECISIVE[metrics["task"]]
        if not _beats(measure, table["model"][measure], table[naive][measure])
    ]


def _beats(measure: str, model: float, naive: float) -> bool:
    return model > naive if measure in HIGHER_IS_BETTER else model < naive


def _better(table: dict[str, Any], measures: Sequence[str]) -> dict[str, Any]:
    model = table["model"]
    return {
        name: {
            measure: model[measure] / errors[measure] - 1
            if measure in HIGHER_IS_BETTER
            else 1 - model[measure] / errors[measure]
            for measure in measures
            if errors[measure] > 0
        }
        for name, errors in table.items()
        if name not in ("model", "reliability")
    }
