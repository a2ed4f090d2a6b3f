"""The same sessions in process: a bundle's model, its state in this process's memory, and no service.

Answers are the service's own, to the bit where the model is exact, and so are the errors of what does not fit.
"""

import pathlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from os import PathLike
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from onward.client import results, session_info
from onward.client.errors import InvalidRequest, NoForecast, NotFinite, StepConflict
from onward.client.generation import Choices
from onward.client.operations import new_id
from onward.client.results import Done, Forecast, Generated, Predicted, Prediction, Predictions, Step, Steps
from onward.client.session_info import IntervalInfo, SessionInfo, Surprise
from onward.model.inputs import InputError, to_array
from onward.model.outputs import forecast_fields, readable_outputs, step_fields
from onward.model.repository import open_bundle
from onward.model.runner import Outputs, StepModel
from onward.model.sampling import rollout
from onward.model.sampling.generation import (
    GeneratedPath,
    GenerationEnd,
    GenerationOptions,
    GenerationStart,
    generated_fields,
)
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.sampling.sample_paths import SAMPLES, draws_paths, path_inputs, require_distribution, summarise_paths
from onward.model.sampling.samplers import new_seed
from onward.model.scoring.accuracy import Accuracy
from onward.model.scoring.surprise import NO_SURPRISES, SurpriseMeans, surprises, update_means
from onward.model.state import State

NOT_FINITE = "these inputs drive the model beyond finite numbers; the session is unmoved"
LIMITS = {
    "horizon": (1, 2**31), "samples": (2, 2**31), "seed": (0, 2**63 - 1), "temperature": (0, 100), "top_k": (1, 2**31),
    "top_p": (0, 1), "repetition_penalty": (1, 100), "logprobs": (1, 2**31), "interval": (0.5, 0.99),
}  # fmt: skip
"""The least and the most of what may be told; a service may have narrower ones."""
ABOVE = {"top_p"}
"""Above the least."""
MOST_STEPS = 100_000_000
"""Of all sample paths together, in the memory of this process; a service takes fewer."""


def load(path: str | PathLike[str], *, threads: int = 1, accuracy: bool = True) -> "Local":
    """The bundle in the folder `path`, verified. Raises `onward.model.manifest.BundleError`.

    accuracy: whether its sessions tell how their predictions come true, as a service does unless `ONWARD_ACCURACY=0`.
    """
    return Local(open_bundle(pathlib.Path(path), threads=threads), accuracy=accuracy)


class Local:
    """One version of one model, in process."""

    def __init__(self, model: StepModel, *, accuracy: bool = True) -> None:
        self.model, self._counted = model, Accuracy(model, enabled=accuracy)

    def __repr__(self) -> str:
        return f"<Local {self.model.manifest.name} {self.model.manifest.version}>"

    def session(
        self, session_id: str | None = None, inputs: Steps | None = None, *, interval: float | None = None
    ) -> "LocalSession":
        """A new session; `inputs` seed its state. interval: as `Client.session` has it."""
        _hold_to_limits(interval=interval)
        if interval is not None and (why := self._counted.why_no_intervals) is not None:
            raise InvalidRequest.here(f"interval: {why}", [("interval", why)])
        return LocalSession(self.model, session_id or new_id(), self._counted, inputs, interval)

    def predict(self, sequences: Sequence[Steps], horizon: int = 0) -> list[Predicted]:
        """Of sequences that stand alone, each from the initial state, and rolled `horizon` steps forward.

        Raises as `LocalSession.steps` and `forecast` do, and NoForecast where `future` would have to be told.
        """
        found, alone = [], Accuracy(self.model, enabled=False)
        if horizon:
            with _refusing():
                rollout.require_rollout_without_future(self.model.manifest)
        for sequence in sequences:
            session = LocalSession(self.model, new_id(), alone)
            told = session.steps(sequence)
            found.append(Predicted(told, session.forecast(horizon) if horizon else None))
        return found


