"""The same sessions without a service: a bundle's model and the sessions' state in the memory of this process.

Results are those of a service, bit for bit if the model is exact, and so are the errors for wrong arguments.
"""

import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from os import PathLike
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np

from onward.client import results
from onward.client.generation import GenerationOptions
from onward.client.inputs import Step, Steps, each_step, json_sequences, json_step, json_steps
from onward.client.operations import new_id
from onward.client.results import (
    Done,
    Forecast,
    Generated,
    IntervalInfo,
    Prediction,
    Predictions,
    SequencePrediction,
    SessionInfo,
    Surprise,
)
from onward.errors import InvalidRequest, NoForecast, NotFinite, StepConflict
from onward.model.finite import finite
from onward.model.inputs import InputArray, InputError, plain_numbers, to_array
from onward.model.listed_rankings import likeliest_listed, listed_outputs, require_listed
from onward.model.outputs import forecast_fields, readable_outputs, step_fields
from onward.model.repository import open_bundle
from onward.model.runner import Outputs, StepModel
from onward.model.sampling import generation, rollout
from onward.model.sampling.generation import (
    GeneratedPath,
    GenerationEnd,
    GenerationStart,
    generated_fields,
)
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.sampling.sample_paths import SAMPLES, draws_paths, path_inputs, require_distribution, summarise_paths
from onward.model.sampling.samplers import new_seed
from onward.model.scoring.accuracy import Accuracy
from onward.model.scoring.anomaly import KINDS, AnomalyKind
from onward.model.scoring.layout import ANOMALY, ERROR
from onward.model.scoring.surprise import NO_SURPRISES, SurpriseMeans, surprises, update_means
from onward.model.state import State

NOT_FINITE = "the model's outputs for these inputs are not finite numbers; the session was not changed"
LIMITS = {
    "horizon": (1, 2**31), "samples": (2, 2**31), "seed": (0, 2**63 - 1), "temperature": (0, 100), "top_k": (1, 2**31),
    "top_p": (0, 1), "repetition_penalty": (1, 100), "logprobs": (1, 2**31), "interval": (0.5, 0.99),
}  # fmt: skip
"""The least and the greatest value of each argument. A service may have narrower limits."""
EXCLUSIVE = {"top_p"}
"""The arguments that must be above their least value."""
MOST_STEPS = 100_000_000
"""The most steps of all sample paths together, in the memory of this process. A service takes fewer."""


def load(
    path: str | PathLike[str], *, threads: int = 1, accuracy: bool = True, listed_only: bool = False
) -> "LocalModel":
    """Loads and verifies the bundle in the folder `path`. Raises BundleError.

    accuracy: its sessions measure the accuracy of their predictions, as those of a service do unless
    `ONWARD_ACCURACY=0`. listed_only: rankings have listed categories only, k - 1 of a model that ranks k and accepts
    others; raises InvalidRequest if k is 1.
    """
    return LocalModel(open_bundle(pathlib.Path(path), threads=threads), accuracy=accuracy, listed_only=listed_only)


class LocalModel:
    """A version of a model, in this process."""

    def __init__(self, model: StepModel, *, accuracy: bool = True, listed_only: bool = False) -> None:
        self.model, self._scoring, self._listed_only = model, Accuracy(model, enabled=accuracy), listed_only
        if listed_only:
            with _as_problems():
                require_listed(model)

    def __repr__(self) -> str:
        return f"<LocalModel {self.model.manifest.name} {self.model.manifest.version}>"

    def session(
        self,
        session_id: str | None = None,
        inputs: Steps | None = None,
        *,
        interval: float | None = None,
        anomaly: AnomalyKind | None = None,
    ) -> "LocalSession":
        """Returns a new session; `inputs` seed its state. interval, anomaly: as for `Client.session`."""
        _check_limits(interval=interval)
        if interval is not None and (why := self._scoring.why_no_intervals) is not None:
            raise InvalidRequest.with_detail(f"interval: {why}", [("interval", why)])
        why = self._scoring.why_no_anomaly if anomaly in KINDS else f"expected one of {', '.join(KINDS)}"
        if anomaly is not None and why is not None:
            raise InvalidRequest.with_detail(f"anomaly: {why}", [("anomaly", why)])
        return LocalSession(
            self.model, session_id or new_id(), self._scoring, inputs, interval, anomaly, listed_only=self._listed_only
        )

    def predict(self, sequences: Sequence[Steps], horizon: int = 0) -> list[SequencePrediction]:
        """Returns predictions of sequences without a session, each from the initial state.

        horizon: the number of steps that each is rolled forward past its last input. Raises as `LocalSession.steps` and
        `forecast` do, and NoForecast for a model that needs future covariates.
        """
        predictions, scoring = [], Accuracy(self.model, enabled=False)
        if horizon:
            with _as_problems():
                rollout.require_rollout_without_future(self.model.manifest)
        for index, sequence in enumerate(json_sequences(sequences)):
            session = LocalSession(self.model, new_id(), scoring, listed_only=self._listed_only)
            steps = session._advance(sequence, None, f"inputs[{index}]")  # noqa: SLF001  (its own)
            predictions.append(SequencePrediction(steps, session.forecast(horizon) if horizon else None))
        return predictions


