"""`report.html`: one self-contained page of what a manifest's metrics say, with pictures.

Owns the page. Every figure in it is the manifest's; the pictures also need a trace of the held-out part. Whatever comes
from the data or the configuration is escaped.
"""

import json
import math
from html import escape
from pathlib import Path
from typing import Any, cast

import numpy as np

from onward.model.manifest import Category, Manifest
from onward.training.data.split import ONLY
from onward.training.evaluation import baselines, evaluation
from onward.training.evaluation.backtest import Trace
from onward.training.evaluation.classification import Confusion, Stretch
from onward.training.report import charts, report_table
from onward.training.report.charts import Band, Line, number

REPORT = "report.html"
STRETCH, PICTURED, BINS = 160, 6, 240
"""Steps of the forecast picture, targets that get pictures, points of the surprise picture."""

_STYLE = Path(__file__).with_name("report.css")
_SURPRISE = {
    "negative_log_likelihood": "negative log-likelihood in nats",
    "scaled_absolute_error": "absolute error in training deviations",
    "scaled_squared_error": "squared error in training deviations",
    "scaled_huber_loss": "Huber loss in training deviations",
    "scaled_quantile_loss": "quantile loss in training deviations",
}


def html(manifest: Manifest, picture: Trace | Stretch | Confusion) -> str:
    """The page. picture: what `evaluate.measure` gave beside the manifest's metrics."""
    metrics, provenance = cast("dict[str, Any]", manifest.metrics), cast("dict[str, Any]", manifest.provenance)
    title = f"{escape(manifest.name)} <small>version {manifest.version}</small>"
    body = [f"<header><h1>{title}</h1><p class='lead'>{escape(manifest.description)}</p></header>"]
    body += [_verdict(metrics), _overview(manifest, metrics)]
    for column, target in enumerate(manifest.head.targets):
        body.append(f"<section><h2>{escape(target)}</h2>{_errors(metrics, target)}")
        if isinstance(picture, Trace) and column < PICTURED:
            body.append(_pictures(metrics, picture, target, column))
        elif isinstance(picture, Stretch):
            body.append(_stretch(picture, joined=manifest.features[0].text is not None))
        elif isinstance(picture, Confusion):
            body.append(_confusion(picture))
        body.append("</section>")
    if isinstance(picture, Trace):
        body.append(_surprise(manifest, metrics, picture))
    body += [_losses(provenance), _provenance(manifest, provenance)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(manifest.name)} {manifest.version}</title><style>{_STYLE.read_text()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _verdict(metrics: dict[str, Any]) -> str:
    if losing := report_table.lost(metrics):
        told = _said("bad", "It loses to a naive forecast", f"{_ahead(metrics)}: {'; '.join(losing)}.")
    else:
        measures = " and by ".join(report_table.MEASURES[measure] for measure in evaluation.DECISIVE[metrics["task"]])
        told = _said("good", "It beats every naive forecast", f"{_ahead(metrics)}, for every target, by {measures}.")
    horizons = metrics.get("horizons", {})
    if losing := report_table.lost_ahead(metrics):
        told += _said(
            "bad", "Further ahead it loses", f", taking {horizons['steps']} steps together: {'; '.join(losing)}."
        )
    if "diverges_at" in horizons:
        told += _said("bad", "Fed back, its predictions diverge", f" at step {horizons['diverges_at']}.")
    return told


def _ahead(metrics: dict[str, Any]) -> str:
    return " one step ahead" if metrics["task"] == "forecast" else ""


def _said(kind: str, what: str, more: str) -> str:
    return f"<p class='verdict {kind}'><strong>{what}</strong>{escape(more)}</p>"


def _overview(manifest: Manifest, metrics: dict[str, Any]) -> str:
    what = "labels" if metrics["task"] == "label" else "steps"
    figures = {f"held-out {what}": f"{metrics['steps']:,}", "head": manifest.head.kind.replace("_", " ")}
    if "mean_surprise" in metrics:
        figures["mean surprise"] = number(metrics["mean_surprise"])
    if "horizons" in metrics:
        figures["steps ahead, at most"] = f"{metrics['horizons']['steps']:,}"
        figures["starts of forecasts"] = f"{metrics['horizons']['origins']:,}"
    how = (
        "Measured on the exported graph, as the service runs it, on what was held out, which training never saw. "
        "A session reads each series from its start. "
        + ("" if metrics["task"] == "label" else "What it says of each step is said before the step arrives.")
    )
    return f"<p class='note'>{how}</p>{_figures(figures)}"


def _figures(told: dict[str, str]) -> str:
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in told.items())
    return f"<dl class='figures'>{items}</dl>"


