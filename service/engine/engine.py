"""The engine: the use-cases of models and sessions, the same for every protocol.

Owns predictions without a session, the creation of sessions, and the housekeeping of the store; the other use-cases are
its parts, such as `steps` and `forecasts`. Imports no web framework.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import gevent
import numpy as np

from onward.model.inputs import InputArray, Inputs
from onward.model.listed_rankings import likeliest_listed, require_listed
from onward.model.repository import Opened
from onward.model.runner import Outputs, StepModel
from onward.model.sampling import rollout
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.scoring.anomaly import AnomalyKind
from onward.model.scoring.statistics import IntervalStatistics, TargetStatistics
from onward.model.scoring.surprise import NO_SURPRISES
from onward.service.engine.batching import batcher
from onward.service.engine.batching.batch_row import StepResult
from onward.service.engine.batching.batcher import Batchers
from onward.service.engine.event_loop import in_loop_turns, take_loop_turn
from onward.service.engine.forecasting.forecast import Forecasts
from onward.service.engine.forecasting.forecast_start import ForecastStarts
from onward.service.engine.forecasting.generation import Generations
from onward.service.engine.input_parsing import InputParser, as_service_errors
from onward.service.engine.models import Models, ref_of, state_of
from onward.service.engine.observer import Observer
from onward.service.engine.sessions import history
from onward.service.engine.sessions.history import Point
from onward.service.engine.sessions.lifecycle import Session, SessionLifecycle
from onward.service.engine.sessions.rewind import SessionRewind
from onward.service.engine.sessions.transfer import SessionTransfer
from onward.service.engine.stateless_step import StatelessSteps
from onward.service.engine.steps import Steps
from onward.service.errors import (
    Fault,
    InvalidInputError,
    ModelGoneError,
    SessionEndedError,
    SessionExistsError,
    UnknownSessionError,
)
from onward.service.store import idempotency
from onward.service.store import record as records
from onward.service.store.contract import Store
from onward.service.store.record import Record

if TYPE_CHECKING:
    from onward.service.store.signed_tokens import SignedTokens

log = logging.getLogger(__name__)

SWEPT_AT_ONCE = 1000
FIRST_RECORDS = 1000
"""The number of pairs of tenant and model whose first record is cached."""
SEEDED = "seeded with"
"""The request id under which a session remembers the inputs that it was created with; no client's id has a blank."""


@dataclass(frozen=True, slots=True)
class Limits:
    ttl_s: float = 3600.0
    timeout_s: float = 30.0
    max_steps: int = 100_000
    max_horizon: int = 10_000
    max_sequences: int = 1024
    max_waiting: int = 10_000
    state_age_s: float = 86_400.0
    history: int = 0
    exact: bool = False
    accuracy: bool = True


@dataclass(frozen=True, slots=True)
class SequencePrediction:
    """The predictions for a sequence. outputs: (steps,) after each input. forecast: (horizon,), if requested."""

    outputs: Outputs
    forecast: Outputs | None


