"""Backtests of forecasts: rolling over held-out time, one step ahead at every step, and several from many origins.

Owns what is read, what is predicted from where, and what it is held to. Knows nothing of torch.

A session starts with each series, reads what comes before the held-out part as it would in service, and is scored from
there on; of a series that is held out as a whole, from its third step. What is missing is not scored, and the naive
forecasts take the last value seen for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.runner import Outputs, StepModel
from model.state import State
from training import baselines, playback, predictive, scores
from training.data import Series
from training.scores import Array

ORIGINS = 512
"""At most so many starts of multi-step forecasts, spread evenly over all held-out time."""

FIRST = 2
"""The first step that can be scored: a naive forecast needs two before it."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The held-out part of one series, as a picture needs it."""

    series: str
    actual: Array  # (steps, targets)
    said: Array  # (steps, targets) one step ahead
    band: tuple[Array, Array] | None  # (steps, targets) each, the central 80%
    surprise: Array | None  # (steps,)
    origins: NDArray[np.intp]  # the step, from the first held-out one, after which each rollout starts; -1: before it
    rolled: Array  # (origins, horizon, targets)


@dataclass(frozen=True, slots=True)
class _Read:
    """One series, read through: what was said of its held-out steps, and what its rollouts start from."""

    series: Series
    actual: Array  # (time, targets), NaN where missing
    seen: Array  # (time, targets), the last value seen where one is missing
    mean: Array  # (targets,) of the training part
    scale: Array  # (targets,) of the training part
    outputs: Outputs  # (held-out steps,) said one step before each
    surprise: Array | None  # (held-out steps,)
    origins: NDArray[np.intp]
    states: State  # (origins,)

    @property
    def held(self) -> Array:
        return self.actual[_start(self.series) :]

    def future(self, horizon: int) -> NDArray[np.float32]:
        """(origins, horizon, features) the inputs that came."""
        places = self.origins[:, np.newaxis] + np.arange(1, horizon + 1)
        return np.asarray(self.series.values[places], np.float32)

    def windows(self, origins: NDArray[np.intp], horizon: int) -> Array:
        """(origins, horizon, targets) what happened."""
        places = origins[:, np.newaxis] + np.arange(1, horizon + 1)
        return np.asarray(self.actual[places], np.float64)

    def naive(self, origins: NDArray[np.intp], horizon: int, period: int | None) -> dict[str, Array]:
        return baselines.forecasts(self.seen, origins, horizon, period, self.mean)


def measure(
    model: StepModel, series: Sequence[Series], period: int | None = None, horizon: int = 1
) -> tuple[dict[str, Any], Trace]:
    """The metrics, but for what is better, and a trace of the series with the longest held-out part.

    `targets`: by target, `model` and each naive forecast with their scores one step ahead (`training.scores`), and
    `reliability`, the share of steps at or below each quantile, where the head has a distribution. `horizons`: the
    errors at 1, 2, ... steps ahead, where predictions can be fed back and `horizon` is above 1; it is cut to the
    longest held-out part.
    """
    held = [one for one in series if len(one.values) > max(FIRST, one.test_from)]
    if not held:
        raise ValueError("nothing is held out: every held-out series has fewer than three steps")
    for one in held:
        if period is not None and period > max(FIRST, one.test_from):
            raise ValueError(f"data.period: {period} steps is more than series {one.name} has before its test part")
    targets = [model.features.index(target) for target in model.manifest.head.targets]
    mean = np.nanmean(np.concatenate([one.train[:, targets] for one in series]).astype(np.float64), axis=0)
    horizon = min(horizon, max(len(one.values) - _start(one) for one in held))
    rolls = horizon > 1 and playback.rolls(model)
    starts = _origins(held, horizon) if rolls else [np.zeros(0, np.intp) for _ in held]
    reads = [_read(model, one, origins, period, mean) for one, origins in zip(held, starts, strict=True)]
    metrics = _one_step(model, reads, period)
    rolled = [playback.roll(model, read.states, read.future(horizon)) for read in reads]
    if rolls:
        metrics["horizons"] = _multi_step(model, reads, rolled, period)
    longest = max(range(len(reads)), key=lambda i: len(reads[i].held))
    return metrics, _trace(model, reads[longest], rolled[longest])


def _start(one: Series) -> int:
    return max(FIRST, one.test_from)


def _origins(series: Sequence[Series], horizon: int) -> list[NDArray[np.intp]]:
    """For each series the steps after which `horizon` held-out ones follow, thinned evenly to ORIGINS in all."""
    every = [
        (place, origin)
        for place, one in enumerate(series)
        for origin in range(_start(one) - 1, len(one.values) - horizon)
    ]
    kept = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, min(ORIGINS, len(every))).astype(int))]
    return [np.array([origin for place, origin in kept if place == i], np.intp) for i in range(len(series))]


