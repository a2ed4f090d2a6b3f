"""The use-cases: what a client can ask of models and sessions, whatever the protocol.

Owns the waiting requests and the greenlet that runs them. Imports no web framework.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from secrets import randbits, token_hex

import gevent
import numpy as np
from gevent.event import Event
from numpy.typing import NDArray

from model.manifest import BundleError
from model.repository import Opened
from model.runner import Outputs, StepModel
from service.engine.executor import Executor, MovedError, finite, gone, living, ref_of, state_of, surprises
from service.engine.inputs import Inputs, to_array
from service.engine.scheduler import Scheduler
from service.engine.work import Done, Intent, Work
from service.errors import (
    DamagedRecordError,
    DeadlineError,
    Fault,
    InvalidInputError,
    NoForecastError,
    NotFiniteError,
    OnwardError,
    OverloadedError,
    SessionExistsError,
    UnknownModelError,
    UnknownVersionError,
)
from service.sessions import record as records
from service.sessions.record import Record, Surprise
from service.sessions.store import Change, Store

log = logging.getLogger(__name__)

MAX_ROWS = 256
SWEPT_AT_ONCE = 1000
PLACES = 100_000
"""How many sessions' models a process remembers, so that a step need not read its record to find its queue."""


@dataclass(frozen=True, slots=True)
class Limits:
    ttl_s: float = 3600.0
    timeout_s: float = 30.0
    max_steps: int = 100_000
    max_horizon: int = 10_000
    max_sequences: int = 1024
    max_waiting: int = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """A session as its client sees it."""

    session_id: str
    record: Record