def _errors(metrics: dict[str, Any], target: str) -> str:
    told = metrics["targets"][target]
    shown = [measure for measure in report_table.MEASURES if measure in told["model"]]
    first = evaluation.DECISIVE[metrics["task"]][0]
    rows = []
    for name, label in report_table.NAMES.items():
        if name not in told:
            continue
        cells = "".join(f"<td>{_written(measure, told[name][measure])}</td>" for measure in shown)
        last = "<td></td>" if name == "model" else f"<td>{_compared(told['better'].get(name, {}), first)}</td>"
        own = " class='own'" if name == "model" else ""
        rows.append(f"<tr{own}><th scope='row'>{label}</th>{cells}{last}</tr>")
    head = "".join(f"<th scope='col'>{report_table.MEASURES[measure]}</th>" for measure in shown)
    drawn = (
        f"<h3>{_ahead(metrics).strip().capitalize() or 'What it says'}, beside naive forecasts</h3>"
        f"<div class='scroll'><table><thead><tr><th></th>{head}"
        f"<th scope='col'>{report_table.MEASURES[first]} of this model</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    names = {"crps": "CRPS", "weighted_quantile_loss": "weighted quantile loss"}
    figures = {label: number(told["model"][name]) for name, label in names.items() if name in told["model"]}
    if "coverage_80" in told["model"]:
        figures["the 80% interval covers"] = f"{told['model']['coverage_80']:.1%}"
    return drawn + (_figures(figures) if figures else "")


def _written(measure: str, value: float) -> str:
    return f"{value:.1%}" if measure in report_table.SHARES else number(value)


def _compared(better: dict[str, float], measure: str) -> str:
    if measure not in better:
        return "<span class='worse'>not better: this is exact</span>"
    share = better[measure]
    if share > 0:
        return f"<span class='better'>{share:.1%} better</span>"
    return f"<span class='worse'>{-share:.1%} worse</span>" if share else "<span class='worse'>no better</span>"


def _stretch(shown: Stretch, *, joined: bool) -> str:
    """Categories as they came, darker where they surprised."""
    most = max(float(np.quantile(shown.surprise, 0.98)), 1e-9)
    marks = []
    for category, surprise in zip(shown.categories, shown.surprise.tolist(), strict=True):
        word = "\N{REPLACEMENT CHARACTER}" if category is None else _character(category) if joined else str(category)
        strength = round(100 * min(1.0, surprise / most))
        marks.append(f"<span style='--s:{strength}%' title='{surprise / math.log(2):.2f} bits'>{escape(word)}</span>")
    told = "The darker, the more surprising; the bits are told where the pointer rests."
    kind = "text" if joined else "items"
    return (
        f"<h3>Held out, as it came</h3><p class='note'>{told}</p>"
        f"<p class='stretch {kind}'>{''.join(marks) if joined else ' '.join(marks)}</p>"
    )


def _character(category: Category) -> str:
    return category if isinstance(category, str) else chr(category)


def _confusion(told: Confusion) -> str:
    """Rows are true, columns were said."""
    head = "".join(f"<th scope='col'>{escape(str(name))}</th>" for name in told.classes)
    rows = []
    for name, counts in zip(told.classes, told.counts, strict=True):
        total = max(int(counts.sum()), 1)
        cells = "".join(
            f"<td style='--s:{round(100 * int(count) / total)}%'>{int(count) or ''}</td>" for count in counts
        )
        rows.append(f"<tr><th scope='row'>{escape(str(name))}</th>{cells}</tr>")
    return (
        "<h3>What was said for what</h3><p class='note'>A row is what was true, a column what was said.</p>"
        f"<div class='scroll'><table class='confusion'><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pictures(metrics: dict[str, Any], trace: Trace, target: str, column: int) -> str:
    pair = []
    if metrics.get("horizons", {}).get("steps"):
        pair.append(_horizon(metrics["horizons"]["targets"][target], target))
    if "reliability" in metrics["targets"][target]:
        pair.append(_reliability(metrics["targets"][target]["reliability"], target))
    return _forecasts(trace, target, column) + f"<div class='pair'>{''.join(pair)}</div>"


def _forecasts(trace: Trace, target: str, column: int) -> str:
    steps = min(STRETCH, len(trace.actual))
    xs = np.arange(1.0, steps + 1)
    lines = [Line("what happened", "actual", xs, trace.actual[:steps, column])]
    band = None
    if trace.band is not None:
        low, high = (edge[:steps, column] for edge in trace.band)
        band = Band("its 80% interval", xs, low, high)
    lines.append(Line("said one step before", "model", xs, trace.predicted[:steps, column]))
    horizon, free = trace.rollouts.shape[1], 0
    for origin, rolled in zip(trace.origins.tolist(), trace.rollouts[..., column], strict=True):
        if horizon > 1 and origin >= free and origin + horizon < steps:
            ahead = np.arange(origin + 2.0, origin + 2 + horizon)
            lines.append(Line(f"said up to {horizon} steps before", "rolled", ahead, rolled))
            free = origin + 2 * horizon
    what = f"{target}: forecasts and what happened, {steps} held-out steps of {trace.series}"
    drawn = charts.chart(what, lines, x_label=_where(trace), y_label=target, band=band, whole_x=True, size=(800, 290))
    note = ""
    if len(lines) > 2:
        note = "<p class='note'>The dotted ones feed each prediction back as the next input.</p>"
    return f"<h3>Forecasts and what happened</h3>{note}{drawn}"


def _where(trace: Trace) -> str:
    return "held-out step" + (f", series {trace.series}" if trace.series != ONLY else "")


def _horizon(told: dict[str, Any], target: str) -> str:
    xs = np.arange(1.0, len(told["model"]["mae"]) + 1)
    names = [*(name for name in baselines.NAMES if name in told), "model"]
    lines = [
        Line(report_table.NAMES[name], name, xs, np.array(told[name]["mae"]), dots=name == "model") for name in names
    ]
    what = f"{target}: mean absolute error by steps ahead"
    drawn = charts.chart(
        what, lines, x_label="steps ahead", y_label="MAE", from_zero=True, whole_x=True, size=(430, 330)
    )
    return f"<div><h3>Error by horizon</h3><p class='note'>Predictions are fed back as inputs.</p>{drawn}</div>"


def _reliability(told: dict[str, float], target: str) -> str:
    levels, seen = np.array([float(level) for level in told]), np.array(list(told.values()))
    ends = np.array([0.0, 1.0])
    lines = [Line("ideal", "ideal", ends, ends), Line("observed", "model", levels, seen, dots=True)]
    what = f"{target}: share of steps at or below each quantile"
    drawn = charts.chart(
        what, lines, x_label="level of the quantile", y_label="share at or below it", from_zero=True, size=(430, 330)
    )
    return f"<div><h3>Reliability</h3><p class='note'>On the dashed line, quantiles are what they say.</p>{drawn}</div>"


def _surprise(manifest: Manifest, metrics: dict[str, Any], trace: Trace) -> str:
    if trace.surprise is None or "mean_surprise" not in metrics:
        return ""
    width = max(1, -(-len(trace.surprise) // BINS))
    parts = [trace.surprise[start : start + width] for start in range(0, len(trace.surprise), width)]
    xs = np.array([i * width + (len(part) + 1) / 2 for i, part in enumerate(parts)])
    lines = [Line("mean" if width > 1 else "surprise", "model", xs, np.array([part.mean() for part in parts]))]
    low, high = (np.array([np.quantile(part, level) for part in parts]) for level in (0.1, 0.9))
    band = Band("10% to 90%", xs, low, high) if width > 1 else None
    each = f", {width} steps a point" if width > 1 else ""
    drawn = charts.chart(
        f"surprise over the held-out part of {trace.series}",
        lines,
        x_label=_where(trace),
        y_label=_SURPRISE.get(manifest.head.score or "", "score") + each,
        band=band,
        whole_x=True,
    )
    told = "How unlikely each step was under what was said before it; the lower, the better it was foreseen."
    return f"<section><h2>Surprise</h2><p>{told}</p>{drawn}</section>"


def _losses(provenance: dict[str, Any]) -> str:
    losses = provenance.get("losses")
    if not losses:
        return ""
    lines = [
        Line(name, name, np.arange(1.0, len(losses[name]) + 1), np.array(losses[name], np.float64))
        for name in ("train", "validation")
    ]
    best = provenance.get("best_epoch")
    told = f"The weights kept are those of epoch {best}, where the validation loss was lowest." if best else ""
    drawn = charts.chart("loss by epoch", lines, x_label="epoch", y_label="loss", whole_x=True)
    return f"<section><h2>Training</h2><p>{told}</p>{drawn}</section>"


def _provenance(manifest: Manifest, provenance: dict[str, Any]) -> str:
    source = provenance.get("data", {})
    facts = {
        "data": source.get("file"),
        "data, sha256": source.get("sha256"),
        "series": source.get("series"),
        "steps": source.get("steps"),
        "configuration, sha256": provenance.get("config_sha256"),
        "graph, sha256": manifest.sha256,
        "features": ", ".join(manifest.names),
        "proof": _proof(provenance.get("proof")),
        "made with": ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items()),
    }
    items = "".join(
        f"<dt>{name}</dt><dd>{f'<code>{escape(str(value))}</code>' if 'sha256' in name else escape(str(value))}</dd>"
        for name, value in facts.items()
        if value
    )
    config = escape(json.dumps(provenance.get("config", {}), indent=2, ensure_ascii=False))
    return (
        f"<section><h2>Where it comes from</h2><dl class='facts'>{items}</dl>"
        f"<details><summary>Configuration</summary><pre>{config}</pre></details></section>"
    )


def _proof(told: Any) -> str | None:
    if not told or "largest_difference" not in told:
        return None
    largest, allowed, steps = told["largest_difference"], told["allowed"], told["steps"]
    return f"graph and trained network differ by at most {largest:.2g} over {steps} steps ({allowed:.0e} allowed)"
