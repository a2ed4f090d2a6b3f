"""What goes in and what comes out, as Python has it: inputs to JSON, answers to numpy arrays.

Knows the forms of the wire and no transport. Numbers come out as 32-bit floats, which is what models compute in, so an
answer is the same bits as the model's; categories come out as they are, None for any that is not listed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = float | int | str | None
Step = Value | Sequence[Value] | Mapping[str, Value] | NDArray[Any] | np.generic
"""One step: a value of each feature, in order or by name, or one value where there is one feature."""
Steps = str | Sequence[Any] | NDArray[Any]
"""Steps, oldest first: a text, or a list or an array (steps, features) or (steps,)."""


# In


def steps(inputs: Steps) -> Any:
    """As JSON has them; NaN is null, a missing value. Raises ValueError for an infinity, which JSON has not."""
    if isinstance(inputs, str):
        return inputs
    if isinstance(inputs, np.ndarray):
        return _array(inputs)
    return [_plain(one) for one in inputs]


def step(one: Step) -> Any:
    """A list of this one step."""
    return [_plain(one)]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        if np.isnan(value):
            return None
        raise ValueError("an infinity is no value; a missing one is None or NaN")
    return value


def _array(values: NDArray[Any]) -> Any:
    if values.dtype.kind == "f" and np.isfinite(values).all():
        return values.tolist()
    return _plain(values.tolist())


# Out


@dataclass(frozen=True, eq=False)
class Outputs(Mapping[str, NDArray[Any]]):
    """Arrays by output of the head: `outputs["mean"]`."""

    arrays: Mapping[str, NDArray[Any]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


@dataclass(frozen=True, eq=False)
class Interval:
    """Of the next input: `low` and `high` (..., targets). An end is infinite where no bound is known yet, so that any
    number lies inside.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def __getitem__(self, place: int) -> "Interval":
        return Interval(self.low[place], self.high[place])


@dataclass(frozen=True, eq=False)
class Prediction(Outputs):
    """Of the next input, after one step: arrays (targets, ...).

    surprise: the score of the input under the prediction made before it, where the model has one. step: how many inputs
    were consumed. What only a session's steps tell, None elsewhere: error (targets,), the input minus the prediction
    made before it, NaN where the input is missing, of numbers; anomaly, from 0 to 1, how unusual the surprise is among
    the session's last 256, None too while there are few; interval, where the session was begun with one.
    """

    surprise: float | None = None
    step: int = 0
    error: NDArray[np.float32] | None = None
    anomaly: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True, eq=False)
class Predictions(Outputs):
    """After each of several steps: arrays (steps, targets, ...), surprise (steps,), and the step that was reached.

    error: (steps, targets), and anomaly: (steps,), NaN where a Prediction has None; both None where nothing tells them.
    """

    surprise: NDArray[np.float32] | None = None
    step: int = 0
    error: NDArray[np.float32] | None = None
    anomaly: NDArray[np.float32] | None = None
    interval: Interval | None = None

    @property
    def each(self) -> list[Prediction]:
        """One a step."""
        count = len(next(iter(self.arrays.values())))
        return [self._at(place, self.step - count + place + 1) for place in range(count)]

    @property
    def last(self) -> Prediction:
        return self._at(-1, self.step)

    def _at(self, place: int, step: int) -> Prediction:
        anomaly = None if self.anomaly is None else float(self.anomaly[place])
        return Prediction(
            {name: rows[place] for name, rows in self.arrays.items()},
            None if self.surprise is None else float(self.surprise[place]),
            step,
            None if self.error is None else self.error[place],
            None if anomaly is None or np.isnan(anomaly) else anomaly,
            None if self.interval is None else self.interval[place],
        )


@dataclass(frozen=True, eq=False)
class Forecast(Outputs):
    """Rolled forward from `step`: arrays (horizon, targets), and what sampling adds to them.

    With samples `seed` repeats them, `samples` is how many there were and `levels` what lies on the last axis of
    `quantiles` (horizon, targets, levels); `paths` is (samples, horizon, targets). Of categories, `top` and
    `probability` are the likeliest at each step; where there are fewer at one than at another, (horizon,) of arrays.
    """

    step: int
    seed: int | None = None
    samples: int | None = None
    levels: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Predicted:
    """One sequence's predictions, and its forecast where one was asked for."""

    predictions: Predictions
    forecast: Forecast | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A step without a session: `state` is to be sent with the next one."""

    predictions: Predictions
    state: str


@dataclass(frozen=True, slots=True, eq=False)
class Generated:
    """`ahead` steps past the last input: a token, or the values (targets,) of a model of numbers.

    top, log_probabilities: of the likeliest tokens, where they were asked for.
    """

    ahead: int
    token: str | int | None = None
    log_probability: float | None = None
    values: NDArray[np.float32] | None = None
    top: tuple[str | int | None, ...] = ()
    log_probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more is generated: `reason` says why, `seed` repeats it, `text` is all of it from a model of texts."""

    reason: str
    seed: int | None
    step: int
    text: str | None = None


def outputs(told: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """By name. `top` is categories, and what is drawn beside it; all else is numbers."""
    categories = {"top", "paths"} if "top" in told else set()
    return {name: _rows(values, object if name in categories else np.float32) for name, values in told.items()}


def _rows(values: Any, dtype: type) -> NDArray[Any]:
    """An array; where rows differ in length, (rows,) of arrays."""
    if isinstance(values, list) and len({len(row) for row in values if isinstance(row, list)}) > 1:
        ragged = np.empty(len(values), object)
        ragged[:] = [np.array(row, dtype) for row in values]
        return ragged
    return np.asarray(values, dtype)


def predictions(told: Mapping[str, Any]) -> Predictions:
    """Of a step's answer."""
    interval = told.get("interval")
    return Predictions(
        outputs(told["predictions"]),
        _numbers(told.get("surprise")),
        told.get("step", 0),
        _numbers(told.get("error")),
        _numbers(told.get("anomaly")),
        None if interval is None else Interval(_bounds(interval["low"], -np.inf), _bounds(interval["high"], np.inf)),
    )


def _numbers(rows: Any) -> NDArray[np.float32] | None:
    """What is missing among them is NaN."""
    return None if rows is None else np.asarray(rows, np.float32)


def _bounds(rows: Any, without: float) -> NDArray[np.float32]:
    found = np.asarray(rows, np.float32)
    return np.where(np.isnan(found), np.float32(without), found)


def forecast(told: Mapping[str, Any], step: int | None = None) -> Forecast:
    """Of a forecast's answer."""
    return Forecast(
        outputs(told["forecast"]),
        told["step"] if step is None else step,
        told.get("seed"),
        told.get("samples"),
        tuple(told.get("levels", ())),
    )


def sequences(told: Mapping[str, Any]) -> list[Predicted]:
    """Of a predict call's answer; steps are counted from each sequence's own beginning."""
    found = []
    for one in told["sequences"]:
        count = len(next(iter(one["predictions"].values())))
        said = predictions({**one, "step": count})
        found.append(Predicted(said, forecast(one, count) if one.get("forecast") is not None else None))
    return found


def generated(told: Mapping[str, Any]) -> Generated:
    values = told.get("values")
    return Generated(
        told["ahead"],
        told.get("token"),
        told.get("log_probability"),
        None if values is None else np.asarray(values, np.float32),
        tuple(told.get("top", ())),
        tuple(np.asarray(told.get("log_probabilities", ()), np.float32).tolist()),
    )


def given(**members: Any) -> dict[str, Any]:
    """Those that are not None: what is left out has the service's default."""
    return {name: value for name, value in members.items() if value is not None}