class LocalSession:
    """A session whose state is in this object, and ends with it. A `with` block around it does nothing."""

    def __init__(
        self,
        model: StepModel,
        session_id: str,
        scoring: Accuracy,
        inputs: Steps | None = None,
        interval: float | None = None,
        anomaly: AnomalyKind | None = None,
        *,
        listed_only: bool = False,
    ) -> None:
        """scoring: measures the accuracy of the predictions of the model's sessions. listed_only: see `load`."""
        self._model, self._scoring, self._listed_only = model, scoring, listed_only
        self.id, self.model, self.version = session_id, model.manifest.name, model.manifest.version
        self.step_count = 0
        self.prediction: Prediction | None = None
        """The prediction of the next input; before the first step, only if the model's state holds one."""
        self._created_at = self._last_step_at = datetime.now(UTC)
        accuracy = scoring.initial(interval, anomaly)
        self._data, self._state_start = accuracy + model.layout.initial(1).tobytes(), len(accuracy)
        """The bytes of the running statistics, and from `_state_start` those of the state."""
        self._surprise: SurpriseMeans = NO_SURPRISES
        self._is_plain = (
            interval is None
            and scoring.has_columns
            and model.has_plain_numbers
            and not model.manifest.head.ranks_categories
        )
        """True if a step of plain numbers can take the short way of `_step`."""
        if inputs is not None:
            self._advance(json_steps(inputs), None)
        self.prediction = self._initial_prediction()

    def __repr__(self) -> str:
        return f"<LocalSession {self.id!r} of {self.model} {self.version} at step {self.step_count}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Does nothing: the session ends with this object."""

    def info(self) -> SessionInfo:
        """Returns the session's model, version, step, times, surprise, accuracy and interval; it never expires."""
        targets = self._scoring.target_statistics(self._accuracy)
        interval = self._scoring.interval_statistics(self._accuracy)
        return SessionInfo(
            self.id,
            self.model,
            self.version,
            self.step_count,
            self._created_at,
            self._last_step_at,
            surprise=Surprise(*self._surprise) if self._surprise[0] else None,
            accuracy=None
            if targets is None
            else {name: results.target_accuracy(target.fields()) for name, target in targets.items()},
            interval=None if interval is None else IntervalInfo(**interval._asdict()),
            anomaly=self._scoring.anomaly_kind(self._accuracy),
        )

    def step(self, step: Step, *, at: int | None = None) -> Prediction:
        """Advances the session by one input.

        at: the step that the session is believed to have reached; raises StepConflict if it is at another.
        """
        model = self._model
        if (
            self._is_plain
            and (inputs := plain_numbers([step], len(model.features), model.input_dtype, model.above)) is not None
        ):
            self._check_step(at)
            return self._step(inputs)
        return self._advance(json_step(step), at).last

    def steps(self, inputs: Steps, *, at: int | None = None) -> Predictions:
        """Advances the session by all of the inputs, or by none. at: as for `step`."""
        return self._advance(json_steps(inputs), at)

    def stream(self, inputs: Steps | Iterable[Step]) -> Iterator[Prediction]:
        """Yields a prediction for each input."""
        return map(self.step, each_step(inputs))

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
        """Rolls predictions forward, as `Session.forecast` does; the session does not move.

        All sample paths are stepped together, in one batch.
        """
        _check_limits(horizon=horizon, samples=samples, seed=seed)
        levels = None if quantiles is None else [float(level) for level in quantiles]
        model = self._model
        with _as_problems():
            draws = draws_paths(samples=samples, levels=levels, seed=seed, paths=paths)
            start = self._start(horizon, inputs, future)
            if not draws:
                sampler = likeliest_listed(model) if self._listed_only else None
                outputs = self._rolled(start, horizon, [RolloutInputs(model, start.future, sampler)])
                arrays = forecast_fields(model, self._listed(np.concatenate(outputs)))
                return Forecast(results.outputs(arrays, model.input_dtype), self.step_count)
            require_distribution(model.manifest.head, samples=samples, levels=levels)
            seed, count = new_seed() if seed is None else seed, SAMPLES if samples is None else samples
            if count * horizon > MOST_STEPS:
                what = f"{count} paths of {horizon} steps are {count * horizon} steps; at most {MOST_STEPS} a call"
                raise InvalidRequest.with_detail(f"samples: {what}", [("samples", what)])
            feeds = [path_inputs(model, start.future, seed, number) for number in range(count)]
            last = self._rolled(start, horizon, feeds)[-1]
            for row, path in enumerate(feeds):
                path.next_targets(last[row : row + 1])
            drawn = summarise_paths(
                model, self.step_count, seed, feeds, start.outputs, levels, listed_only=self._listed_only
            )
        arrays = results.outputs(drawn.fields(paths=paths), model.input_dtype)
        return Forecast(arrays, self.step_count, seed, count, drawn.levels)

    def generate(self, horizon: int, **options: Unpack[GenerationOptions]) -> Iterator[Generated | Done]:
        """Yields up to `horizon` generated steps, each as it is drawn, and Done; the session does not move."""
        drawing: dict[str, Any] = results.without_none(**options)
        inputs, future, seed = (drawing.pop(name, None) for name in ("inputs", "future", "seed"))
        _check_limits(horizon=horizon, seed=seed, **{name: drawing[name] for name in drawing if name in LIMITS})
        seed = new_seed() if seed is None else seed
        with _as_problems():
            start, model_options = self._start(horizon, inputs, future), generation.GenerationOptions(**drawing)
            path = GeneratedPath(self._model, start, horizon, model_options, seed, listed_only=self._listed_only)
            for step in path.steps(self._run):
                if isinstance(step, GenerationEnd):
                    yield Done(step.reason, seed, self.step_count, step.text)
                else:
                    yield results.generated(generated_fields(self._model, step))

    def fork(self, session_id: str | None = None) -> "LocalSession":
        """Returns a new session in the same state."""
        fork = copy(self)
        fork.id = session_id or new_id()
        fork._created_at = fork._last_step_at = datetime.now(UTC)  # noqa: SLF001  (its own)
        return fork

    def _start(self, horizon: int, inputs: Steps | None, future: Steps | None) -> GenerationStart:
        """Returns the start of a forecast, now or after `inputs`, with its future covariates."""
        manifest = self._model.manifest
        rollout.require_rollout(manifest)
        covariates = rollout.future_covariates(
            manifest, horizon, None if future is None else json_steps(future, "future", least=0)
        )
        if inputs is None:
            consumed: InputArray = np.zeros((0, len(manifest.features)), self._model.input_dtype)
            state = self._state
            outputs = self._model.last_prediction(state)
        else:
            consumed = to_array(json_steps(inputs), manifest.features, dtype=self._model.input_dtype)
            outputs, state = self._run(consumed, self._state)
        _check_finite(outputs)
        return GenerationStart(outputs[-1:], state, consumed, covariates)

    def _rolled(self, start: GenerationStart, horizon: int, feeds: Sequence[RolloutInputs]) -> list[Outputs]:
        """Returns the outputs (feeds,) of each step. Each feed makes the next input of its row."""
        ones = np.ones(len(feeds), np.int32)
        steps, state = [np.repeat(start.outputs, len(feeds))], np.repeat(start.state, len(feeds))
        for _ in range(horizon - 1):
            inputs = np.stack([next_input(steps[-1][row : row + 1]) for row, next_input in enumerate(feeds)])
            outputs, state = self._model.run(inputs, ones, state)
            _check_finite(outputs)
            _check_finite(state)
            steps.append(outputs[:, 0])
        return steps

    def _listed(self, outputs: Outputs) -> Outputs:
        """Returns the outputs as the session returns them, with rankings of listed categories if it has only such."""
        return listed_outputs(self._model, outputs) if self._listed_only else outputs

    @property
    def _accuracy(self) -> bytes:
        return self._data[: self._state_start]

    @property
    def _state(self) -> State:
        return np.frombuffer(self._data, self._model.layout.dtype, 1, self._state_start)

    def _step(self, inputs: InputArray) -> Prediction:
        """Does what `_advance` does for one step (1, features) of a plain session, at less cost."""
        outputs, state, is_finite = self._model.run_step(inputs, self._data[self._state_start :])
        if not is_finite:
            raise _not_finite()
        found, scores, accuracy = surprises(self._model, np.ndarray(1, self._model.output_dtype, outputs)), b"", b""
        surprise = found[0] if found else None
        if self._scoring.enabled:
            scores, accuracy = self._scoring.step_scorer.score(self._data, 0, inputs[0].tolist(), surprise)
        self._move(1, accuracy + state, found)
        scored = np.ndarray(1, self._scoring.scored_dtype, bytearray(outputs + scores))
        self.prediction = self._prediction(scored, surprise)
        return self.prediction

    def _prediction(self, scored: Outputs, surprise: float | None) -> Prediction:
        """Returns the prediction that `_advance` has as its last, for the scored outputs (1,) of a plain session."""
        dtype = self._model.input_dtype
        arrays = {name: np.asarray(scored[name], dtype)[0] for name in self._model.manifest.head.outputs}
        names, error, anomaly = scored.dtype.names or (), None, None
        if ERROR in names:
            error = scored[ERROR][0]
            if any(map(math.isinf, error.tolist())):
                error = _without_infinity(error)
        if ANOMALY in names:
            anomaly = scored[ANOMALY].item()
        return Prediction(
            arrays, surprise, self.step_count, error, None if anomaly is None or math.isnan(anomaly) else anomaly
        )

    def _advance(self, inputs: Any, at: int | None, field: str = "inputs") -> Predictions:
        """inputs: in their JSON form."""
        self._check_step(at)
        with _as_problems():
            array = to_array(inputs, self._model.manifest.features, field, dtype=self._model.input_dtype)
        outputs, after = self._run(array, self._state)
        outputs, accuracy = self._score(array, outputs)
        self._move(len(array), accuracy + after.tobytes(), surprises(self._model, outputs))
        fields = step_fields(self._model, self._listed(outputs)) | {"step": self.step_count}
        if "error" in fields:
            fields["error"] = _without_infinity(fields["error"])
        predictions = results.predictions(fields)
        self.prediction = predictions.last
        return predictions

    def _check_step(self, at: int | None) -> None:
        if at is not None and at != self.step_count:
            detail = f"session {self.id!r} is at step {self.step_count}, not {at}"
            raise StepConflict.with_detail(detail, [("step", detail)], expected_step=self.step_count)

    def _move(self, steps: int, data: bytes, surprise: list[float]) -> None:
        """data: the statistics and the state after the steps. surprise: of each, none if the model has none."""
        self._data, self._surprise = data, update_means(self._surprise, surprise)
        self.step_count += steps
        self._last_step_at = datetime.now(UTC)

    def _score(self, inputs: InputArray, outputs: Outputs) -> tuple[Outputs, bytes]:
        """Returns the outputs (steps,) with the scores of the inputs (steps, features), and the statistics after."""
        accuracy = self._accuracy if self._scoring.enabled else None
        batch = inputs[np.newaxis], [len(inputs)], self._state, outputs[np.newaxis]
        (scored,), (after,) = self._scoring.score_steps([accuracy], *batch)
        return scored, after or b""

    def _initial_prediction(self) -> Prediction | None:
        """Returns the model's prediction of the next input if its state holds one."""
        (last,) = self._listed(self._model.last_prediction(self._state))
        prediction = readable_outputs(self._model, last, self._model.manifest.head.last)
        arrays = results.outputs(prediction, self._model.input_dtype)
        return Prediction(arrays, None, self.step_count) if prediction else None

    def _run(self, inputs: InputArray, state: State) -> tuple[Outputs, State]:
        outputs, after = self._model.run_row(inputs, state)
        _check_finite(outputs)
        _check_finite(after)
        return outputs, after


