"""Backtests of forecasts over held-out time: one step ahead at every step, and several steps ahead from many origins.

Owns which steps are read, from which origins forecasts start, and which values they are compared with. Knows nothing of
torch.

A session starts with each series, reads the steps before the held-out part as it would in service, and is scored from
the first held-out step on. A series that is held out as a whole is scored from its third step on. Missing values are
not scored, and the naive forecasts take the last observed value instead of a missing one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import InputArray
from onward.model.runner import Outputs, StepModel
from onward.model.state import State
from onward.training.data.datasets import Series
from onward.training.evaluation import baselines, held_out, point_metrics, probabilistic_metrics, rollout
from onward.training.evaluation.held_out import first_scored
from onward.training.evaluation.point_metrics import Array

MAX_ORIGINS = 512
"""The most origins of multi-step forecasts; they are spread evenly over all held-out time."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The held-out part of a single series, with the values that the report's charts need."""

    series: str
    actual: Array  # (steps, targets)
    predicted: Array  # (steps, targets) one step ahead
    band: tuple[Array, Array] | None  # (steps, targets) each, the central 80%
    surprise: Array | None  # (steps,)
    origins: NDArray[np.intp]  # index of the held-out step after which each rollout starts; -1: before the first
    rollouts: Array  # (origins, horizon, targets)


@dataclass(frozen=True, slots=True)
class _SeriesRun:
    """A series that a session has read: predictions of the held-out steps, and the states that rollouts start from."""

    series: Series
    actual: Array  # (time, targets), NaN where missing
    filled: Array  # (time, targets), the last observed value where a value is missing
    mean: Array  # (targets,) of the training part
    scale: Array  # (targets,) of the training part
    outputs: Outputs  # (held-out steps,) predictions made one step before each
    surprise: Array | None  # (held-out steps,)
    origins: NDArray[np.intp]
    states: State  # (origins,)

    @property
    def held_out(self) -> Array:
        return self.actual[first_scored(self.series) :]

    def future_inputs(self, horizon: int) -> InputArray:
        """Returns (origins, horizon, features) the inputs that followed each origin."""
        return self.series.values[self._ahead(horizon)]

    def future_actuals(self, horizon: int) -> Array:
        """Returns (origins, horizon, targets) the target values that followed each origin."""
        return np.asarray(self.actual[self._ahead(horizon)], np.float64)

    def naive(self, origins: NDArray[np.intp], horizon: int, period: int | None) -> dict[str, Array]:
        """Returns (origins, horizon, targets) forecasts by naive method."""
        return baselines.forecasts(self.filled, origins, horizon, period, self.mean)

    def _ahead(self, horizon: int) -> NDArray[np.intp]:
        return self.origins[:, np.newaxis] + np.arange(1, horizon + 1)


def measure(
    model: StepModel, series: Sequence[Series], period: int | None = None, horizon: int = 1
) -> tuple[dict[str, Any], Trace]:
    """Returns the metrics without `better`, and a trace of the series with the longest held-out part.

    `targets` has by target `model` and each naive forecast with their scores one step ahead
    (`onward.training.evaluation.point_metrics`), and, if the head has a distribution, `reliability`, the share of steps
    at or below each quantile. `horizons` has the errors at 1, 2, ... steps ahead, if predictions can be fed back and
    `horizon` is above 1; `horizon` is cut to the longest held-out part. Raises ValueError if nothing is held out, or if
    `period` is longer than a series before its held-out part.
    """
    columns = {target: model.features.index(target) for target in model.manifest.head.targets}
    scored = held_out.require_numbers(series, columns, period)
    mean = np.nanmean(
        np.concatenate([item.train[:, list(columns.values())] for item in series]).astype(np.float64), axis=0
    )
    horizon = min(horizon, max(len(item.values) - first_scored(item) for item in scored))
    multi_step = horizon > 1 and rollout.can_roll_out(model)
    origins = _origins(scored, horizon) if multi_step else [np.zeros(0, np.intp) for _ in scored]
    runs = [_run(model, item, starts, period, mean) for item, starts in zip(scored, origins, strict=True)]
    metrics = _one_step(model, runs, period)
    rollouts = [rollout.roll_out(model, run.states, run.future_inputs(horizon)) for run in runs]
    if multi_step:
        metrics["horizons"] = _multi_step(model, runs, rollouts, period)
    longest = max(range(len(runs)), key=lambda index: len(runs[index].held_out))
    return metrics, _trace(model, runs[longest], rollouts[longest])


def _origins(series: Sequence[Series], horizon: int) -> list[NDArray[np.intp]]:
    """Returns by series the steps that `horizon` held-out steps follow, thinned evenly to MAX_ORIGINS in total."""
    candidates = [
        (index, origin)
        for index, item in enumerate(series)
        for origin in range(first_scored(item) - 1, len(item.values) - horizon)
    ]
    spread = np.linspace(0, len(candidates) - 1, min(MAX_ORIGINS, len(candidates))).astype(int)
    chosen = [candidates[number] for number in np.unique(spread)]
    return [np.array([origin for owner, origin in chosen if owner == index], np.intp) for index in range(len(series))]


