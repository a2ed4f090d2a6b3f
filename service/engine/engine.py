"""The use-cases: what a client can ask of models and sessions, whatever the protocol.

Owns what each of them means for sessions and records. Imports no web framework.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
import numpy as np
from numpy.typing import NDArray

from model.manifest import BundleError
from model.repository import Opened
from model.runner import Outputs, StepModel
from service.engine import dispatch, history
from service.engine.carried import Carried
from service.engine.dispatch import Dispatch
from service.engine.executor import MovedError, array_of, gone, ref_of, surprises
from service.engine.forecast import Forecasts
from service.engine.generate import Draws
from service.engine.history import Point
from service.engine.inputs import Inputs
from service.engine.ledger import Interval, Target
from service.engine.lives import Lives, Session, living
from service.engine.observer import Observer
from service.engine.origin import Origins
from service.engine.past import Past
from service.engine.turn import turn
from service.engine.work import Asked, Call, Done, Request, Work
from service.errors import (
    Fault,
    InvalidInputError,
    ModelGoneError,
    NoForecastError,
    NotFiniteError,
    OnwardError,
    UnavailableError,
    UnknownModelError,
    UnknownVersionError,
)
from service.sessions import record as records
from service.sessions.record import Record, Surprise
from service.sessions.requests import REMEMBERED
from service.sessions.store import Store

if TYPE_CHECKING:
    from service.sessions.seal import Seal

log = logging.getLogger(__name__)

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
    state_age_s: float = 86_400.0
    history: int = 0
    exact: bool = False
    accuracy: bool = True


class Answer(NamedTuple):
    """What a step or a seed says: outputs (steps,) of the model's output dtype, and the step reached."""

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
        seal: "Seal | None" = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds since 1970 UTC and dates records; `monotonic` times requests.

        seal: for what leaves the service and comes back; without it, none of that does.
        """
        self.models: Mapping[str, Mapping[int, StepModel]] = opened.models
        self.refused: Sequence[BundleError] = opened.refused
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
        self.lives = Lives(store, clock, limits.ttl_s, observer.damaged if observer else None)
        self.carried = Carried(
            self.lives,
            seal,
            clock,
            limits.state_age_s,
            model=self.model,
            served=self._served,
            array=self._array,
            run=self._dispatch.run_free,
        )
        self.past = Past(
            self.lives,
            model=self.model,
            served=self._served,
            run=self._dispatch.run_free,
            accuracy=self._dispatch.accuracy,
        )
        self._origins = Origins(
            self.lives, limits.max_horizon, served=self._served, array=self._array, run=self._dispatch.run_free
        )
        self.forecasts = Forecasts(
            self._origins, self._dispatch, max_samples=limits.max_sequences, max_steps=limits.max_steps
        )
        self.draws = Draws(self._origins, self._dispatch.run_free)
        self._places: OrderedDict[bytes, StepModel] = OrderedDict()
        self._greenlets: list[gevent.Greenlet[..., Any]] = []

    def start(self, *, flush_s: float = 1.0, sweep_s: float = 5.0) -> None:
        """Begins to run what waits, and to keep house."""
        threads = gevent.get_hub().threadpool
        self._greenlets = [
            *(gevent.spawn(queue.drain) for queue in self._dispatch.queues.values()),
            gevent.spawn(self._every, dispatch.LEFT_S, self._dispatch.look_who_left),
            gevent.spawn(self._every, flush_s, lambda: threads.apply(self._store.flush)),
            gevent.spawn(self._every, sweep_s, self._sweep),
        ]

    def close(self) -> None:
        """Stops, and closes the store. Whoever still waits is answered by no one: stop taking requests first."""
        gevent.killall(self._greenlets)
        gevent.get_hub().threadpool.join()  # a flush, or a call of a model, under way
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
            self._origins.hold(model, horizon)
            if model.manifest.future:
                why = (
                    f"it does not predict {', '.join(model.manifest.future)}; forecast a session, which takes `future`"
                )
                raise NoForecastError(name, why)
        arrays = [self._array(model, one, f"inputs[{place}]") for place, one in enumerate(sequences)]
        call, initial = self._dispatch.call(len(arrays), needs_all=True), model.layout.initial(1)
        works = [self._dispatch.free_work(model, array, call, initial, max(0, horizon - 1)) for array in arrays]
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
    ) -> tuple[Session, Answer]:
        """A new session; `inputs` are consumed before it exists. The answer's outputs hold the last prediction.

        interval: the share of inputs that its intervals are to hold. Raises SessionExistsError where the id is taken by
        a living session; an ended one's id is free.
        """
        model = self.model(name, version)
        counted = self._dispatch.accuracy(model)
        if interval is not None and not counted.corrects:
            why = "the model predicts no numbers" if self.limits.accuracy else "accuracy is not counted here"
            raise InvalidInputError(Fault("interval", f"{why}, so there are no intervals"))
        accuracy = counted.begun(interval)
        claim = self.lives.claim(tenant, session_id)
        step, state = 0, model.layout.initial(1)
        outputs, surprise = model.last_prediction(state), Surprise()
        seeds = None if inputs is None else self._array(model, inputs)
        if seeds is not None:
            done = self._dispatch.run_free(model, seeds, state, accuracy=accuracy)
            assert done.state is not None
            accuracy = done.accuracy or b""
            state = np.frombuffer(done.state, model.layout.dtype)
            step, outputs = len(done.outputs), done.outputs[-1:]
            surprise = surprise.after(surprises(model, done.outputs))
        record = records.first(tenant, ref_of(model), state.tobytes(), step, surprise, accuracy)
        if self.limits.history:
            point = Point(step, surprise, record.state, accuracy)
            kept = None if seeds is None else seeds[-self.limits.history :]
            record = record._replace(history=history.begun(model.manifest.features, point, kept).to_bytes())
        return self.lives.begin(claim, record, ttl_s), Answer(model, step, outputs)

    def accuracy(self, record: Record) -> tuple[dict[str, Target] | None, Interval | None]:
        """How the session's predictions came true, by target, and its corrected intervals; None: not known."""
        try:
            counted = self._dispatch.accuracy(self._served(record))
        except ModelGoneError:
            return None, None
        return counted.targets_of(record.accuracy), counted.interval_of(record.accuracy)

    def step(
        self,
        tenant: str,
        session_id: str,
        inputs: Inputs,
        *,
        step: int | None = None,
        request_id: str = "",
        has_left: Callable[[], bool] | None = None,
    ) -> Answer:
        """Advances the session by all of `inputs`, or not at all.

        `step` is the step that the client believes the session has reached; a retry with the same `request_id` gets the
        answer that the first got. Raises as `Lives.session` does, and StepConflictError, LateRequestError,
        RequestReusedError, ModelGoneError, InvalidInputError, NotFiniteError, OverloadedError, DeadlineError,
        AbandonedError.
        """
        asked = Asked(session_id, inputs, step, request_id)
        while True:
            call = self._dispatch.call(1, has_left=has_left)
            work = self._asked(tenant, asked, call)
            self._dispatch.run(call, [work])
            if not isinstance(work.outcome, MovedError):
                return _answer(work.model, work.outcome)
            self._places.pop(records.key(tenant, session_id), None)

    def step_many(
        self, tenant: str, many: Sequence[Asked], *, has_left: Callable[[], bool] | None = None
    ) -> list[Answer | Exception]:
        """As `step` would answer each, in the same order; a session's own run one after another, as they are listed.

        Raises OverloadedError where there is no room for all.
        """
        call = self._dispatch.call(len(many), has_left=has_left)
        told: list[Work | Exception] = []
        for asked in many:
            try:
                told.append(self._asked(tenant, asked, call))
            except Exception as error:  # noqa: BLE001  (whatever it is, it is this item's alone)
                told.append(error)
                call.settled(error)
        self._dispatch.run(call, [work for work in told if isinstance(work, Work)])
        return [self._told(tenant, asked, one) for asked, one in zip(many, told, strict=True)]

    def step_in_order(
        self, tenant: str, session_id: str, many: Sequence[Asked], *, has_left: Callable[[], bool] | None = None
    ) -> list[Answer | Exception]:
        """As `step` would answer each of one session's, one after another; those that go together are one commit.

        A refused one is passed over: what follows it and names no `step` goes on from what there is. One that could
        not be done now is not: with it ends what is told, so that nothing overtakes it.
        """
        key, told = records.key(tenant, session_id), list[Answer | Exception]()
        while len(told) < len(many) and not (told and holds_up(told[-1])):
            try:
                model = self._place(key, session_id)
                requests = self._together(model, many[len(told) :])
                call = self._dispatch.call(1, has_left=has_left)
                work = self._dispatch.session_work(model, requests, call, key)
                self._dispatch.run(call, [work])
            except Exception as error:  # noqa: BLE001  (whatever it is, it is the next one's)
                told.append(error)
                continue
            if isinstance(work.outcome, MovedError):
                self._places.pop(key, None)
            elif len(requests) > 1 and isinstance(work.outcome, NotFiniteError):
                for request in requests:
                    told += self.step_many(tenant, [request.asked], has_left=has_left)
            else:
                told += [_answer_or_error(model, request.outcome) for request in requests]
        held_up = next((place for place, one in enumerate(told) if holds_up(one)), len(told))
        return told[: held_up + 1]

    def _together(self, model: StepModel, many: Sequence[Asked]) -> list[Request]:
        """The first of these, and as many more as can be one row and are kept as requests of the session.

        Raises InvalidInputError where the first is at fault.
        """
        requests, ids, steps = list[Request](), set[str](), 0
        for asked in many[:REMEMBERED]:
            try:
                inputs = self._array(model, asked.inputs)
            except InvalidInputError:
                if not requests:
                    raise
                break
            steps += len(inputs)
            if requests and (steps > self.limits.max_steps or asked.request_id in ids):
                break
            ids |= {asked.request_id} - {""}
            requests.append(Request(asked, inputs))
        return requests

    def _told(self, tenant: str, asked: Asked, one: Work | Exception) -> Answer | Exception:
        try:
            if isinstance(one, Exception):
                return one
            if isinstance(one.outcome, MovedError):
                self._places.pop(records.key(tenant, asked.session_id), None)
                return self.step(tenant, asked.session_id, asked.inputs, step=asked.step, request_id=asked.request_id)
            return _answer(one.model, one.outcome)
        except Exception as error:  # noqa: BLE001  (as above)
            return error

    def _asked(self, tenant: str, asked: Asked, call: Call) -> Work:
        """The item that does what was asked. Raises what speaks against it."""
        key = records.key(tenant, asked.session_id)
        model = self._place(key, asked.session_id)
        inputs: Inputs | NDArray[np.float32] = asked.inputs
        if isinstance(inputs, bytes):  # whose length is not in steps
            inputs = self._array(model, inputs)
        else:
            self._not_too_long(inputs)
        return self._dispatch.session_work(model, [Request(asked, inputs)], call, key)

    # What carries them

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
            model = self._served(living(session_id, self.lives.load(key), self._clock()))
            self._places[key] = model
            if len(self._places) > PLACES:
                self._places.popitem(last=False)
        return model

    def _array(self, model: StepModel, inputs: Inputs, field: str = "inputs") -> NDArray[np.float32]:
        if not isinstance(inputs, bytes):  # whose length is not in steps
            self._not_too_long(inputs, field)
        array = array_of(model, inputs, field)
        self._not_too_long(array, field)
        return array

    def _not_too_long(self, inputs: Inputs | NDArray[np.float32], field: str = "inputs") -> None:
        if len(inputs) > self.limits.max_steps:
            raise InvalidInputError(Fault(field, f"at most {self.limits.max_steps} steps a call, not {len(inputs)}"))

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


def _answer(model: StepModel, told: Done | BaseException | None) -> Answer:
    """Raises what went wrong."""
    if isinstance(told, BaseException):
        raise told
    assert told is not None
    return Answer(model, told.step, told.outputs)


def _answer_or_error(model: StepModel, told: Done | BaseException | None) -> Answer | Exception:
    return told if isinstance(told, Exception) else _answer(model, told)


def holds_up(told: Answer | Exception) -> bool:
    """Whether it is no answer, and is no refusal of what was asked either."""
    return isinstance(told, Exception) and (isinstance(told, UnavailableError) or not isinstance(told, OnwardError))