def _read(model: StepModel, one: Series, origins: NDArray[np.intp], period: int | None, mean: Array) -> _Read:
    """mean: (targets,) of all training parts, for a series that has none."""
    head = model.manifest.head
    actual = one.values[:, [model.features.index(target) for target in head.targets]].astype(np.float64)
    outputs, states = playback.session(model, one.values, origins)
    surprise = outputs[head.surprise][_start(one) :].astype(np.float64) if head.surprise else None
    trained = actual[: one.validation_from]
    there = ~np.isnan(trained)
    own = np.where(there.any(axis=0), np.where(there, trained, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1), mean)
    scale, said = scores.naive_scale(trained, period), outputs[_start(one) - 1 : -1]
    return _Read(one, actual, _last_seen(actual, own), own, scale, said, surprise, origins, states)


def _last_seen(values: Array, mean: Array) -> Array:
    """(time, targets) each missing value replaced by the last one before it, or by the mean where there is none."""
    there = ~np.isnan(values)
    last = np.maximum.accumulate(np.where(there, np.arange(len(values))[:, np.newaxis], -1), axis=0)
    return np.where(last >= 0, np.take_along_axis(values, np.maximum(last, 0), axis=0), mean)


def _one_step(model: StepModel, reads: Sequence[_Read], period: int | None) -> dict[str, Any]:
    head = model.manifest.head
    actual = np.concatenate([read.held for read in reads])
    outputs = np.concatenate([read.outputs for read in reads])
    said = {"model": predictive.centre(head, outputs)[:, np.newaxis]} | _naive(reads, None, 1, period)
    scale = np.concatenate([np.broadcast_to(read.scale, read.held.shape) for read in reads])
    levels = predictive.quantiles(head, outputs)
    crps = predictive.crps(head, outputs, actual) if levels else None
    report: dict[str, Any] = {"steps": len(actual), "targets": {}}
    for column, target in enumerate(head.targets):
        there = ~np.isnan(actual[:, column])
        if not there.any():
            raise ValueError(f"no value of {target} is held out: all are missing")
        table: dict[str, Any] = {
            name: scores.points(forecast[there, 0, column], actual[there, column], _usable(scale[there, column]))
            for name, forecast in said.items()
        }
        if crps is not None:
            own = {level: quantile[there, column] for level, quantile in levels.items()}
            more, table["reliability"] = predictive.judge(own, crps[there, column], actual[there, column])
            table["model"] |= more
        report["targets"][target] = table
    surprises = [read.surprise for read in reads if read.surprise is not None]
    if surprises:
        report["mean_surprise"] = float(np.concatenate(surprises).mean())
    return report


def _multi_step(
    model: StepModel, reads: Sequence[_Read], rolled: Sequence[Array], period: int | None
) -> dict[str, Any]:
    own = np.concatenate(rolled)
    actual = np.concatenate([read.windows(read.origins, own.shape[1]) for read in reads])
    some = (~np.isnan(actual)).any(axis=0).all(axis=-1)  # by step: whether every target has a value to be held to
    finite = np.cumprod(np.isfinite(own).all(axis=(0, 2)))
    horizon = int(np.cumprod(finite & some).sum())
    told: dict[str, Any] = {"steps": horizon, "origins": len(own), "targets": {}}
    if not finite.all():
        told["diverges_at"] = int(finite.sum()) + 1
    said = {"model": own} | _naive(reads, "origins", own.shape[1], period)
    scale = np.concatenate([np.broadcast_to(read.scale, (len(read.origins), *read.scale.shape)) for read in reads])
    for column, target in enumerate(model.manifest.head.targets):
        told["targets"][target] = {}
        there = ~np.isnan(actual[..., column])
        for name, forecast in said.items():
            each = [
                scores.points(
                    forecast[there[:, step], step, column],
                    actual[there[:, step], step, column],
                    _usable(scale[there[:, step], column]),
                )
                for step in range(horizon)
            ]
            told["targets"][target][name] = {key: [one[key] for one in each] for key in (each[0] if each else ())}
    return told


def _naive(reads: Sequence[_Read], at: str | None, horizon: int, period: int | None) -> dict[str, Array]:
    """By baseline, (origins, horizon, targets), at the origins of the rollouts or before every held-out step."""
    each = []
    for read in reads:
        every = np.arange(_start(read.series) - 1, len(read.actual) - 1)
        each.append(read.naive(read.origins if at else every, horizon, period))
    return {name: np.concatenate([one[name] for one in each]) for name in each[0]}


def _usable(scale: Array) -> Array | None:
    """None where some series' training part is constant, or shorter than a period: it has no scaled error."""
    return scale if bool((scale > 0).all()) else None


def _trace(model: StepModel, read: _Read, rolled: Array) -> Trace:
    head = model.manifest.head
    levels = predictive.quantiles(head, read.outputs)
    band = None
    if all(level in levels for level in predictive.CENTRAL):
        band = (levels[predictive.CENTRAL[0]], levels[predictive.CENTRAL[1]])
    said = predictive.centre(head, read.outputs)
    origins = read.origins - _start(read.series)
    return Trace(read.series.name, read.held, said, band, read.surprise, origins, rolled)
