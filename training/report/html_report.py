"""`report.html`: a self-contained page of the metrics in a manifest, with charts.

Owns the content of the page; the template `report.html.j2` owns its layout, and escapes whatever comes from the data or
the configuration. Every figure is the manifest's; the charts also need the illustration of an evaluation.
"""

import json
import math
from typing import Any, cast

import numpy as np
from markupsafe import Markup

from onward.model.manifest import Category, Manifest
from onward.model.tables.summary import Summary
from onward.training.data.split import ONLY
from onward.training.evaluation import baselines, evaluation
from onward.training.evaluation.backtest import Trace
from onward.training.evaluation.classification import Confusion, Stretch
from onward.training.report import charts, report_table
from onward.training.report.charts import TEMPLATES, Band, Line, number

REPORT = "report.html"
CHART_STEPS, CHART_TARGETS, SURPRISE_POINTS = 160, 6, 240
"""The most steps of a forecast chart, targets that have charts, and points of the surprise chart."""

_SMALL = (430, 330)
_SURPRISE = {
    "negative_log_likelihood": "negative log-likelihood in nats",
    "scaled_absolute_error": "absolute error in training deviations",
    "scaled_squared_error": "squared error in training deviations",
    "scaled_huber_loss": "Huber loss in training deviations",
    "scaled_quantile_loss": "quantile loss in training deviations",
}


def html(manifest: Manifest, illustration: Trace | Stretch | Confusion | None, summary: Summary | None = None) -> str:
    """Returns the page. illustration: the one that `evaluation.measure` returned with the manifest's metrics, if any.

    summary: that of the table, if the data is one.
    """
    metrics, provenance = cast("dict[str, Any]", manifest.metrics), cast("dict[str, Any]", manifest.provenance)
    trace = illustration if isinstance(illustration, Trace) else None
    page = TEMPLATES.get_template("report.html.j2").render(
        manifest=manifest,
        task=metrics["task"],
        verdicts=_verdicts(metrics),
        overview=_overview(manifest, metrics),
        scores_heading=_ahead(metrics).strip().capitalize() or "Scores",
        targets=[_target(metrics, target, column, trace) for column, target in enumerate(metrics["targets"])],
        stretch=_stretch(manifest, illustration) if isinstance(illustration, Stretch) else None,
        confusion=_confusion(illustration) if isinstance(illustration, Confusion) else None,
        surprise=_surprise_chart(manifest, metrics, trace) if trace else None,
        summary=summary,
        losses=_loss_chart(provenance),
        best_epoch=provenance.get("best_epoch") if provenance.get("losses", {}).get("validation") else None,
        refitted=report_table.refitted(metrics) if "refit" in metrics else None,
        facts=_facts(manifest, provenance),
        config=json.dumps(provenance.get("config", {}), indent=2, ensure_ascii=False),
    )
    return page + "\n"


