"""The use-cases: what a client can ask of models and sessions, whatever the protocol.

Owns what each of them means for sessions and records. Imports no web framework.
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
from numpy.typing import NDArray

from onward.model.repository import Opened
from onward.model.runner import Outputs, StepModel
from onward.model.sampling import rollout
from onward.model.scoring.statistics import IntervalStatistics, TargetStatistics
from onward.model.scoring.surprise import NO_SURPRISES
from onward.service.engine.batching import batcher
from onward.service.engine.batching.batcher import Dispatch
from onward.service.engine.event_loop import by_turns, turn
from onward.service.engine.forecasting.forecast import Forecasts
from onward.service.engine.forecasting.forecast_start import Origins
from onward.service.engine.forecasting.generation import Draws
from onward.service.engine.input_errors import refusing
from onward.service.engine.input_parsing import Inputs, Intake
from onward.service.engine.models import Models, ref_of, state_of
from onward.service.engine.observer import Observer
from onward.service.engine.sessions import history
from onward.service.engine.sessions.history import Point
from onward.service.engine.sessions.lifecycle import Lives, Session
from onward.service.engine.sessions.rewind import Past
from onward.service.engine.sessions.transfer import Carried
from onward.service.engine.steps import Answer, Steps
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
"""Of so many pairs of a tenant and a model it is remembered what a new session begins with."""
SEEDED = "seeded with"
"""The id under which a session remembers the inputs that it was created with; no client's id has a blank in it."""


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
class Predicted:
    """One sequence's predictions: after each of its inputs (steps,), and rolled forward (horizon,) where asked for."""

    outputs: Outputs
    forecast: Outputs | None


