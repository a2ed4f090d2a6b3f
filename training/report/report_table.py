"""The held-out errors of a bundle as a table for people."""

from typing import Any, cast

from onward.model.manifest import Manifest
from onward.training.evaluation import baselines, evaluation

NAMES = {
    "model": "this model",
    **baselines.NAMES,
    "unigram": "most popular",
    "bigram": "Markov chain",
    "most_common": "most common",
}
MEASURES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "mase": "MASE",
    "smape": "sMAPE",
    "bits": "bits",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "recall_10": "recall@10",
    "recall_20": "recall@20",
    "mrr": "MRR@20",
}
SHARES = frozenset({"smape", "accuracy", "recall_10", "recall_20"})
"""Measures that people read in percent."""

WHAT = {
    "forecast": "one step ahead on {:,} held-out steps",
    "tokens": "the next category on {:,} held-out steps",
    "label": "{:,} held-out labels",
}
"""By task, what was measured."""


def text(manifest: Manifest) -> str:
    """One table a target: the model beside each naive forecast, and by how much it is better."""
    metrics = cast("dict[str, Any]", manifest.metrics)
    decide = evaluation.DECISIVE[metrics["task"]]
    against = ", ".join(MEASURES[measure] for measure in decide)
    lines = [f"{manifest.name} {manifest.version}: {WHAT[metrics['task']].format(metrics['steps'])}"]
    for target, table in metrics["targets"].items():
        shown = [measure for measure in MEASURES if measure in table["model"]]
        head = "".join(f"{MEASURES[measure]:>12}" for measure in shown)
        lines += ["", f"{target:<20}{head}   model's {against} against it"]
        for name, label in NAMES.items():
            if name in table:
                row = f"  {label:<18}" + "".join(f"{written(measure, table[name][measure]):>12}" for measure in shown)
                if better := table["better"].get(name):
                    row += "   " + ", ".join(f"{_change(*each):+.1%}" for each in better.items())
                lines.append(row)
        lines += _distribution(table["model"]) + _ahead(metrics, target)
    if losing := lost(metrics):
        lines += ["", "WARNING: the model loses to a naive forecast: " + "; ".join(losing)]
    if losing := lost_ahead(metrics):
        lines += ["", f"WARNING: over {metrics['horizons']['steps']} steps the model loses: " + "; ".join(losing)]
    return "\n".join(lines)


def _change(measure: str, better: float) -> float:
    """How the measure itself changes: errors fall where the model is better."""
    return better if measure in evaluation.HIGHER_IS_BETTER else -better


def lost(metrics: dict[str, Any]) -> list[str]:
    """In words: every target, measure and naive forecast that the model does not beat one step ahead."""
    return [
        f"{target} by {MEASURES[measure]} against {NAMES[name]}"
        for target, name, measure in evaluation.unbeaten_baselines(metrics)
    ]


def lost_ahead(metrics: dict[str, Any]) -> list[str]:
    """In words: where the MAE, taken over all steps ahead, is not below a naive forecast's."""
    told = []
    for target, table in metrics.get("horizons", {}).get("targets", {}).items():
        if not metrics["horizons"]["steps"]:
            continue
        own = sum(table["model"]["mae"])
        if lower := [NAMES[name] for name in table if name != "model" and not own < sum(table[name]["mae"])]:
            told.append(f"{target} by MAE against {', '.join(lower)}")
    return told


def written(measure: str, value: float) -> str:
    """As people read it: shares in percent, the others with four digits."""
    return f"{value:.1%}" if measure in SHARES else f"{value:.4g}"


def _distribution(own: dict[str, float]) -> list[str]:
    told = []
    if "coverage_80" in own:
        told.append(f"80% interval covers {own['coverage_80']:.1%}")
    if "crps" in own:
        told.append(f"CRPS {own['crps']:.4g}")
    if "weighted_quantile_loss" in own:
        told.append(f"weighted quantile loss {own['weighted_quantile_loss']:.4g}")
    return [f"  {', '.join(told)}"] if told else []


def _ahead(metrics: dict[str, Any], target: str) -> list[str]:
    if "horizons" not in metrics:
        return []
    horizons = metrics["horizons"]
    lines = []
    if "diverges_at" in horizons:
        lines.append(f"  fed back, its predictions diverge at step {horizons['diverges_at']}")
    if steps := horizons["steps"]:
        errors = [f"{NAMES[name]} {each['mae'][-1]:.4g}" for name, each in horizons["targets"][target].items()]
        lines.append(f"  MAE {steps} steps ahead: {', '.join(errors)}")
    return lines
