"""The client's result types, and JSON responses converted to them.

Knows no transport. Numbers come out as floats of the model's own type, 32-bit unless a response names `dtype`, so an
output has the same bits as the model's; categories come out as they are, None for any that is not listed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32 | np.float64]
"""64-bit floats from a model of that type, 32-bit floats from any other."""


def without_none(**members: Any) -> dict[str, Any]:
    """Returns the members that are not None. The service has a default for each member that is left out."""
    return {name: value for name, value in members.items() if value is not None}


# Predictions


@dataclass(frozen=True, eq=False)
class Outputs(Mapping[str, NDArray[Any]]):
    """Arrays by the name of the head's output: `outputs["mean"]`."""

    arrays: Mapping[str, NDArray[Any]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


@dataclass(frozen=True, eq=False)
class Interval:
    """A prediction interval for the next input: `low` and `high` (..., targets).

    An end is infinite while no bound can be computed, so that any number lies inside.
    """

    low: Floats
    high: Floats

    def __getitem__(self, index: int) -> "Interval":
        return Interval(self.low[index], self.high[index])


@dataclass(frozen=True, eq=False)
class Prediction(Outputs):
    """The prediction of the next input, after one step: arrays (targets, ...).

    surprise: the score of the input under the prediction made before it, if the model has one. step: the number of
    inputs consumed. The others come only with the steps of a session, and are None elsewhere. error (targets,): the
    input minus the prediction made before it, NaN where the input is missing; only for numbers. anomaly: how unusual
    the input is for the session, from 0 to 1; also None in the first 19 inputs. interval: present if the
    session was created with one.
    """

    surprise: float | None = None
    step: int = 0
    error: Floats | None = None
    anomaly: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True, eq=False)
class Predictions(Outputs):
    """The predictions after each of several steps: arrays (steps, targets, ...).

    surprise: (steps,). step: the step that was reached. error: (steps, targets). anomaly: (steps,), NaN where a
    Prediction has None. error and anomaly are both None if the service does not compute them.
    """

    surprise: Floats | None = None
    step: int = 0
    error: Floats | None = None
    anomaly: Floats | None = None
    interval: Interval | None = None

    @property
    def each(self) -> list[Prediction]:
        """The prediction after each step."""
        count = len(next(iter(self.arrays.values())))
        return [self._at(index, self.step - count + index + 1) for index in range(count)]

    @property
    def last(self) -> Prediction:
        """The prediction after the last step."""
        return self._at(-1, self.step)

    def _at(self, index: int, step: int) -> Prediction:
        anomaly = None if self.anomaly is None else float(self.anomaly[index])
        return Prediction(
            {name: rows[index] for name, rows in self.arrays.items()},
            None if self.surprise is None else float(self.surprise[index]),
            step,
            None if self.error is None else self.error[index],
            None if anomaly is None or np.isnan(anomaly) else anomaly,
            None if self.interval is None else self.interval[index],
        )


@dataclass(frozen=True, eq=False)
class Forecast(Outputs):
    """Predictions rolled forward from `step`: arrays (horizon, targets).

    Of sample paths, `seed` draws the same ones again, `samples` is their number, `levels` are the levels on the last
    axis of `quantiles` (horizon, targets, levels), and `paths` is (samples, horizon, targets). Of categories, `top` and
    `probability` are the likeliest at each step; if their number differs between steps, both are (horizon,) of arrays.
    """

    step: int
    seed: int | None = None
    samples: int | None = None
    levels: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class SequencePrediction:
    """The predictions of one sequence without a session, and its forecast if the call had a horizon."""

    predictions: Predictions
    forecast: Forecast | None = None


@dataclass(frozen=True, slots=True)
class StatelessStep:
    """The predictions of steps without a session; the caller sends `state` with its next steps."""

    predictions: Predictions
    state: str


