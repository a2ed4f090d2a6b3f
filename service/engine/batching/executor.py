"""Running a batch: gather states, one call of ONNX Runtime, one commit.

Owns what happens to each row, and exactly-once: whether a request is a retry, out of step, or new is decided here and
nowhere else, against the record that the commit is compared with. One bad row never fails its neighbours.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onward.model.runner import Outputs, StepModel
from onward.model.scoring.accuracy import Accuracy
from onward.model.scoring.surprise import surprises, update_means
from onward.model.state import State
from onward.service.engine.batch_inputs import read
from onward.service.engine.batching import cost
from onward.service.engine.batching.cost import Cost
from onward.service.engine.batching.model_call import Caller, padded
from onward.service.engine.batching.work_item import Done, Request, Work
from onward.service.engine.event_loop import by_turns
from onward.service.engine.models import ref_of
from onward.service.engine.observer import Observer
from onward.service.engine.sessions import history
from onward.service.engine.sessions.history import Point
from onward.service.engine.sessions.lifecycle import living
from onward.service.errors import (
    DamagedRecordError,
    LateRequestError,
    NotFiniteError,
    OnwardError,
    RequestReusedError,
    SessionEndedError,
    StepConflictError,
    UnknownSessionError,
    without_frames,
)
from onward.service.store import idempotency
from onward.service.store.contract import Change, Loaded, Store
from onward.service.store.record import Record, Tombstone, new_revision

log = logging.getLogger(__name__)

SCORED_AT_ONCE = 1024
"""Inputs of a batch whose predictions are scored in one turn of the event loop."""


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
        accuracy: Accuracy,
        observer: Observer | None = None,
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
        self.accuracy, self._observer = accuracy, observer
        self._gained = observer.watched(model, accuracy.sums) if observer and accuracy.enabled else None
        self._uncounted: list[tuple[bytes, bytes | None]] = []  # what records kept before commits, and after
        self._max_answer_bytes = idempotency.max_answer_bytes(accuracy.max_step_bytes)
        self._call, self._ref, self._bytes = Caller(model, alone=alone), ref_of(model), model.layout.dtype.itemsize

    def run(self, batch: Sequence[Work]) -> None:
        """Takes every item of the batch one call further; answers those that are finished or failed.

        An item that is neither goes on in a later batch. Raises what is no single row's fault, such as a store's.
        """
        self._admit([work for work in batch if work.requests and work.state is None])
        rows, taken = _taken([work for work in batch if work.outcome is None])
        if rows:
            self._compute(rows, taken)
            self._commit(rows)

    def _admit(self, new: Sequence[Work]) -> None:
        """Gives new items their state, and their inputs as arrays; retries and refusals are answered.

        What goes on from a record that the store does not have any more is found out when it commits. Whoever would be
        answered or refused without a commit is so only by what the store has now.
        """
        doubted = self._begin(new, fresh=False)
        for work in doubted:
            work.undecided()
        for work in self._begin(doubted, fresh=True):
            if work.state is None:
                told = work.requests[-1].outcome
                assert told is not None
                work.settle(told)

    def _begin(self, new: Sequence[Work], *, fresh: bool) -> list[Work]:
        """Gives items their records, and states where there is a step to make; returns those with answered requests."""
        if not new:
            return []
        now = self._clock()
        records = self._store.load_many([work.line for work in new], fresh=fresh)
        for work, record in zip(new, records, strict=True):
            try:
                work.record = self._mine(_record_of(work, record, now))
            except Exception as error:  # noqa: BLE001  (whatever it is, it is this item's alone)
                if self._observer is not None and isinstance(error, DamagedRecordError):
                    self._observer.damaged()
                _look_at(error)
                for request in work.requests:
                    request.outcome = without_frames(error)
        read(self._model, [request for work in new for request in work.requests if request.outcome is None])
        return [work for work in new if work.record is None or not self._decided(work, work.record)]

    def _decided(self, work: Work, record: Record) -> bool:
        """Answers those of the item's requests that have no step to make; whether each has one."""
        todo, step, broken = [], record.step, None
        lost = work.overtaken if work.overtaken is not None and _lost(record, work.overtaken) else None
        for request in work.requests:
            try:
                request.outcome = broken or request.outcome or self._answered(request, record, step, lost)
            except Exception as error:  # noqa: BLE001  (whatever it is, it is this request's alone)
                request.outcome = without_frames(error)
            if request.outcome is None:
                todo.append(request)
                step += request.length
            elif isinstance(request.outcome, Exception) and broken is None and _look_at(request.outcome):
                broken = request.outcome  # nothing of the item overtakes it
        if todo:
            work.state, work.accuracy = record.state, record.accuracy if self.accuracy.enabled else None
            work.surprise = record.surprise
            arrays = [request.inputs for request in todo if request.inputs is not None]
            work.inputs = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            work.length = len(work.inputs)
        return len(todo) == len(work.requests)

    def _mine(self, record: Record) -> Record:
        if record.ref != self._ref:
            raise MovedError
        if len(record.state) != self._bytes or not self.accuracy.can_read(record.accuracy):
            raise DamagedRecordError("its state is not its model's")
        return record

    def _answered(self, request: Request, record: Record, step: int, lost: Record | None) -> Done | None:
        """What a retry is told; None where there is a step to make. Raises what speaks against it.

        step: where the session will be then. lost: what this process knows of the session, and the store does not.
        """
        asked = request.asked
        if asked.request_id:
            assert request.inputs is not None
            request.digest = idempotency.digest(request.inputs.tobytes())
            known = idempotency.find(record.requests, asked.request_id)
            if known is not None and known.digest != request.digest:
                raise RequestReusedError(asked.request_id)
            if known is not None and not known.answer:
                raise LateRequestError(asked.session_id, asked.request_id, step)
            if known is not None:
                return Done(self.accuracy.decode_outputs(known.answer, request.length), None, known.step)
        believed = lost.step if asked.step is None and lost is not None else asked.step
        if believed is not None and believed != step:
            raise StepConflictError(asked.session_id, believed, step)
        return None

    def _compute(self, rows: Sequence[Work], taken: Sequence[NDArray[np.float32]]) -> None:
        inputs, sizes = padded(taken)
        states = self._model.layout.stack([work.state for work in rows if work.state is not None])
        seconds = self._costs.seconds(*inputs.shape[:2])
        outputs, after, sound = cost.run(lambda: self._call(inputs, sizes, states), seconds)
        answers, accuracies = self._scored([work.accuracy for work in rows], inputs, sizes, states, outputs)
        alike = outputs.shape[1] == 1
        memories = self._call.memories(after)
        for row, (work, good) in enumerate(by_turns(list(zip(rows, sound, strict=True)))):
            if good:
                answer = answers[row] if alike else answers[row][: sizes[row]]
                surprise = (
                    None if work.surprise is None else update_means(work.surprise, surprises(self._model, answer))
                )
                work.advance(answer, memories[row], accuracies[row], surprise)
            else:
                work.settle(NotFiniteError())

    def _scored(
        self,
        accuracies: Sequence[bytes | None],
        inputs: NDArray[np.float32],
        sizes: Sequence[int],
        states: State,
        outputs: Outputs,
    ) -> tuple[Sequence[Outputs] | Outputs, Sequence[bytes | None]]:
        """What the inputs say of the predictions made for them, see `Accuracy.score_steps`: a large batch in parts."""
        count = max(1, SCORED_AT_ONCE // outputs.shape[1])
        if outputs.shape[1] == 1 or len(sizes) <= count:
            return self.accuracy.score_steps(accuracies, inputs, sizes, states, outputs)
        answers: list[Outputs] = []
        after: list[bytes | None] = []
        for start in by_turns(range(0, len(sizes), count), 1):
            part = slice(start, start + count)
            some, then = self.accuracy.score_steps(
                accuracies[part], inputs[part], sizes[part], states[part], outputs[part]
            )
            answers.extend(some)
            after.extend(then)
        return answers, after

    def _commit(self, rows: Sequence[Work]) -> None:
        ended = [work for work in rows if work.outcome is None and work.finished]
        works, outputs, changes = [], [], []
        now = self._clock()
        for work in by_turns(ended):
            told = work.all_outputs()
            if not work.requests:
                work.settle(Done(told, work.state, accuracy=work.accuracy, surprise=work.surprise))
            else:
                works.append(work)
                outputs.append(told)
                changes.append(self._change(work, told, now))
        if not works:
            return
        committed = self._store.commit_many(changes)
        for work, told, done in zip(works, outputs, committed, strict=True):
            assert work.record is not None
            if done:
                work.settle_requests(told, work.record.step + len(told))
            else:  # another process was faster: from its record on, anew
                work.restart()
        if self._gained is not None:
            self._uncounted += [(work.record.accuracy, work.accuracy) for work in works if work.record is not None]

    def count(self) -> None:
        """Says what was committed since it was said last: nobody waits for that, so it is after the answers."""
        if self._gained is not None and self._uncounted:
            before, after = zip(*self._uncounted, strict=True)
            self._uncounted.clear()
            self._gained(self.accuracy.increments(before, after))

    def _change(self, work: Work, outputs: Outputs, now: float) -> Change:
        before = work.record
        assert before is not None
        assert work.state is not None
        assert work.surprise is not None
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
            work.surprise,
            _remember(before, work.requests, outputs, self._max_answer_bytes),
            self._history(work, before) if self._keep else b"",
            before.accuracy if work.accuracy is None else work.accuracy,
        )
        return Change(work.line, work.stored, record, advances=not work.creates)

    def _history(self, work: Work, before: Record) -> bytes:
        """The session's history after the item's inputs."""
        assert work.inputs is not None
        start = Point(before.step, before.surprise, before.state, before.accuracy)
        known = history.from_bytes(before.history) if before.history else history.begun(self._features, start)
        step, way = before.step + len(work.inputs), [start]
        for consumed, state, accuracy, surprise in list(work.trail or ())[:-1]:  # the last is where the session is now
            if len(way) > 1 and before.step + consumed <= step - self._keep:
                way.pop()  # a later one is old enough
            assert surprise is not None
            way.append(Point(before.step + consumed, surprise, state, accuracy or b""))
        return known.advanced(way, work.inputs, step, self._keep).to_bytes()


