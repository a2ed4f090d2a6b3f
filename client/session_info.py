"""What is told of a session itself: where it is, how long it lives, and how its predictions come true."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from onward.client.results import Prediction, outputs


@dataclass(frozen=True, slots=True)
class Surprise:
    """Of a session's inputs so far; `recent` is a mean that forgets: the last input weighs 0.1."""

    count: int
    mean: float
    recent: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one target, over the `inputs` that had a prediction; None where the model does not say what it takes.

    mae: mean absolute error. mase: mae over that of the value before as the prediction. coverage: the share of inputs
    inside the model's own central interval, which should hold `level`. hits: the share of the likeliest categories.
    """

    inputs: int
    mae: float | None = None
    mase: float | None = None
    coverage: float | None = None
    level: float | None = None
    hits: float | None = None


@dataclass(frozen=True, slots=True)
class IntervalInfo:
    """Of a session with intervals: the share `wanted`; by target the share that they held, None before the first, and
    `alpha`, the share that they leave out at present.
    """

    wanted: float
    coverage: Mapping[str, float | None]
    alpha: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session; `expires_at` and `ttl_s` (seconds) are None where it never does."""

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
    """After a migration: how many inputs made the state anew."""
    prediction: Prediction | None = field(default=None, compare=False)
    """Of the next input, where a new session tells it."""
    accuracy: Mapping[str, Accuracy] | None = None
    """By target; told of one session, not in a list of them."""
    interval: IntervalInfo | None = None
    """Told where `accuracy` is, of a session that was begun with an interval."""


def session(told: Mapping[str, Any]) -> SessionInfo:
    """Of any answer that tells a session."""
    surprise, accuracy, interval = told["surprise"], told.get("accuracy"), told.get("interval")
    last = told.get("prediction")
    return SessionInfo(
        told["session_id"],
        told["model"],
        told["version"],
        told["step"],
        datetime.fromisoformat(told["created_at"]),
        datetime.fromisoformat(told["last_step_at"]),
        datetime.fromisoformat(told["expires_at"]),
        told["ttl_s"],
        None if surprise is None else Surprise(surprise["count"], surprise["mean"], surprise["recent"]),
        told.get("replayed"),
        Prediction(outputs(last), None, told["step"]) if last else None,
        None if accuracy is None else {target: _accuracy(one) for target, one in accuracy.items()},
        None if interval is None else IntervalInfo(interval["wanted"], interval["coverage"], interval["alpha"]),
    )


def _accuracy(told: Mapping[str, Any]) -> Accuracy:
    return Accuracy(told["inputs"], *(told.get(name) for name in ("mae", "mase", "coverage", "level", "hits")))