def _run(
    model: StepModel, series: Series, origins: NDArray[np.intp], period: int | None, overall_mean: Array
) -> _SeriesRun:
    """Runs a session over the series. overall_mean: (targets,) of all training parts, for a series without one."""
    head = model.manifest.head
    actual = series.values[:, [model.features.index(target) for target in head.targets]].astype(np.float64)
    outputs, states = rollout.session(model, series.values, origins)
    surprise = outputs[head.surprise][first_scored(series) :].astype(np.float64) if head.surprise else None
    trained = actual[: series.validation_from]
    present = ~np.isnan(trained)
    total, count = np.where(present, trained, 0).sum(axis=0), present.sum(axis=0)
    mean = np.where(count > 0, total / np.maximum(count, 1), overall_mean)
    scale, predicted = point_metrics.naive_scale(trained, period), outputs[first_scored(series) - 1 : -1]
    return _SeriesRun(series, actual, _filled(actual, mean), mean, scale, predicted, surprise, origins, states)


def _filled(values: Array, mean: Array) -> Array:
    """Returns (time, targets) with each missing value replaced by the last observed value, before any by the mean."""
    present = ~np.isnan(values)
    last = np.maximum.accumulate(np.where(present, np.arange(len(values))[:, np.newaxis], -1), axis=0)
    return np.where(last >= 0, np.take_along_axis(values, np.maximum(last, 0), axis=0), mean)


def _one_step(model: StepModel, runs: Sequence[_SeriesRun], period: int | None) -> dict[str, Any]:
    head = model.manifest.head
    actual = np.concatenate([run.held_out for run in runs])
    outputs = np.concatenate([run.outputs for run in runs])
    before_each = [np.arange(first_scored(run.series) - 1, len(run.actual) - 1) for run in runs]
    forecasts = {"model": probabilistic_metrics.centre(head, outputs)[:, np.newaxis]} | _naive(
        runs, before_each, 1, period
    )
    scale = np.concatenate([np.broadcast_to(run.scale, run.held_out.shape) for run in runs])
    quantiles = probabilistic_metrics.quantiles(head, outputs)
    crps = probabilistic_metrics.crps(head, outputs, actual) if quantiles else None
    metrics: dict[str, Any] = {"steps": len(actual), "targets": {}}
    for column, target in enumerate(head.targets):
        present = ~np.isnan(actual[:, column])
        table: dict[str, Any] = {
            name: point_metrics.points(
                forecast[present, 0, column], actual[present, column], _usable(scale[present, column])
            )
            for name, forecast in forecasts.items()
        }
        if crps is not None:
            by_level = {level: quantile[present, column] for level, quantile in quantiles.items()}
            more, table["reliability"] = probabilistic_metrics.evaluate(
                by_level, crps[present, column], actual[present, column]
            )
            table["model"] |= more
        metrics["targets"][target] = table
    surprises = [run.surprise for run in runs if run.surprise is not None]
    if surprises:
        metrics["mean_surprise"] = float(np.concatenate(surprises).mean())
    return metrics


def _multi_step(
    model: StepModel, runs: Sequence[_SeriesRun], rollouts: Sequence[Array], period: int | None
) -> dict[str, Any]:
    predicted = np.concatenate(rollouts)
    most = predicted.shape[1]
    actual = np.concatenate([run.future_actuals(most) for run in runs])
    comparable = (~np.isnan(actual)).any(axis=0).all(axis=-1)  # by step: whether every target has an actual value
    finite = np.cumprod(np.isfinite(predicted).all(axis=(0, 2)))
    horizon = int(np.cumprod(finite & comparable).sum())
    metrics: dict[str, Any] = {"steps": horizon, "origins": len(predicted), "targets": {}}
    if not finite.all():
        metrics["diverges_at"] = int(finite.sum()) + 1
    forecasts = {"model": predicted} | _naive(runs, [run.origins for run in runs], most, period)
    scale = np.concatenate([np.broadcast_to(run.scale, (len(run.origins), *run.scale.shape)) for run in runs])
    for column, target in enumerate(model.manifest.head.targets):
        metrics["targets"][target] = {}
        present = ~np.isnan(actual[..., column])
        for name, forecast in forecasts.items():
            by_step = [
                point_metrics.points(
                    forecast[present[:, step], step, column],
                    actual[present[:, step], step, column],
                    _usable(scale[present[:, step], column]),
                )
                for step in range(horizon)
            ]
            measures = by_step[0] if by_step else ()
            metrics["targets"][target][name] = {key: [errors[key] for errors in by_step] for key in measures}
    return metrics


def _naive(
    runs: Sequence[_SeriesRun], origins: Sequence[NDArray[np.intp]], horizon: int, period: int | None
) -> dict[str, Array]:
    """Returns (origins of all runs, horizon, targets) forecasts by naive method; origins: those of each run."""
    by_run = [run.naive(starts, horizon, period) for run, starts in zip(runs, origins, strict=True)]
    return {name: np.concatenate([forecasts[name] for forecasts in by_run]) for name in by_run[0]}


def _usable(scale: Array) -> Array | None:
    """Returns the scale, or None if some training part is constant or not longer than a period: MASE is undefined."""
    return scale if bool((scale > 0).all()) else None


def _trace(model: StepModel, run: _SeriesRun, rollouts: Array) -> Trace:
    head = model.manifest.head
    quantiles = probabilistic_metrics.quantiles(head, run.outputs)
    low, high = probabilistic_metrics.CENTRAL
    band = (quantiles[low], quantiles[high]) if low in quantiles and high in quantiles else None
    predicted = probabilistic_metrics.centre(head, run.outputs)
    origins = run.origins - first_scored(run.series)
    return Trace(run.series.name, run.held_out, predicted, band, run.surprise, origins, rollouts)