def _record_of(work: Work, stored: Loaded, now: float) -> Record:
    """The record that the item goes on from: the living session's, or that of a session which the item is to create.

    Raises as `living` does.
    """
    asked = work.requests[0].asked
    work.stored = stored.revision if isinstance(stored, (Record, Tombstone)) else None
    try:
        return living(asked.session_id, stored, now)
    except (UnknownSessionError, SessionEndedError):
        if work.first is None or asked.step:
            raise
    work.creates = True
    return work.first._replace(created_at=now, last_step_at=now)


def _taken(rows: Sequence[Work]) -> tuple[list[Work], list[NDArray[np.float32]]]:
    """The rows and their next inputs; one that cannot say its own, such as a draw of nonsense, is answered with why."""
    sound, taken = [], []
    for work in rows:
        try:
            taken.append(work.take())
        except Exception as error:
            log.exception("a row has no next input")
            work.settle(error)
        else:
            sound.append(work)
    return sound, taken


def _remember(before: Record, requests: Sequence[Request], outputs: Outputs, most: int) -> bytes:
    """The session's last requests with these, whose outputs follow one another."""
    said, end = before.requests, 0
    for request in requests:
        if request.outcome is None:
            start, end = end, end + request.length
            if request.asked.request_id:
                known = idempotency.AppliedRequest(request.digest, before.step + end, outputs[start:end].tobytes())
                said = idempotency.remember(said, request.asked.request_id, known, most)
    return said


def _look_at(error: Exception) -> bool:
    """Whether it is no refusal, but something broke, which is logged."""
    broken = not isinstance(error, (OnwardError, MovedError))
    if broken:
        log.error("a step could not be decided", exc_info=error)
    return broken


def _lost(record: Record, known: Record) -> bool:
    """Whether the store has lost steps that this process knows of: it is behind, and has not been changed since."""
    return record.step < known.step and record.last_step_at < known.last_step_at