@dataclass(frozen=True, slots=True, eq=False)
class Generated:
    """A generated step, `ahead` steps past the last input: a token, or the values (targets,) of a model of numbers.

    top, log_probabilities: the likeliest tokens, if the caller asked for them.
    """

    ahead: int
    token: str | int | None = None
    log_probability: float | None = None
    values: Floats | None = None
    top: tuple[str | int | None, ...] = ()
    log_probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a generation.

    reason: why it ended. seed: generates the same again. step: the session's step. text: the whole text, from a model
    of texts.
    """

    reason: str
    seed: int | None
    step: int
    text: str | None = None


# Sessions


@dataclass(frozen=True, slots=True)
class Surprise:
    """The surprise of a session's inputs so far; `recent` is an exponential mean: the last input has the weight 0.1."""

    count: int
    mean: float
    recent: float


@dataclass(frozen=True, slots=True)
class RecentAccuracy:
    """The accuracy of the predictions of one target, over the last `inputs` that had a prediction.

    These are the last 100 to 199, or all of a shorter session. The other fields are those of `Accuracy`.
    """

    inputs: int
    mae: float | None = None
    mase: float | None = None
    coverage: float | None = None
    hits: float | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The accuracy of the predictions of one target, over the `inputs` that had a prediction.

    mae: mean absolute error. mase: mae divided by that of the previous value as the prediction. coverage: the share of
    inputs inside the model's own central interval, whose nominal coverage is `level`. hits: top-1 accuracy of
    categories; one that is not listed is a miss. Each is None if the model has no outputs to compute it from. recent:
    the same over the last inputs; None from a service that does not compute it.
    """

    inputs: int
    mae: float | None = None
    mase: float | None = None
    coverage: float | None = None
    level: float | None = None
    hits: float | None = None
    recent: RecentAccuracy | None = None


@dataclass(frozen=True, slots=True)
class IntervalInfo:
    """The prediction intervals of a session.

    wanted: their nominal coverage. coverage: by target, the share of inputs that lay inside, None before the first.
    alpha: by target, the share of inputs that the interval leaves out at present. recent_coverage: by target, the
    coverage over the last 100 to 199 inputs; empty from a service that does not compute it.
    """

    wanted: float
    coverage: Mapping[str, float | None]
    alpha: Mapping[str, float]
    recent_coverage: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session; `expires_at` and `ttl_s` (seconds) are None if it never expires."""

    session_id: str
    model: str
    version: int
    step: int
    created_at: datetime
    last_step_at: datetime
    expires_at: datetime | None = None
    ttl_s: float | None = None
    surprise: Surprise | None = None
    replayed: int | None = None
    """The number of inputs from which a migration has computed the state anew."""
    prediction: Prediction | None = field(default=None, compare=False)
    """The prediction of the next input, if the session is new and has one."""
    accuracy: Mapping[str, Accuracy] | None = None
    """Accuracy by target; present if one session was asked for, and absent from lists of sessions."""
    interval: IntervalInfo | None = None
    """Present if `accuracy` is and the session was created with an interval."""
    anomaly: str | None = None
    """The kind of its anomaly: "run", "tail" or "rank"; absent from lists of sessions."""


# Responses


Dtype = type[np.float32] | type[np.float64] | np.dtype[np.float32 | np.float64]


def _dtype(response: Mapping[str, Any]) -> Dtype:
    """Returns the type of the numbers in a response."""
    return np.float64 if response.get("dtype") == "float64" else np.float32


def outputs(arrays: Mapping[str, Any], dtype: Dtype = np.float32) -> dict[str, NDArray[Any]]:
    """Returns the outputs as arrays by name. `top`, and `paths` beside it, hold categories; all others numbers."""
    categories = {"top", "paths"} if "top" in arrays else set()
    return {name: _rows(values, object if name in categories else dtype) for name, values in arrays.items()}


def _rows(values: Any, dtype: Dtype | type[object]) -> NDArray[Any]:
    """Returns one array; if the rows differ in length, (rows,) of arrays."""
    if isinstance(values, list) and len({len(row) for row in values if isinstance(row, list)}) > 1:
        ragged = np.empty(len(values), object)
        ragged[:] = [np.array(row, dtype) for row in values]
        return ragged
    return np.asarray(values, dtype)