class LocalSession:
    """A session whose state is here. It has no `with` block to live beyond: its end is this object's."""

    def __init__(
        self,
        model: StepModel,
        session_id: str,
        counted: Accuracy,
        inputs: Steps | None = None,
        interval: float | None = None,
    ) -> None:
        """counted: how the predictions of the model's sessions come true."""
        self._model, self._state = model, model.layout.initial(1)
        self.id, self.model, self.version = session_id, model.manifest.name, model.manifest.version
        self.step_count = 0
        self.prediction: Prediction | None = None
        """Of the next input: the last answer, and before the first what the model keeps, if it does."""
        self._began = self._stepped = datetime.now(UTC)
        self._counted, self._accuracy = counted, counted.initial(interval)
        self._surprise: SurpriseMeans = NO_SURPRISES
        if inputs is not None:
            self._advanced(results.steps(inputs), None)
        self.prediction = self._next()

    def __repr__(self) -> str:
        return f"<LocalSession {self.id!r} of {self.model} {self.version} at step {self.step_count}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to end."""

    def info(self) -> SessionInfo:
        """As a service's, without an end."""
        targets, interval = (
            self._counted.target_statistics(self._accuracy),
            self._counted.interval_statistics(self._accuracy),
        )
        return SessionInfo(
            self.id,
            self.model,
            self.version,
            self.step_count,
            self._began,
            self._stepped,
            surprise=Surprise(*self._surprise) if self._surprise[0] else None,
            accuracy=None
            if targets is None
            else {name: session_info.Accuracy(**one._asdict()) for name, one in targets.items()},
            interval=None if interval is None else IntervalInfo(**interval._asdict()),
        )

    def step(self, step: Step, *, at: int | None = None) -> Prediction:
        return self._advanced(results.step(step), at).last

    def steps(self, inputs: Steps, *, at: int | None = None) -> Predictions:
        return self._advanced(results.steps(inputs), at)

    def stream(self, inputs: Iterable[Step]) -> Iterator[Prediction]:
        return map(self.step, inputs)

    def forecast(
        self,
        horizon: int,
        samples: int | None = None,
        quantiles: Sequence[float] | None = None,
        seed: int | None = None,
        future: Steps | None = None,
        inputs: Steps | None = None,
        *,
        paths: bool = False,
    ) -> Forecast:
        """Rolls predictions forward, as `Session.forecast` does; the session stays. All paths take a step at once."""
        _hold_to_limits(horizon=horizon, samples=samples, seed=seed)
        levels = None if quantiles is None else [float(level) for level in quantiles]
        model = self._model
        with _refusing():
            draws = draws_paths(samples=samples, levels=levels, seed=seed, paths=paths)
            start = self._start(horizon, inputs, future)
            if not draws:
                outputs = self._rolled(start, horizon, [RolloutInputs(model, start.known)])
                return Forecast(results.outputs(forecast_fields(model, np.concatenate(outputs))), self.step_count)
            require_distribution(model.manifest.head, samples=samples, levels=levels)
            seed, count = new_seed() if seed is None else seed, SAMPLES if samples is None else samples
            if count * horizon > MOST_STEPS:
                what = f"{count} paths of {horizon} steps are {count * horizon} steps; at most {MOST_STEPS} a call"
                raise InvalidRequest.here(f"samples: {what}", [("samples", what)])
            feeds = [path_inputs(model, start.known, seed, path) for path in range(count)]
            last = self._rolled(start, horizon, feeds)[-1]
            for row, one in enumerate(feeds):
                one.next_targets(last[row : row + 1])
            drawn = summarise_paths(model, self.step_count, seed, feeds, start.outputs, levels)
        return Forecast(results.outputs(drawn.fields(paths=paths)), self.step_count, seed, count, drawn.levels)

    def generate(self, horizon: int, **choices: Unpack[Choices]) -> Iterator[Generated | Done]:
        """Draws up to `horizon` steps, each as it is drawn, and Done; the session stays. choices: see `Choices`."""
        wish: dict[str, Any] = results.given(**choices)
        inputs, future, seed = (wish.pop(name, None) for name in ("inputs", "future", "seed"))
        _hold_to_limits(horizon=horizon, seed=seed, **{name: wish[name] for name in wish if name in LIMITS})
        seed = new_seed() if seed is None else seed
        with _refusing():
            path = GeneratedPath(
                self._model, self._start(horizon, inputs, future), horizon, GenerationOptions(**wish), seed
            )
            for one in path.steps(self._run):
                if isinstance(one, GenerationEnd):
                    yield Done(one.reason, seed, self.step_count, one.text)
                else:
                    yield results.generated(generated_fields(self._model, one))

    def fork(self, session_id: str | None = None) -> "LocalSession":
        """A session of its own in the same state."""
        other = copy(self)
        other.id = session_id or new_id()
        other._began = other._stepped = datetime.now(UTC)  # noqa: SLF001  (its own)
        return other

    def _start(self, horizon: int, inputs: Steps | None, future: Steps | None) -> GenerationStart:
        """Here, or after `inputs`, and what is known of the features that are not predicted."""
        manifest = self._model.manifest
        rollout.require_rollout(manifest)
        known = rollout.future_covariates(manifest, horizon, None if future is None else results.steps(future))
        if inputs is None:
            read, state = np.zeros((0, len(manifest.features)), np.float32), self._state
            outputs = self._model.last_prediction(state)
        else:
            read = to_array(results.steps(inputs), manifest.features)
            outputs, state = self._run(read, self._state)
        _hold_finite(outputs)
        return GenerationStart(outputs[-1:], state, read, known)

    def _rolled(self, start: GenerationStart, horizon: int, feeds: Sequence[RolloutInputs]) -> list[Outputs]:
        """Of each step, outputs (feeds,), with what each feed makes of its row as the next input."""
        ones = np.ones(len(feeds), np.int32)
        said, state = [np.repeat(start.outputs, len(feeds))], np.repeat(start.state, len(feeds))
        for _ in range(horizon - 1):
            inputs = np.stack([one(said[-1][row : row + 1]) for row, one in enumerate(feeds)])
            outputs, state = self._model.run(inputs, ones, state)
            _hold_finite(outputs)
            _hold_finite(state)
            said.append(outputs[:, 0])
        return said

    def _advanced(self, inputs: Any, at: int | None) -> Predictions:
        """inputs: as JSON has them."""
        if at is not None and at != self.step_count:
            detail = f"session {self.id!r} is at step {self.step_count}, not {at}"
            raise StepConflict.here(detail, [("step", detail)], expected_step=self.step_count)
        with _refusing():
            array = to_array(inputs, self._model.manifest.features)
        outputs, after = self._run(array, self._state)
        outputs = self._scored(array, outputs)
        self._state, self._surprise = after, update_means(self._surprise, surprises(self._model, outputs))
        self.step_count += len(array)
        self._stepped = datetime.now(UTC)
        told = results.predictions({**_known(step_fields(self._model, outputs)), "step": self.step_count})
        self.prediction = told.last
        return told

    def _scored(self, inputs: NDArray[np.float32], outputs: Outputs) -> Outputs:
        """(steps,) the answers to inputs (steps, features), which made outputs (steps,) of the state so far."""
        kept = self._accuracy if self._counted.enabled else None
        batch = inputs[np.newaxis], [len(inputs)], self._state, outputs[np.newaxis]
        (told,), (after,) = self._counted.score_steps([kept], *batch)
        self._accuracy = after or b""
        return told

    def _next(self) -> Prediction | None:
        """What the model says of the next input, where it keeps it."""
        told = readable_outputs(
            self._model, self._model.last_prediction(self._state)[0], self._model.manifest.head.last
        )
        return Prediction(results.outputs(told), None, self.step_count) if told else None

    def _run(self, inputs: NDArray[np.float32], state: State) -> tuple[Outputs, State]:
        outputs, after = self._model.run_row(inputs, state)
        _hold_finite(outputs)
        _hold_finite(after)
        return outputs, after