class Engine:
    """One a worker process. `start` it in the process that serves, `close` it there."""

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

        seal: for what leaves the service and comes back; without it, none of that does. is_superseded: of `Models`.
        """
        self.models = Models(opened, is_superseded)
        self._store, self.limits, self._clock = store, limits, clock
        self._dispatch = Dispatch(
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
        self._intake = Intake(limits.max_steps)
        self.lives = Lives(store, clock, limits.ttl_s, observer.damaged if observer else None)
        first_record = lru_cache(FIRST_RECORDS)(self._first_record)
        self.steps = Steps(self.lives, self.models, self._intake, self._dispatch, first_record)
        self.past = Past(self.lives, self.models, self._dispatch)
        self.carried = Carried(
            self.lives, self.models, self._intake, self._dispatch, seal, clock=clock, age_s=limits.state_age_s
        )
        self._origins = Origins(self.lives, self.models, self._intake, self._dispatch, max_horizon=limits.max_horizon)
        self.forecasts = Forecasts(self._origins, self._intake, self._dispatch, max_samples=limits.max_sequences)
        self.draws = Draws(self._origins, self._dispatch)
        self._greenlets: list[gevent.Greenlet[..., Any]] = []

    def start(self, *, flush_s: float = 1.0, sweep_s: float = 5.0) -> None:
        """Begins to run what waits, and to keep house."""
        threads = gevent.get_hub().threadpool
        self._greenlets = [
            *(gevent.spawn(queue.drain) for queue in self._dispatch.queues.values()),
            gevent.spawn(self._every, batcher.LEFT_S, self._dispatch.look_who_left),
            gevent.spawn(self._every, flush_s, lambda: threads.apply(self._store.flush)),
            gevent.spawn(self._every, sweep_s, self._sweep),
        ]

    def close(self) -> None:
        """Stops, and closes the store. Whoever still waits is answered by no one: stop taking requests first."""
        gevent.killall(self._greenlets)
        gevent.get_hub().threadpool.join()  # a flush, or a call of a model, under way
        self._store.close()

    def live_sessions(self) -> dict[tuple[str, int], int]:
        """Sessions that have not ended, by model and version."""
        return self._store.count()

    def predict(
        self,
        name: str,
        version: int | None,
        sequences: Sequence[Inputs],
        horizon: int,
        *,
        has_left: Callable[[], bool] | None = None,
    ) -> list[Predicted]:
        """Predictions for sequences that stand alone: no session is read or made.

        All sequences with their horizons have at most `max_steps` steps together.
        """
        model = self.models.named(name, version)
        if len(sequences) > self.limits.max_sequences:
            raise InvalidInputError(Fault("inputs", f"at most {self.limits.max_sequences} sequences a call"))
        if horizon:
            self._origins.hold(model, horizon)
            with refusing():
                rollout.require_rollout_without_future(model.manifest)
        what = f"{len(sequences)} sequences, each with a horizon of {horizon},"
        self._intake.limit(len(sequences) * horizon, "horizon", what)
        arrays, steps = [], 0
        for place, sequence in enumerate(by_turns(sequences)):
            arrays.append(self._intake.array(model, sequence, f"inputs[{place}]"))
            steps += len(arrays[-1]) + horizon
            self._intake.limit(steps, "inputs", f"the first {len(arrays)} sequences, each with a horizon of {horizon},")
        call, initial = self._dispatch.call(len(arrays), needs_all=True, has_left=has_left), model.layout.initial(1)
        works = [
            self._dispatch.free_work(model, array, call, initial, max(0, horizon - 1)) for array in by_turns(arrays)
        ]
        answers = [done.outputs for done in self._dispatch.run_all(call, works)]
        return [
            Predicted(outputs[: len(array)], outputs[len(array) - 1 :] if horizon else None)
            for outputs, array in zip(answers, arrays, strict=True)
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
        has_left: Callable[[], bool] | None = None,
    ) -> tuple[Session, Answer]:
        """A new session; `inputs` are consumed before it exists. The answer's outputs hold the last prediction.

        interval: the share of inputs that its intervals are to hold. Raises SessionExistsError where the id is taken by
        a living session; an ended one's id is free.
        """
        model = self.models.named(name, version)
        counted = self._dispatch.accuracy(model)
        if interval is not None and counted.why_no_intervals is not None:
            raise InvalidInputError(Fault("interval", counted.why_no_intervals))
        accuracy = counted.initial(interval)
        claim = self.lives.claim(tenant, session_id)
        step, state = 0, model.layout.initial(1)
        outputs, surprise = model.last_prediction(state), NO_SURPRISES
        seeds = None if inputs is None else self._intake.array(model, inputs)
        if seeds is not None:
            done = self._dispatch.run_free(model, seeds, state, accuracy=accuracy, surprise=surprise, has_left=has_left)
            assert done.state is not None
            assert done.surprise is not None
            accuracy = done.accuracy or b""
            state = np.frombuffer(done.state, model.layout.dtype)
            step, outputs, surprise = len(done.outputs), done.outputs[-1:], done.surprise
        record = records.new_record(tenant, ref_of(model), state.tobytes(), step, surprise, accuracy)
        if seeds is not None:
            seeded = idempotency.AppliedRequest(idempotency.digest(seeds.tobytes()), step, b"")
            record = record._replace(requests=idempotency.remember(b"", SEEDED, seeded))
        record = self._with_history(model, record, seeds)
        return self.lives.begin(claim, record, ttl_s), Answer(model, step, outputs, created=True)

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
        has_left: Callable[[], bool] | None = None,
    ) -> tuple[Session, Answer]:
        """The living session under that id, created as by `create` where there is none. The answer says which.

        A living session is confirmed if it is on this model and agrees with everything that is named; so a retry gets
        what the first try created. Raises SessionExistsError that names what is different, and as `create` does.
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
                    has_left=has_left,
                )
            with suppress(UnknownSessionError, SessionEndedError):  # it has ended since: then it can be created
                session = self.lives.session(tenant, session_id)
                break
        record = session.record
        _, intervals = self.accuracy(record)
        has = None if intervals is None else intervals.wanted
        differences = (
            (name != record.ref.model, f"runs on the model {record.ref.model!r}"),
            (version not in (None, record.ref.version), f"runs on version {record.ref.version}"),
            (ttl_s not in (None, record.ttl_s), f"has a ttl_s of {record.ttl_s:g}"),
            (interval not in (None, has), f"has {'no intervals' if has is None else f'intervals of {has:g}'}"),
        )
        for differs, difference in differences:
            if differs:
                raise SessionExistsError(session_id, difference)
        model = self.models.of(record)
        if inputs is not None:
            seeded = idempotency.find(record.requests, SEEDED)
            if seeded is None or seeded.digest != idempotency.digest(self._intake.array(model, inputs).tobytes()):
                raise SessionExistsError(session_id, "is alive and not known to be seeded with these inputs")
        return session, Answer(model, record.step, model.last_prediction(state_of(model, record)))

    def _first_record(self, tenant: str, model: StepModel) -> Record:
        """What a session with the service's defaults begins with, before its first input."""
        accuracy = self._dispatch.accuracy(model).initial(None)
        record = records.new_record(tenant, ref_of(model), model.layout.initial(1).tobytes(), 0, NO_SURPRISES, accuracy)
        return self._with_history(model, record._replace(ttl_s=self.limits.ttl_s), None)

    def _with_history(self, model: StepModel, record: Record, seeds: NDArray[np.float32] | None) -> Record:
        """The first record with the history that the service keeps. seeds: (steps, features) that were consumed."""
        if not self.limits.history:
            return record
        point = Point(record.step, record.surprise, record.state, record.accuracy)
        recent = None if seeds is None else seeds[-self.limits.history :]
        return record._replace(history=history.begun(model.manifest.features, point, recent).to_bytes())

    def accuracy(self, record: Record) -> tuple[dict[str, TargetStatistics] | None, IntervalStatistics | None]:
        """How the session's predictions came true, by target, and its corrected intervals; None: not known."""
        try:
            counted = self._dispatch.accuracy(self.models.of(record))
        except ModelGoneError:
            return None, None
        return counted.target_statistics(record.accuracy), counted.interval_statistics(record.accuracy)

    def _every(self, seconds: float, work: Callable[[], object]) -> None:
        while True:
            gevent.sleep(seconds)
            try:
                work()
            except Exception:  # whatever it was, it will be tried again
                log.exception("housekeeping failed")

    def _sweep(self) -> None:
        while self._store.sweep(self._clock(), SWEPT_AT_ONCE) == SWEPT_AT_ONCE:
            turn()