def predictions(response: Mapping[str, Any]) -> Predictions:
    """Returns the content of a response to steps."""
    interval, dtype = response.get("interval"), _dtype(response)
    surprise, error, anomaly = (_numbers(response.get(name), dtype) for name in ("surprise", "error", "anomaly"))
    return Predictions(
        outputs(response["predictions"], dtype),
        surprise,
        response.get("step", 0),
        error,
        anomaly,
        None
        if interval is None
        else Interval(_bounds(interval["low"], -np.inf, dtype), _bounds(interval["high"], np.inf, dtype)),
    )


def _numbers(rows: Any, dtype: Dtype) -> Floats | None:
    """Returns an array with NaN for each missing number."""
    return None if rows is None else np.asarray(rows, dtype)


def _bounds(rows: Any, missing: float, dtype: Dtype) -> Floats:
    bounds: Floats = np.asarray(rows, dtype)
    return np.where(np.isnan(bounds), bounds.dtype.type(missing), bounds)


def forecast(response: Mapping[str, Any], step: int | None = None) -> Forecast:
    """Returns the content of a response to a forecast."""
    return Forecast(
        outputs(response["forecast"], _dtype(response)),
        response["step"] if step is None else step,
        response.get("seed"),
        response.get("samples"),
        tuple(response.get("levels", ())),
    )


def sequences(response: Mapping[str, Any]) -> list[SequencePrediction]:
    """Returns the content of a response to predict; the steps of each sequence are counted from its own first."""
    results = []
    for sequence in response["sequences"]:
        count = len(next(iter(sequence["predictions"].values())))
        ahead = forecast(sequence, count) if sequence.get("forecast") is not None else None
        results.append(SequencePrediction(predictions({**sequence, "step": count}), ahead))
    return results


def generated(event: Mapping[str, Any]) -> Generated:
    """Returns the content of an event of a generation."""
    values = event.get("values")
    return Generated(
        event["ahead"],
        event.get("token"),
        event.get("log_probability"),
        None if values is None else np.asarray(values, _dtype(event)),
        tuple(event.get("top", ())),
        tuple(np.asarray(event.get("log_probabilities", ()), np.float32).tolist()),
    )


def session(response: Mapping[str, Any]) -> SessionInfo:
    """Returns the session that a response describes."""
    surprise, accuracy, interval = response["surprise"], response.get("accuracy"), response.get("interval")
    prediction = response.get("prediction")
    return SessionInfo(
        response["session_id"],
        response["model"],
        response["version"],
        response["step"],
        datetime.fromisoformat(response["created_at"]),
        datetime.fromisoformat(response["last_step_at"]),
        datetime.fromisoformat(response["expires_at"]),
        response["ttl_s"],
        None if surprise is None else Surprise(surprise["count"], surprise["mean"], surprise["recent"]),
        response.get("replayed"),
        Prediction(outputs(prediction, _dtype(response)), None, response["step"]) if prediction else None,
        None if accuracy is None else {target: target_accuracy(numbers) for target, numbers in accuracy.items()},
        None if interval is None else _interval(interval),
        response.get("anomaly"),
    )


def target_accuracy(numbers: Mapping[str, Any]) -> Accuracy:
    """Returns the accuracy of one target from its fields; a later service may have more of them."""
    recent = numbers.get("recent")
    return Accuracy(
        **_named(numbers, ("inputs", "mae", "mase", "coverage", "level", "hits")),
        recent=recent and RecentAccuracy(**_named(recent, ("inputs", "mae", "mase", "coverage", "hits"))),
    )


def _interval(numbers: Mapping[str, Any]) -> IntervalInfo:
    return IntervalInfo(**_named(numbers, ("wanted", "coverage", "alpha", "recent_coverage")))


def _named(members: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: members[name] for name in names if name in members}
