"""Running a batch: gather states, one call of ONNX Runtime, one commit.

Owns what happens to each row, and exactly-once: whether a request is a retry, out of step, or new is decided here and
nowhere else, against the record that the commit is compared with. One bad row never fails its neighbours.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.runner import Outputs, StepModel
from model.state import State, StateError
from service.engine import cost, history
from service.engine.call import Caller
from service.engine.cost import Cost
from service.engine.history import Point
from service.engine.inputs import Inputs, to_array
from service.engine.lives import living
from service.engine.work import Asked, Done, Work
from service.errors import (
    DamagedRecordError,
    InvalidInputError,
    LateRequestError,
    ModelGoneError,
    NotFiniteError,
    OnwardError,
    RequestReusedError,
    StepConflictError,
)
from service.sessions.record import Record, Ref, new_revision, remembering, remembers
from service.sessions.store import Change, Store


class MovedError(Exception):
    """The session runs on another bundle than the item was queued for: it was ended and created anew meanwhile."""


class Executor:
    """Runs batches of one model."""

    def __init__(
        self,
        model: StepModel,
        costs: Cost,
        store: Store,
        clock: Callable[[], float],
        *,
        exact: bool = False,
        keep: int = 0,
    ) -> None:
        """`clock` gives seconds since 1970 UTC, for what records say of time.

        exact: the same bits in any batch from a model whose kernels do not give them, at the cost of batching.
        keep: how many steps a session can be taken back by.
        """
        alone = exact and not model.manifest.exact
        self.chunk = 1 if alone else costs.chunk
        self._model, self._costs, self._store, self._clock = model, costs, store, clock
        self._keep, self._features = keep, model.manifest.features
        self._call, self._ref, self._bytes = Caller(model, alone=alone), ref_of(model), model.layout.dtype.itemsize

    def run(self, batch: Sequence[Work]) -> None:
        """Takes every item of the batch one call further; answers those that are finished or failed.

        An item that is neither goes on in a later batch. Raises what is no single row's fault, such as a store's.
        """
        self._admit([(work, work.asked) for work in batch if work.asked is not None and work.state is None])
        rows = [work for work in batch if work.outcome is None]
        if rows:
            self._compute(rows)
            self._commit(rows)

    def _admit(self, new: Sequence[tuple[Work, Asked]]) -> None:
        """Gives new items their state, and their inputs as arrays; retries and refusals are answered.

        What goes on from a record that the store does not have any more is found out when it commits. Whoever would be
        answered or refused without a commit is so only by what the store has now.
        """
        doubted = self._begin(new, fresh=False)
        for work, outcome in self._begin([(work, asked) for work, asked in new if work in doubted], fresh=True).items():
            work.settle(outcome)

    def _begin(self, new: Sequence[tuple[Work, Asked]], *, fresh: bool) -> dict[Work, Done | BaseException]:
        """Gives items their records and states; returns those that have no step to make, and why."""
        if not new:
            return {}
        now, over = self._clock(), dict[Work, Done | BaseException]()
        records = self._store.load_many([work.line for work, _ in new], fresh=fresh)
        for (work, asked), record in zip(new, records, strict=True):
            try:
                work.record = self._mine(living(asked.session_id, record, now))
            except (OnwardError, MovedError) as error:
                over[work] = error
        over |= _read(self._model, [work for work, _ in new if work not in over])
        for work, asked in new:
            if work not in over:
                assert work.record is not None
                try:
                    if (done := self._answered(work, asked, work.record)) is not None:
                        over[work] = done
                    else:
                        work.state = work.record.state
                except OnwardError as error:
                    over[work] = error
        return over

    def _mine(self, record: Record) -> Record:
        if record.ref != self._ref:
            raise MovedError
        if len(record.state) != self._bytes:
            raise DamagedRecordError("its state is not its model's")
        return record

    def _answered(self, work: Work, asked: Asked, record: Record) -> Done | None:
        """What a retry is told; None where there is a step to make. Raises what speaks against it."""
        if asked.request_id:
            assert isinstance(work.inputs, np.ndarray)
            work.digest = blake2b(work.inputs.tobytes(), digest_size=16).digest()
            if asked.request_id == record.request_id:
                if work.digest != record.request_digest:
                    raise RequestReusedError(asked.request_id)
                return Done(np.frombuffer(record.answer, self._model.output_dtype), None, record)
        believed, known = asked.step, work.overtaken
        if believed is None and known is not None and _lost(record, known):
            believed = known.step
        if believed is not None and believed != record.step:
            raise StepConflictError(asked.session_id, believed, record.step)
        if asked.request_id and remembers(record.recent, asked.request_id):
            raise LateRequestError(asked.session_id, asked.request_id, record.step)
        return None

    def _compute(self, rows: Sequence[Work]) -> None:
        taken = [work.take() for work in rows]
        states = [work.state for work in rows if work.state is not None]
        seconds = self._costs.seconds(len(rows), max(map(len, taken)))
        outputs, after, sound = cost.run(lambda: self._call(taken, states), seconds)
        alike = outputs.shape[1] == 1
        memories = self._call.memories(after)
        for row, (work, good) in enumerate(zip(rows, sound, strict=True)):
            if good:
                work.advance(outputs[row] if alike else outputs[row, : len(taken[row])], memories[row])
            else:
                work.settle(NotFiniteError())

    def _commit(self, rows: Sequence[Work]) -> None:
        ended = [work for work in rows if work.outcome is None and work.finished]
        works, outputs, changes = [], [], []
        now = self._clock()
        for work in ended:
            told = work.all_outputs()
            if work.asked is None:
                work.settle(Done(told, work.state, None))
            else:
                works.append(work)
                outputs.append(told)
                changes.append(self._change(work, work.asked, told, now))
        if not works:
            return
        committed = self._store.commit_many(changes)
        for work, told, change, done in zip(works, outputs, changes, committed, strict=True):
            if done:
                work.settle(Done(told, work.state, change.record))
            else:  # another process was faster: from its record on, anew
                work.restart()

    def _change(self, work: Work, asked: Asked, outputs: Outputs, now: float) -> Change:
        before = work.record
        assert before is not None
        assert work.state is not None
        surprised = surprises(self._model, outputs)
        record = Record(
            new_revision(),
            before.tenant,
            before.ref,
            before.step + len(outputs),
            before.created_at,
            now,
            before.ttl_s,
            now + before.ttl_s,
            work.state,
            before.surprise.after(surprised),
            asked.request_id,
            work.digest,
            outputs.tobytes() if asked.request_id else b"",
            remembering(before.recent, asked.request_id) if asked.request_id else before.recent,
            self._history(work, before, surprised) if self._keep else b"",
        )
        return Change(work.line, before.revision, record, advances=True)

    def _history(self, work: Work, before: Record, surprised: list[float]) -> bytes:
        """The session's history after the item's inputs."""
        assert isinstance(work.inputs, np.ndarray)
        start = Point(before.step, before.surprise, before.state)
        known = history.from_bytes(before.history) if before.history else history.begun(self._features, start)
        step, way = before.step + len(work.inputs), [start]
        for consumed, state in list(work.trail or ())[:-1]:  # the last is where the session is now
            if len(way) > 1 and before.step + consumed <= step - self._keep:
                way.pop()  # a later one is old enough
            way.append(Point(before.step + consumed, before.surprise.after(surprised[:consumed]), state))
        return known.advanced(way, work.inputs, step, self._keep).to_bytes()


def _lost(record: Record, known: Record) -> bool:
    """Whether the store has lost steps that this process knows of: it is behind, and has not been changed since."""
    return record.step < known.step and record.last_step_at < known.last_step_at


def array_of(model: StepModel, inputs: Inputs, field: str = "inputs") -> NDArray[np.float32]:
    """(steps, features). Raises InvalidInputError."""
    return to_array(inputs, model.manifest.features, field)


def _read(model: StepModel, works: Sequence[Work]) -> dict[Work, InvalidInputError]:
    """Makes arrays of the items' inputs, of all together where that goes; returns those at fault, and why."""
    unread: list[tuple[Work, Any]] = [(work, work.inputs) for work in works if not isinstance(work.inputs, np.ndarray)]
    forms = {type(inputs[0]) for _, inputs in unread}
    if len(unread) > 1 and (forms == {list} or forms <= {int, float}):
        try:
            joined = array_of(model, list(chain.from_iterable(inputs for _, inputs in unread)))
        except InvalidInputError:
            pass  # whose it is, is found below
        else:
            start = 0
            for work, inputs in unread:
                work.inputs = joined[start : start + len(inputs)]
                start += len(inputs)
            return {}
    faults = {}
    for work, inputs in unread:
        try:
            work.inputs = array_of(model, inputs)
        except InvalidInputError as error:
            faults[work] = error
    return faults


def state_of(model: StepModel, record: Record) -> State:
    """(1,) the state that the record holds. Raises DamagedRecordError."""
    try:
        return model.layout.stack([record.state])
    except StateError as error:
        raise DamagedRecordError(str(error)) from error


def ref_of(model: StepModel) -> Ref:
    return Ref(model.manifest.name, model.manifest.version, model.digest)


def gone(ref: Ref, served: StepModel | None) -> ModelGoneError:
    why = (
        "which is not served any more"
        if served is None
        else "whose bundle was replaced by another under the same version"
    )
    return ModelGoneError(ref.model, ref.version, why)


def surprises(model: StepModel, outputs: Outputs) -> list[float]:
    name = model.manifest.head.surprise
    return [] if name is None else outputs[name].tolist()