class Engine:
    """The engine of a worker process. The process that serves must `start` it, and `close` it."""

    def __init__(
        self,
        opened: Opened,
        store: Store,
        limits: Limits,
        *,
        seal: "SignedTokens | None" = None,
        observer: Observer | None = None,
        is_superseded: Callable[[], bool] = bool,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds since 1970 UTC and dates records; `monotonic` times requests.

        seal: signs what leaves the service and comes back; without it, transfer and stateless steps are refused.
        is_superseded: see `Models`.
        """
        self.models = Models(opened, is_superseded)
        self._store, self.limits, self._clock = store, limits, clock
        self._batchers = Batchers(
            [model for versions in opened.models.values() for model in versions.values()],
            store,
            clock,
            monotonic,
            timeout_s=limits.timeout_s,
            max_waiting=limits.max_waiting,
            exact=limits.exact,
            keep=limits.history,
            accuracy=limits.accuracy,
            observer=observer,
        )
        self._parser = InputParser(limits.max_steps)
        self.sessions = SessionLifecycle(store, clock, limits.ttl_s, observer.damaged if observer else None)
        first_record = lru_cache(FIRST_RECORDS)(self._first_record)
        self.steps = Steps(self.sessions, self.models, self._parser, self._batchers, first_record)
        self.history = SessionRewind(self.sessions, self.models, self._batchers)
        self.transfer = SessionTransfer(self.sessions, self.models, seal)
        self.stateless = StatelessSteps(
            self.models, self._parser, self._batchers, seal, clock=clock, max_age_s=limits.state_age_s
        )
        self._starts = ForecastStarts(
            self.sessions, self.models, self._parser, self._batchers, max_horizon=limits.max_horizon
        )
        self.forecasts = Forecasts(self._starts, self._parser, self._batchers, max_samples=limits.max_sequences)
        self.generations = Generations(self._starts, self._batchers)
        self._greenlets: list[gevent.Greenlet[..., Any]] = []

    def start(self, *, flush_s: float = 1.0, sweep_s: float = 5.0) -> None:
        """Starts the batchers and the housekeeping: flushes and sweeps of the store, checks of connections."""
        threads = gevent.get_hub().threadpool
        self._greenlets = [
            *(gevent.spawn(model_batcher.run_forever) for model_batcher in self._batchers.by_model.values()),
            gevent.spawn(self._every, batcher.DISCONNECT_CHECK_S, self._batchers.mark_disconnected_calls),
            gevent.spawn(self._every, flush_s, lambda: threads.apply(self._store.flush)),
            gevent.spawn(self._every, sweep_s, self._sweep),
        ]

    def close(self) -> None:
        """Stops the greenlets and closes the store. Stop taking requests first: calls that wait get no answer."""
        gevent.killall(self._greenlets)
        gevent.get_hub().threadpool.join()  # for a flush or a model call that is update_means
        self._store.close()

    def live_sessions(self) -> dict[tuple[str, int], int]:
        """Returns the number of live sessions by model and version."""
        return self._store.count()

    def predict(
        self,
        name: str,
        version: int | None,
        sequences: Sequence[Inputs],
        horizon: int,
        *,
        listed_only: bool = False,
        has_left: Callable[[], bool] | None = None,
    ) -> list[SequencePrediction]:
        """Returns predictions for sequences of no session; none is read or created.

        All sequences with their horizons may have at most `max_steps` steps together. listed_only: a forecast feeds
        back the likeliest listed category.
        """
        model = self.models.named(name, version)
        if listed_only:
            with as_service_errors():
                require_listed(model)
        if len(sequences) > self.limits.max_sequences:
            raise InvalidInputError(Fault("inputs", f"at most {self.limits.max_sequences} sequences a call"))
        if horizon:
            self._starts.check(model, horizon)
            with as_service_errors():
                rollout.require_rollout_without_future(model.manifest)
        description = f"{len(sequences)} sequences, each with a horizon of {horizon},"
        self._parser.check_total(len(sequences) * horizon, "horizon", description)
        arrays, steps = [], 0
        for index, sequence in enumerate(in_loop_turns(sequences)):
            arrays.append(self._parser.parse(model, sequence, f"inputs[{index}]"))
            steps += len(arrays[-1]) + horizon
            description = f"the first {len(arrays)} sequences, each with a horizon of {horizon},"
            self._parser.check_total(steps, "inputs", description)
        call, initial = self._batchers.call(len(arrays), needs_all=True, has_left=has_left), model.layout.initial(1)
        items = [
            self._batchers.standalone_row(
                model,
                array,
                call,
                initial,
                max(0, horizon - 1),
                RolloutInputs(model, None, likeliest_listed(model)) if listed_only else None,
            )
            for array in in_loop_turns(arrays)
        ]
        results = self._batchers.run_all(call, items)
        return [
            SequencePrediction(result.outputs[: len(array)], result.outputs[len(array) - 1 :] if horizon else None)
            for result, array in zip(results, arrays, strict=True)
        ]

    # Sessions

    def create(
        self,
        tenant: str,
        name: str,
        *,
        version: int | None = None,
        session_id: str | None = None,
        ttl_s: float | None = None,
        inputs: Inputs | None = None,
        interval: float | None = None,
        anomaly: AnomalyKind | None = None,
        has_left: Callable[[], bool] | None = None,
    ) -> tuple[Session, StepResult]:
        """Creates a session, which starts after it has consumed `inputs`. The result's outputs are the last prediction.

        interval: the nominal coverage of its prediction intervals. anomaly: what its anomaly is; None: the default.
        Raises SessionExistsError if a live session has the id; the id of an ended session is free.
        """
        model = self.models.named(name, version)
        scores = self._batchers.accuracy(model)
        if interval is not None and scores.why_no_intervals is not None:
            raise InvalidInputError(Fault("interval", scores.why_no_intervals))
        if anomaly is not None and scores.why_no_anomaly is not None:
            raise InvalidInputError(Fault("anomaly", scores.why_no_anomaly))
        accuracy = scores.initial(interval, anomaly)
        claim = self.sessions.claim(tenant, session_id)
        step, state = 0, model.layout.initial(1)
        outputs, surprise = model.last_prediction(state), NO_SURPRISES
        seeds = None if inputs is None else self._parser.parse(model, inputs)
        if seeds is not None:
            result = self._batchers.run_standalone(
                model, seeds, state, accuracy=accuracy, surprise=surprise, has_left=has_left
            )
            assert result.state is not None
            assert result.surprise is not None
            accuracy = result.accuracy or b""
            state = np.frombuffer(result.state, model.layout.dtype)
            step, outputs, surprise = len(result.outputs), result.outputs[-1:], result.surprise
        record = records.new_record(tenant, ref_of(model), state.tobytes(), step, surprise, accuracy)
        if seeds is not None:
            seeded = idempotency.AppliedRequest(idempotency.digest(seeds.tobytes()), step, b"")
            record = record.replace(requests=idempotency.remember(b"", SEEDED, seeded))
        record = self._with_history(model, record, seeds)
        return self.sessions.begin(claim, record, ttl_s), StepResult(model, step, outputs, created=True)

    def ensure(
        self,
        tenant: str,
        name: str,
        session_id: str,
        *,
        version: int | None = None,
        ttl_s: float | None = None,
        inputs: Inputs | None = None,
        interval: float | None = None,
        anomaly: AnomalyKind | None = None,
        has_left: Callable[[], bool] | None = None,
    ) -> tuple[Session, StepResult]:
        """Returns the live session under that id, created as by `create` if there is none. The result says which.

        A live session is confirmed if it runs on this model and agrees with everything that is named, so a retry gets
        what the first try created. Raises SessionExistsError, which names the difference, and as `create` does.
        """
        while True:
            with suppress(SessionExistsError):
                return self.create(
                    tenant,
                    name,
                    version=version,
                    session_id=session_id,
                    ttl_s=ttl_s,
                    inputs=inputs,
                    interval=interval,
                    anomaly=anomaly,
                    has_left=has_left,
                )
            with suppress(
                UnknownSessionError, SessionEndedError
            ):  # the session has ended since then, so that it can be created
                session = self.sessions.get(tenant, session_id)
                break
        record = session.record
        _, intervals = self.accuracy(record)
        coverage = None if intervals is None else intervals.wanted
        kind = self.anomaly_kind(record)
        differences = (
            (name != record.ref.model, f"runs on the model {record.ref.model!r}"),
            (version not in (None, record.ref.version), f"runs on version {record.ref.version}"),
            (ttl_s not in (None, record.ttl_s), f"has a ttl_s of {record.ttl_s:g}"),
            (
                interval not in (None, coverage),
                f"has {'no intervals' if coverage is None else f'intervals of {coverage:g}'}",
            ),
            (anomaly not in (None, kind), f"has {'no anomaly' if kind is None else f'the anomaly {kind!r}'}"),
        )
        for differs, difference in differences:
            if differs:
                raise SessionExistsError(session_id, difference)
        model = self.models.of(record)
        if inputs is not None:
            seeded = idempotency.find(record.requests, SEEDED)
            if seeded is None or seeded.digest != idempotency.digest(self._parser.parse(model, inputs).tobytes()):
                raise SessionExistsError(session_id, "is alive and not known to be seeded with these inputs")
        return session, StepResult(model, record.step, model.last_prediction(state_of(model, record)))

    def _first_record(self, tenant: str, model: StepModel) -> Record:
        """Returns what a session with the service's defaults begins with, before its first input."""
        accuracy = self._batchers.accuracy(model).initial(None)
        record = records.new_record(tenant, ref_of(model), model.layout.initial(1).tobytes(), 0, NO_SURPRISES, accuracy)
        return self._with_history(model, record.replace(ttl_s=self.limits.ttl_s), None)

    def _with_history(self, model: StepModel, record: Record, seeds: InputArray | None) -> Record:
        """Returns the record with its first history, if the service keeps one. seeds: (steps, features) consumed."""
        if not self.limits.history:
            return record
        point = Point(record.step, record.surprise, record.state, record.accuracy)
        recent = None if seeds is None else seeds[-self.limits.history :]
        return record.replace(history=history.begun(model.manifest.features, point, recent).to_bytes())

    def accuracy(self, record: Record) -> tuple[dict[str, TargetStatistics] | None, IntervalStatistics | None]:
        """Returns how the session's predictions came true, by target, and its corrected intervals; None: not known."""
        try:
            scores = self._batchers.accuracy(self.models.of(record))
        except ModelGoneError:
            return None, None
        return scores.target_statistics(record.accuracy), scores.interval_statistics(record.accuracy)

    def anomaly_kind(self, record: Record) -> AnomalyKind | None:
        """Returns what the session's anomaly is; None: it has none, or its model is gone."""
        try:
            scores = self._batchers.accuracy(self.models.of(record))
        except ModelGoneError:
            return None
        return scores.anomaly_kind(record.accuracy)

    def _every(self, seconds: float, task: Callable[[], object]) -> None:
        while True:
            gevent.sleep(seconds)
            try:
                task()
            except Exception:  # the task runs again, whatever went wrong
                log.exception("housekeeping failed")

    def _sweep(self) -> None:
        while self._store.sweep(self._clock(), SWEPT_AT_ONCE) == SWEPT_AT_ONCE:
            take_loop_turn()