def _without_infinity(errors: InputArray) -> InputArray:
    """Replaces errors beyond their precision by NaN, as JSON has no infinity."""
    return np.where(np.isinf(errors), errors.dtype.type(np.nan), errors)


def _check_finite(numbers: Outputs | State) -> None:
    if not finite(numbers):
        raise _not_finite()


def _not_finite() -> NotFinite:
    return NotFinite.with_detail(NOT_FINITE, [("inputs", NOT_FINITE)])


def _check_limits(**arguments: float | None) -> None:
    for name, value in arguments.items():
        least, most = LIMITS[name]
        if value is not None and (not least <= value <= most or (name in EXCLUSIVE and value == least)):
            what = f"expected a number {'above' if name in EXCLUSIVE else 'from'} {least:,} up to {most:,}"
            raise InvalidRequest.with_detail(f"{name}: {what}", [(name, what)])


@contextmanager
def _as_problems() -> Iterator[None]:
    """Raises the problems that a service would answer instead of the errors of `onward.model`."""
    try:
        yield
    except InputError as error:
        raise InvalidRequest.with_detail(str(error), error.faults) from error
    except rollout.RolloutUnsupportedError as error:
        raise NoForecast.with_detail(str(error), [("horizon", str(error))]) from error
    except rollout.NonFiniteError as error:
        raise NotFinite.with_detail(NOT_FINITE) from error
