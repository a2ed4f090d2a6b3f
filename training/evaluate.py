"""How good a bundle is on held-out time, measured on the exported graph by the runner that serves.

Owns the backtests: what is read, what is predicted from where, and what it is held to. Knows nothing of torch.

A session starts with each series, reads the training and validation part as it would in service, and is scored on the
test part: one step ahead at every step, and several steps ahead from origins spread over it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.runner import Outputs, StepModel
from model.state import State
from training import baselines, predictive, scores
from training.data import Series
from training.scores import Array

CHUNK, ORIGINS = 256, 512
"""Steps a call; at most so many starts of multi-step forecasts, spread evenly over all held-out time."""

MEASURES = ("mae", "rmse")
"""By which a model is better or worse than a baseline."""


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
class Evaluation:
    metrics: dict[str, Any]
    trace: Trace
    """Of the series with the longest held-out part."""


@dataclass(frozen=True, slots=True)
class _Read:
    """One series, read through: what was said of its held-out steps, and what its rollouts start from."""

    series: Series
    actual: Array  # (time, targets)
    scale: Array  # (targets,) of the training part
    outputs: Outputs  # (held-out steps,) said one step before each
    surprise: Array | None  # (held-out steps,)
    origins: NDArray[np.intp]
    states: State  # (origins,)

    @property
    def held(self) -> Array:
        return self.actual[self.series.test_from :]

    def windows(self, origins: NDArray[np.intp], horizon: int) -> Array:
        """(origins, horizon, targets) what happened."""
        places = origins[:, np.newaxis] + np.arange(1, horizon + 1)
        return np.asarray(self.actual[places], np.float64)

    def naive(self, origins: NDArray[np.intp], horizon: int, period: int | None) -> dict[str, Array]:
        mean = self.actual[: self.series.validation_from].mean(axis=0)
        return baselines.forecasts(self.actual, origins, horizon, period, mean)


def measure(model: StepModel, series: Sequence[Series], period: int | None = None, horizon: int = 1) -> Evaluation:
    """Everything that a manifest's `metrics` say.

    `targets`: by target, `model` and each baseline with their scores one step ahead (`training.scores`), `better`, the
    share by which the model's error is lower (0.25 is a quarter less, negative is worse), and `reliability`, the share
    of steps at or below each quantile, where the head has a distribution. `horizons`: the errors at 1, 2, ... steps
    ahead, where predictions can be fed back and `horizon` is above 1; it is cut to the longest held-out part.
    """
    for one in series:
        if period is not None and period > one.test_from:
            raise ValueError(f"data.period: {period} steps is more than series {one.name} has before its test part")
    horizon = min(horizon, max(len(one.values) - one.test_from for one in series))
    rolls = horizon > 1 and model.manifest.forecasts
    starts = _origins(series, horizon) if rolls else [np.zeros(0, np.intp) for _ in series]
    reads = [_read(model, one, origins, period) for one, origins in zip(series, starts, strict=True)]
    metrics = _one_step(model, reads, period)
    rolled = [roll(model, read.states, horizon) for read in reads]
    if rolls:
        metrics["horizons"] = _multi_step(model, reads, rolled, period)
    longest = max(range(len(reads)), key=lambda i: len(reads[i].held))
    return Evaluation(metrics, _trace(model, reads[longest], rolled[longest]))


def predictions(model: StepModel, values: NDArray[np.float32]) -> Outputs:
    """(time,) outputs for values (time, features), as one session would get them."""
    return _session(model, values, ())[0]


def roll(model: StepModel, state: State, horizon: int) -> Array:
    """(rows, horizon, targets) forecasts from states (rows,): each prediction is fed back as the next input."""
    said = np.zeros((len(state), horizon, len(model.manifest.head.targets)))
    if not len(state):
        return said
    outputs, ones = model.last_prediction(state), np.ones(len(state), np.int32)
    for step in range(horizon):
        if step:
            following, state = model.run(model.fed_back(outputs)[:, np.newaxis], ones, state)
            outputs = following[:, 0]
        said[:, step] = predictive.centre(model.manifest.head, outputs)
    return said


def beaten_everywhere(report: dict[str, Any]) -> bool:
    """Whether the model's errors one step ahead are below every baseline's, for every target and measure."""
    return not losses(report)


def losses(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The (target, baseline, measure) whose error one step ahead the model's own is not below."""
    return [
        (target, baseline, measure)
        for target, table in report["targets"].items()
        for baseline in table["better"]
        for measure in MEASURES
        if not table["model"][measure] < table[baseline][measure]
    ]