@dataclass(frozen=True, slots=True)
class Answer:
    """What a step, a seed or a forecast says: outputs (steps,) of the model's output dtype, and the step reached."""

    model: StepModel
    step: int
    outputs: Outputs


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
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds since 1970 UTC and dates records; `monotonic` times requests."""
        self.models: Mapping[str, Mapping[int, StepModel]] = opened.models
        self.refused: Sequence[BundleError] = opened.refused
        self._store, self.limits, self._clock, self._monotonic = store, limits, clock, monotonic
        self._executor = Executor(store, clock)
        self._queues: dict[StepModel, Scheduler[Work]] = {
            model: Scheduler(MAX_ROWS) for versions in opened.models.values() for model in versions.values()
        }
        self._places: OrderedDict[bytes, StepModel] = OrderedDict()
        self._wake = Event()
        self._greenlets: list[gevent.Greenlet[..., object]] = []

    def start(self, *, flush_s: float = 1.0, sweep_s: float = 5.0) -> None:
        """Begins to run what waits, and to keep house."""
        threads = gevent.get_hub().threadpool
        self._greenlets = [
            gevent.spawn(self._drain),
            gevent.spawn(self._every, flush_s, lambda: threads.apply(self._store.flush)),
            gevent.spawn(self._every, sweep_s, self._sweep),
        ]

    def close(self) -> None:
        """Stops, and closes the store. Whoever still waits is answered by no one: stop taking requests first."""
        gevent.killall(self._greenlets)
        gevent.get_hub().threadpool.join()  # a flush under way
        self._store.close()

    # Models

    def model(self, name: str, version: int | None = None) -> StepModel:
        """The named version, the highest if None. Raises UnknownModelError, UnknownVersionError."""
        versions = self.models.get(name)
        if versions is None:
            raise UnknownModelError(name, sorted(self.models))
        if version is None:
            version = max(versions)
        if version not in versions:
            raise UnknownVersionError(name, version, sorted(versions))
        return versions[version]

    def live_sessions(self) -> dict[tuple[str, int], int]:
        """Sessions that have not ended, by model and version."""
        return self._store.count()

    def predict(self, name: str, version: int | None, sequences: Sequence[Inputs], horizon: int) -> list[Predicted]:
        """Predictions for sequences that stand alone: no session is read or made."""
        model = self.model(name, version)
        if len(sequences) > self.limits.max_sequences:
            raise InvalidInputError(Fault("inputs", f"at most {self.limits.max_sequences} sequences a call"))
        if horizon:
            self._can_roll(model, horizon)
        arrays = [self._array(model, one, f"inputs[{place}]") for place, one in enumerate(sequences)]
        self._room_for(len(arrays))
        works = [
            self._submit(model, array, horizon=max(0, horizon - 1), state=model.layout.initial(1)) for array in arrays
        ]
        try:
            answers = [self._wait(work).outputs for work in works]
        finally:
            for work in works:  # where one failed, the others are wanted no more
                work.settle(gevent.GreenletExit())
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
    ) -> tuple[Session, Answer]:
        """A new session; `inputs` are consumed before it exists. The answer's outputs hold the last prediction.

        Raises SessionExistsError where the id is taken by a living session; an ended one's id is free.
        """
        model = self.model(name, version)
        session_id = session_id or token_hex(16)
        key = records.key(tenant, session_id)
        before = self._load(key)
        if isinstance(before, Record) and before.alive(self._clock()):
            raise SessionExistsError(session_id)
        if isinstance(before, DamagedRecordError):
            raise before
        step, state = 0, model.layout.initial(1)
        outputs, surprise = model.last_prediction(state), Surprise()
        if inputs is not None:
            done = self._wait(self._submit(model, self._array(model, inputs), state=state))
            assert done.state is not None
            step, state, outputs = len(done.outputs), done.state, done.outputs[-1:]
            surprise = surprise.after(surprises(model, done.outputs))
        now, ttl = self._clock(), ttl_s or self.limits.ttl_s
        record = Record(
            revision=randbits(62),
            tenant=tenant,
            ref=ref_of(model),
            step=step,
            created_at=now,
            last_step_at=now,
            ttl_s=ttl,
            expires_at=now + ttl,
            state=model.layout.to_bytes(state[0]),
            surprise=surprise,
        )
        if not self._store.commit_many([Change(key, before.revision if before else None, record)])[0]:
            raise SessionExistsError(session_id)
        return Session(session_id, record), Answer(model, step, outputs)

    def session(self, tenant: str, session_id: str) -> Session:
        """Raises UnknownSessionError, SessionEndedError, DamagedRecordError."""
        record = self._load(records.key(tenant, session_id))
        return Session(session_id, living(session_id, record, self._clock()))

    def sessions(self, tenant: str, after: str, limit: int, model: str | None) -> tuple[list[Session], str | None]:
        """A page of the tenant's living sessions in the order of their ids, and the id to go on after."""
        prefix = records.key(tenant, "")
        page = self._store.page(prefix, records.key(tenant, after), limit, now=self._clock(), model=model)
        found = [Session(records.session_id(key), record) for key, record in page.sessions]
        return found, None if page.after is None else records.session_id(page.after)

    def delete(self, tenant: str, session_id: str) -> None:
        """Ends a living session, or sets a damaged one aside. Raises as `session` does."""
        key, committed = records.key(tenant, session_id), False
        while not committed:  # until no step came in between
            now, found = self._clock(), self._load(key)
            if isinstance(found, DamagedRecordError):
                self._store.set_aside(key)
                return
            record = living(session_id, found, now)
            committed = self._store.commit_many([Change(key, record.revision, record.tombstone("deleted", now))])[0]
        self._places.pop(key, None)

    def step(
        self, tenant: str, session_id: str, inputs: Inputs, *, step: int | None = None, request_id: str = ""
    ) -> Answer:
        """Advances the session by all of `inputs`, or not at all.

        `step` is the step that the client believes the session has reached; a retry with the same `request_id` gets the
        answer that the first got. Raises as `session` does, and StepConflictError, RequestReusedError, ModelGoneError,
        InvalidInputError, NotFiniteError, OverloadedError, DeadlineError.
        """
        key = records.key(tenant, session_id)
        while True:
            model = self._place(key, session_id)
            try:
                array = self._array(model, inputs)
            except InvalidInputError:
                self._places.pop(key, None)
                if self._place(key, session_id) is model:
                    raise
                continue  # the id lives on another model than was remembered
            digest = blake2b(array.tobytes(), digest_size=16).digest() if request_id else bytes(16)
            intent = Intent(key, session_id, step, request_id, digest)
            try:
                done = self._wait(self._submit(model, array, intent=intent))
            except MovedError:
                self._places.pop(key, None)
            else:
                assert done.record is not None
                return Answer(model, done.record.step, done.outputs)

    def forecast(self, tenant: str, session_id: str, horizon: int) -> Answer:
        """(horizon,) predictions from the session's state on, each fed back as the next input; the session stays."""
        session = self.session(tenant, session_id)
        model = self._served(session.record)
        self._can_roll(model, horizon)
        state = state_of(model, session.record)
        outputs = model.last_prediction(state)
        if not finite(outputs):
            raise NotFiniteError
        if horizon > 1:
            first = model.fed_back(outputs)
            rolled = self._wait(self._submit(model, first, horizon=horizon - 2, state=state)).outputs
            outputs = np.concatenate([outputs, rolled])
        return Answer(model, session.record.step, outputs)

    # What carries them

    def _load(self, key: bytes) -> Record | DamagedRecordError | None:
        return self._store.load_many([key])[0]

    def _served(self, record: Record) -> StepModel:
        """The model that the session runs on. Raises ModelGoneError."""
        model = self.models.get(record.ref.model, {}).get(record.ref.version)
        if model is None or ref_of(model) != record.ref:
            raise gone(record.ref, model)
        return model

    def _place(self, key: bytes, session_id: str) -> StepModel:
        """The model of the session, remembered."""
        model = self._places.get(key)
        if model is None:
            model = self._served(living(session_id, self._load(key), self._clock()))
            self._places[key] = model
            if len(self._places) > PLACES:
                self._places.popitem(last=False)
        return model

    def _can_roll(self, model: StepModel, horizon: int) -> None:
        if horizon > self.limits.max_horizon:
            raise InvalidInputError(Fault("horizon", f"at most {self.limits.max_horizon}"))
        manifest = model.manifest
        if not manifest.forecasts:
            raise NoForecastError(manifest.name, list(manifest.future))

    def _array(self, model: StepModel, inputs: Inputs, field: str = "inputs") -> NDArray[np.float32]:
        if len(inputs) > self.limits.max_steps:
            raise InvalidInputError(Fault(field, f"at most {self.limits.max_steps} steps a call, not {len(inputs)}"))
        return to_array(inputs, model.manifest.features, field)

    def _room_for(self, works: int) -> None:
        waiting = sum(queue.waiting for queue in self._queues.values())
        if waiting + works > self.limits.max_waiting:
            raise OverloadedError(waiting)

    def _submit(
        self,
        model: StepModel,
        inputs: NDArray[np.float32],
        *,
        horizon: int = 0,
        state: NDArray[np.void] | None = None,
        intent: Intent | None = None,
    ) -> Work:
        self._room_for(1)
        deadline = self._monotonic() + self.limits.timeout_s
        work = Work(model, inputs, deadline, horizon=horizon, state=state, intent=intent)
        self._queues[model].add(work)
        self._wake.set()
        return work

    def _wait(self, work: Work) -> Done:
        """The answer. It always comes: the drain answers what fails, and what is late at its next batch."""
        done = work.result.get()
        assert done is not None
        return done

    def _drain(self) -> None:
        """Runs what waits, model after model, as long as anything does; between batches, others come to their turn."""
        while True:
            self._wake.wait()
            self._wake.clear()
            while sum([self._run_one(model, queue) for model, queue in self._queues.items()]):
                pass

    def _run_one(self, model: StepModel, queue: Scheduler[Work]) -> int:
        batch, late = queue.batch(self._monotonic())
        for work in late:
            work.settle(DeadlineError(self.limits.timeout_s))
        if batch:
            try:
                self._executor.run(model, batch)
            except Exception as error:
                if not isinstance(error, OnwardError):
                    log.exception("a batch of %d rows failed", len(batch))
                for work in batch:
                    work.settle(error)
            for work in batch:
                (queue.finish if work.result.ready() else queue.put_back)(work)
            gevent.sleep(0)
        return len(batch)

    def _every(self, seconds: float, work: Callable[[], object]) -> None:
        while True:
            gevent.sleep(seconds)
            try:
                work()
            except Exception:  # whatever it was, it will be tried again
                log.exception("housekeeping failed")

    def _sweep(self) -> None:
        while self._store.sweep(self._clock(), SWEPT_AT_ONCE) == SWEPT_AT_ONCE:
            gevent.sleep(0)