def _known(told: dict[str, Any]) -> dict[str, Any]:
    """Without errors beyond single precision: JSON would not have them."""
    error = told.get("error")
    return told if error is None else told | {"error": np.where(np.isinf(error), np.float32(np.nan), error)}


def _hold_finite(numbers: Outputs | State) -> None:
    if not all(np.isfinite(numbers[name]).all() for name in numbers.dtype.names or ()):
        raise NotFinite.here(NOT_FINITE, [("inputs", NOT_FINITE)])


def _hold_to_limits(**told: float | None) -> None:
    for name, value in told.items():
        least, most = LIMITS[name]
        if value is not None and (not least <= value <= most or (name in ABOVE and value == least)):
            what = f"expected a number {'above' if name in ABOVE else 'from'} {least:,} up to {most:,}"
            raise InvalidRequest.here(f"{name}: {what}", [(name, what)])


@contextmanager
def _refusing() -> Iterator[None]:
    """The problems that a service would answer, in the place of what the rules of `model` raise inside."""
    try:
        yield
    except InputError as error:
        raise InvalidRequest.here(str(error), error.faults) from error
    except rollout.RolloutUnsupportedError as error:
        raise NoForecast.here(str(error), [("horizon", str(error))]) from error
    except rollout.NonFiniteError as error:
        raise NotFinite.here(NOT_FINITE) from error