def _origins(series: Sequence[Series], horizon: int) -> list[NDArray[np.intp]]:
    """For each series the steps after which `horizon` held-out ones follow, thinned evenly to ORIGINS in all."""
    every = [
        (place, origin)
        for place, one in enumerate(series)
        for origin in range(one.test_from - 1, len(one.values) - horizon)
    ]
    kept = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, min(ORIGINS, len(every))).astype(int))]
    return [np.array([origin for place, origin in kept if place == i], np.intp) for i in range(len(series))]


def _session(model: StepModel, values: NDArray[np.float32], origins: Iterable[int]) -> tuple[Outputs, State]:
    """(time,) outputs of one session over values (time, features), and its states (origins,) after those steps."""
    stops = {int(origin) + 1 for origin in origins}
    edges = sorted({0, len(values), *range(0, len(values), CHUNK), *stops})
    state, parts, states = model.layout.initial(1), [], [model.layout.initial(0)]
    for start, stop in pairwise(edges):
        outputs, state = model.run_row(values[start:stop], state)
        parts.append(outputs)
        if stop in stops:
            states.append(state)
    return np.concatenate(parts), np.concatenate(states)


def _read(model: StepModel, one: Series, origins: NDArray[np.intp], period: int | None) -> _Read:
    head = model.manifest.head
    actual = one.values[:, [model.features.index(target) for target in head.targets]].astype(np.float64)
    outputs, states = _session(model, one.values, origins)
    surprise = outputs[head.surprise][one.test_from :].astype(np.float64) if head.surprise else None
    scale = scores.naive_scale(actual[: one.validation_from], period)
    return _Read(one, actual, scale, outputs[one.test_from - 1 : -1], surprise, origins, states)


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
        table: dict[str, Any] = {
            name: scores.points(forecast[:, 0, column], actual[:, column], _usable(scale[:, column]))
            for name, forecast in said.items()
        }
        table["better"] = _better(table)
        if crps is not None:
            own = {level: quantile[:, column] for level, quantile in levels.items()}
            more, table["reliability"] = predictive.judge(own, crps[:, column], actual[:, column])
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
    finite = np.cumprod(np.isfinite(own).all(axis=(0, 2)))
    horizon = int(finite.sum())
    told: dict[str, Any] = {"steps": horizon, "origins": len(own), "targets": {}}
    if horizon < own.shape[1]:
        told["diverges_at"] = horizon + 1
    said = {"model": own} | _naive(reads, "origins", own.shape[1], period)
    actual = np.concatenate([read.windows(read.origins, own.shape[1]) for read in reads])
    scale = np.concatenate([np.broadcast_to(read.scale, (len(read.origins), *read.scale.shape)) for read in reads])
    for column, target in enumerate(model.manifest.head.targets):
        told["targets"][target] = {}
        for name, forecast in said.items():
            each = [
                scores.points(forecast[:, step, column], actual[:, step, column], _usable(scale[:, column]))
                for step in range(horizon)
            ]
            told["targets"][target][name] = {key: [one[key] for one in each] for key in (each[0] if each else ())}
    return told


def _naive(reads: Sequence[_Read], at: str | None, horizon: int, period: int | None) -> dict[str, Array]:
    """By baseline, (origins, horizon, targets), at the origins of the rollouts or before every held-out step."""
    each = []
    for read in reads:
        every = np.arange(read.series.test_from - 1, len(read.actual) - 1)
        each.append(read.naive(read.origins if at else every, horizon, period))
    return {name: np.concatenate([one[name] for one in each]) for name in each[0]}


def _usable(scale: Array) -> Array | None:
    """None where some series' training part is constant, or shorter than a period: it has no scaled error."""
    return scale if bool((scale > 0).all()) else None


def _better(table: dict[str, Any]) -> dict[str, Any]:
    own = table["model"]
    return {
        name: {measure: 1 - own[measure] / errors[measure] for measure in MEASURES if errors[measure] > 0}
        for name, errors in table.items()
        if name != "model"
    }


def _trace(model: StepModel, read: _Read, rolled: Array) -> Trace:
    head = model.manifest.head
    levels = predictive.quantiles(head, read.outputs)
    band = None
    if all(level in levels for level in predictive.CENTRAL):
        band = (levels[predictive.CENTRAL[0]], levels[predictive.CENTRAL[1]])
    said = predictive.centre(head, read.outputs)
    origins = read.origins - read.series.test_from
    return Trace(read.series.name, read.held, said, band, read.surprise, origins, rolled)
