"""The held-out scores of a bundle as a plain-text table, and the labels of measures and baselines.

Owns the text that `onward train` and `onward evaluate` print.
"""

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
"""The measures that are written in percent."""

SCORED = {
    "forecast": "one step ahead on {:,} held-out steps",
    "tokens": "the next category on {:,} held-out steps",
    "label": "{:,} held-out labels",
}
"""The scored predictions by task, in words."""


def text(manifest: Manifest) -> str:
    """Returns a table for each target: the scores of the model and of each naive forecast, and how they compare."""
    metrics = cast("dict[str, Any]", manifest.metrics)
    if not metrics["targets"]:
        heading = f"{manifest.name} {manifest.version}: nothing is held out, so nothing is scored"
        return "\n".join([heading, *double_precision(manifest)])
    decisive = ", ".join(MEASURES[measure] for measure in evaluation.DECISIVE[metrics["task"]])
    lines = [f"{manifest.name} {manifest.version}: {SCORED[metrics['task']].format(metrics['steps'])}"]
    lines += double_precision(manifest)
    if "refit" in metrics:
        lines.append(f"figures of the first fit, which did not see these steps; {refitted(metrics)}")
    if metrics.get("trained"):
        lines.append("WARNING: the model was trained on these steps, so the figures are better than those of new data")
    for target, scores in metrics["targets"].items():
        measures = [measure for measure in MEASURES if measure in scores["model"]]
        head = "".join(f"{MEASURES[measure]:>12}" for measure in measures)
        lines += ["", f"{target:<20}{head}   {decisive} of the model relative to it"]
        for name, label in NAMES.items():
            if name in scores:
                row = f"  {label:<18}" + "".join(f"{_formatted(key, scores[name][key]):>12}" for key in measures)
                if better := scores["better"].get(name):
                    row += "   " + ", ".join(f"{_change(*item):+.1%}" for item in better.items())
                lines.append(row)
        lines += _distribution(scores["model"]) + _unknown(metrics) + _ahead(metrics, target)
    if losses := unbeaten(metrics):
        lines += ["", "WARNING: the model loses to a naive forecast: " + "; ".join(losses)]
    if losses := unbeaten_ahead(metrics):
        lines += ["", f"WARNING: over {metrics['horizons']['steps']} steps the model loses: " + "; ".join(losses)]
    return "\n".join(lines)


def refitted(metrics: dict[str, Any]) -> str:
    """Returns in words what the published network was trained on after the one that was scored."""
    epochs, steps = metrics["refit"]["epochs"], metrics["refit"]["steps"]
    return f"the model was then trained anew on all {steps:,} steps for {epochs:,} epoch{'s' if epochs > 1 else ''}"


def double_precision(manifest: Manifest) -> list[str]:
    """Returns the reason why the model computes in double precision, in words; an empty list if it does not."""
    found = cast("dict[str, Any]", manifest.provenance.get("data") or {}).get("double_precision") or {}
    columns = [
        f"{name} (near {scale['magnitude']:.6g}, differing by {scale['spread']:.3g})" for name, scale in found.items()
    ]
    return [f"in double precision, which these need: {', '.join(columns)}"] if columns else []


def unbeaten(metrics: dict[str, Any]) -> list[str]:
    """Returns in words each target, measure and naive forecast that the model does not beat one step ahead."""
    return [
        f"{target} by {MEASURES[measure]} against {NAMES[name]}"
        for target, name, measure in evaluation.unbeaten_baselines(metrics)
    ]


def unbeaten_ahead(metrics: dict[str, Any]) -> list[str]:
    """Returns in words each target and naive forecast whose MAE over all steps ahead the model's is not below."""
    horizons = metrics.get("horizons", {})
    if not horizons.get("steps"):
        return []
    losses = []
    for target, errors in horizons["targets"].items():
        own = sum(errors["model"]["mae"])
        names = [NAMES[name] for name in errors if name != "model" and not own < sum(errors[name]["mae"])]
        if names:
            losses.append(f"{target} by MAE against {', '.join(names)}")
    return losses


def _change(measure: str, better: float) -> float:
    """Returns how the measure itself changes: an error falls if the model is better."""
    return better if measure in evaluation.HIGHER_IS_BETTER else -better


def _formatted(measure: str, value: float) -> str:
    return f"{value:.1%}" if measure in SHARES else f"{value:.4g}"


def _distribution(scores: dict[str, float]) -> list[str]:
    parts = []
    if "coverage_80" in scores:
        parts.append(f"80% interval covers {scores['coverage_80']:.1%}")
    if "crps" in scores:
        parts.append(f"CRPS {scores['crps']:.4g}")
    if "weighted_quantile_loss" in scores:
        parts.append(f"weighted quantile loss {scores['weighted_quantile_loss']:.4g}")
    return [f"  {', '.join(parts)}"] if parts else []


def _unknown(metrics: dict[str, Any]) -> list[str]:
    if not metrics.get("unknown"):
        return []
    return [f"  unknown categories: {metrics['unknown']:.1%} of the steps, which are misses of every row"]


def _ahead(metrics: dict[str, Any], target: str) -> list[str]:
    horizons = metrics.get("horizons", {})
    lines = []
    if "diverges_at" in horizons:
        lines.append(f"  predictions that are fed back diverge at step {horizons['diverges_at']}")
    if steps := horizons.get("steps"):
        errors = [f"{NAMES[name]} {scores['mae'][-1]:.4g}" for name, scores in horizons["targets"][target].items()]
        lines.append(f"  MAE {steps} steps ahead: {', '.join(errors)}")
    return lines