def _verdicts(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns each verdict as a class of the style sheet, a heading and the rest of the sentence."""
    if not metrics["targets"]:
        return [("bad", "Nothing is held out", ", so nothing is scored.")]
    if unbeaten := report_table.unbeaten(metrics):
        verdicts = [("bad", "The model loses to a naive forecast", f"{_ahead(metrics)}: {'; '.join(unbeaten)}.")]
    else:
        measures = " and by ".join(report_table.MEASURES[measure] for measure in evaluation.DECISIVE[metrics["task"]])
        every = f"{_ahead(metrics)}, for every target, by {measures}."
        verdicts = [("good", "The model beats every naive forecast", every)]
    horizons = metrics.get("horizons", {})
    if unbeaten := report_table.unbeaten_ahead(metrics):
        losses = f", over {horizons['steps']} steps together: {'; '.join(unbeaten)}."
        verdicts.append(("bad", "Further ahead the model loses", losses))
    if "diverges_at" in horizons:
        verdicts.append(("bad", "Predictions that are fed back diverge", f" at step {horizons['diverges_at']}."))
    return verdicts


def _ahead(metrics: dict[str, Any]) -> str:
    return " one step ahead" if metrics["task"] == "forecast" else ""


def _overview(manifest: Manifest, metrics: dict[str, Any]) -> dict[str, str]:
    unit = "labels" if metrics["task"] == "label" else "steps"
    figures = {f"held-out {unit}": f"{metrics['steps']:,}", "head": manifest.head.kind.replace("_", " ")}
    if "mean_surprise" in metrics:
        figures["mean surprise"] = number(metrics["mean_surprise"])
    if "unknown" in metrics:
        figures["unknown categories, which are misses"] = f"{metrics['unknown']:.1%}"
    if "horizons" in metrics:
        figures["steps ahead, at most"] = f"{metrics['horizons']['steps']:,}"
        figures["starts of forecasts"] = f"{metrics['horizons']['origins']:,}"
    return figures


def _target(metrics: dict[str, Any], target: str, column: int, trace: Trace | None) -> dict[str, Any]:
    scores = metrics["targets"][target]
    section = {
        "name": target,
        "scores": _scores(metrics, target),
        "distribution": _distribution(scores["model"]),
        "forecasts": None,
    }
    if trace is not None and column < CHART_TARGETS:
        section["forecasts"] = _forecast_chart(trace, target, column)
        horizons = metrics.get("horizons", {})
        section["horizon"] = _horizon_chart(horizons["targets"][target], target) if horizons.get("steps") else None
        section["reliability"] = _reliability_chart(scores["reliability"], target) if "reliability" in scores else None
    return section


def _scores(metrics: dict[str, Any], target: str) -> dict[str, Any]:
    """Returns the table of a target: the model and each naive forecast with their scores."""
    scores = metrics["targets"][target]
    measures = [measure for measure in report_table.MEASURES if measure in scores["model"]]
    first = evaluation.DECISIVE[metrics["task"]][0]
    rows = []
    for name, label in report_table.NAMES.items():
        if name not in scores:
            continue
        cells = [_formatted(measure, scores[name][measure]) for measure in measures]
        row = {"label": label, "cells": cells, "is_model": name == "model"}
        if name != "model":
            row["verdict"], row["comparison"] = _comparison(scores["better"].get(name, {}).get(first))
        rows.append(row)
    return {
        "labels": [report_table.MEASURES[measure] for measure in measures],
        "compared": report_table.MEASURES[first],
        "rows": rows,
    }


def _distribution(scores: dict[str, float]) -> dict[str, str]:
    labels = {"crps": "CRPS", "weighted_quantile_loss": "weighted quantile loss"}
    figures = {label: number(scores[name]) for name, label in labels.items() if name in scores}
    if "coverage_80" in scores:
        figures["coverage of the 80% interval"] = f"{scores['coverage_80']:.1%}"
    return figures


def _formatted(measure: str, value: float) -> str:
    return f"{value:.1%}" if measure in report_table.SHARES else number(value)


def _comparison(better: float | None) -> tuple[str, str]:
    """Returns a class of the style sheet, and how much better the model is in words; None: the baseline is exact."""
    if better is None:
        return "worse", "not better: the baseline is exact"
    if better > 0:
        return "better", f"{better:.1%} better"
    return "worse", f"{-better:.1%} worse" if better else "no better"


def _stretch(manifest: Manifest, stretch: Stretch) -> dict[str, Any]:
    """Returns each category with the strength of its colour in percent, and its surprise in bits."""
    joined = manifest.features[0].text is not None
    strongest = max(float(np.quantile(stretch.surprise, 0.98)), 1e-9)
    marks = [
        (_word(category, joined=joined), round(100 * min(1.0, surprise / strongest)), f"{surprise / math.log(2):.2f}")
        for category, surprise in zip(stretch.categories, stretch.surprise.tolist(), strict=True)
    ]
    return {"joined": joined, "marks": marks}


def _word(category: Category | None, *, joined: bool) -> str:
    if category is None:
        return "\N{REPLACEMENT CHARACTER}"
    return chr(category) if joined and isinstance(category, int) else str(category)


def _confusion(confusion: Confusion) -> dict[str, Any]:
    """Returns the classes, and by true class each count with the strength of its colour in percent."""
    rows = []
    for name, counts in zip(confusion.classes, confusion.counts.tolist(), strict=True):
        total = max(sum(counts), 1)
        rows.append((name, [(count, round(100 * count / total)) for count in counts]))
    return {"classes": confusion.classes, "rows": rows}


def _forecast_chart(trace: Trace, target: str, column: int) -> dict[str, Any]:
    steps = min(CHART_STEPS, len(trace.actual))
    xs = np.arange(1.0, steps + 1)
    lines = [Line("actual values", "actual", xs, trace.actual[:steps, column])]
    band = None
    if trace.band is not None:
        low, high = (edge[:steps, column] for edge in trace.band)
        band = Band("80% interval", xs, low, high)
    lines.append(Line("forecast one step ahead", "model", xs, trace.predicted[:steps, column]))
    horizon, free = trace.rollouts.shape[1], 0
    for origin, rollout in zip(trace.origins.tolist(), trace.rollouts[..., column], strict=True):
        if horizon > 1 and origin >= free and origin + horizon < steps:
            ahead = np.arange(origin + 2.0, origin + 2 + horizon)
            lines.append(Line(f"forecast up to {horizon} steps ahead", "rolled", ahead, rollout))
            free = origin + 2 * horizon
    description = f"{target}: forecasts and actual values, {steps} held-out steps of {trace.series}"
    figure = charts.chart(
        description, lines, x_label=_x_label(trace), y_label=target, band=band, whole_x=True, size=(800, 290)
    )
    return {"figure": figure, "has_rollouts": len(lines) > 2}


def _x_label(trace: Trace) -> str:
    return "held-out step" + (f", series {trace.series}" if trace.series != ONLY else "")


def _horizon_chart(errors: dict[str, Any], target: str) -> Markup:
    xs = np.arange(1.0, len(errors["model"]["mae"]) + 1)
    names = [*(name for name in baselines.NAMES if name in errors), "model"]
    lines = [
        Line(report_table.NAMES[name], name, xs, np.array(errors[name]["mae"]), dots=name == "model") for name in names
    ]
    description = f"{target}: mean absolute error by steps ahead"
    return charts.chart(
        description, lines, x_label="steps ahead", y_label="MAE", from_zero=True, whole_x=True, size=_SMALL
    )


def _reliability_chart(shares: dict[str, float], target: str) -> Markup:
    levels, ends = np.array([float(level) for level in shares]), np.array([0.0, 1.0])
    observed = Line("observed", "model", levels, np.array(list(shares.values())), dots=True)
    return charts.chart(
        f"{target}: share of steps at or below each quantile",
        [Line("ideal", "ideal", ends, ends), observed],
        x_label="level of the quantile",
        y_label="share at or below it",
        from_zero=True,
        size=_SMALL,
    )


def _surprise_chart(manifest: Manifest, metrics: dict[str, Any], trace: Trace) -> Markup | None:
    if trace.surprise is None or "mean_surprise" not in metrics:
        return None
    width = max(1, -(-len(trace.surprise) // SURPRISE_POINTS))
    parts = [trace.surprise[start : start + width] for start in range(0, len(trace.surprise), width)]
    xs = np.array([index * width + (len(part) + 1) / 2 for index, part in enumerate(parts)])
    lines = [Line("mean" if width > 1 else "surprise", "model", xs, np.array([part.mean() for part in parts]))]
    low, high = (np.array([np.quantile(part, level) for part in parts]) for level in (0.1, 0.9))
    return charts.chart(
        f"surprise over the held-out part of {trace.series}",
        lines,
        x_label=_x_label(trace),
        y_label=_SURPRISE.get(manifest.head.score or "", "score") + (f", {width} steps a point" if width > 1 else ""),
        band=Band("10% to 90%", xs, low, high) if width > 1 else None,
        whole_x=True,
    )


def _loss_chart(provenance: dict[str, Any]) -> Markup | None:
    losses = provenance.get("losses")
    if not losses:
        return None
    lines = [
        Line(name, name, np.arange(1.0, len(losses[name]) + 1), np.array(losses[name], np.float64))
        for name in ("train", "validation")
        if losses[name]
    ]
    return charts.chart("loss by epoch", lines, x_label="epoch", y_label="loss", whole_x=True)


def _facts(manifest: Manifest, provenance: dict[str, Any]) -> dict[str, Any]:
    data = provenance.get("data", {})
    return {
        "data": data.get("file"),
        "data, sha256": data.get("sha256"),
        "series": data.get("series"),
        "steps": data.get("steps"),
        "configuration, sha256": provenance.get("config_sha256"),
        "graph, sha256": manifest.sha256,
        "features": ", ".join(manifest.feature_names),
        "transforms": ", ".join(
            f"{feature.transform.label} of {feature.name}" for feature in manifest.features if feature.transform
        ),
        "known for the predicted step": ", ".join(item.name for item in manifest.features if item.lead),
        "proof": _proof(provenance.get("proof")),
        "made with": ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items()),
    }


def _proof(proof: Any) -> str | None:
    if not proof or "largest_difference" not in proof:
        return None
    largest, allowed, steps = proof["largest_difference"], proof["allowed"], proof["steps"]
    return f"graph and trained network differ by at most {largest:.2g} over {steps} steps ({allowed:.0e} allowed)"
