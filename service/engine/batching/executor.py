"""Execution of a batch: load the records, one call of ONNX Runtime, one commit.

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
from onward.service.engine.batching import cost
from onward.service.engine.batching.cost import Cost
from onward.service.engine.batching.model_call import ModelCall, padded
from onward.service.engine.batching.work_item import PendingRequest, WorkItem, WorkResult
from onward.service.engine.event_loop import in_loop_turns
from onward.service.engine.input_parsing import parse_batch
from onward.service.engine.models import ref_of
from onward.service.engine.observer import Observer
from onward.service.engine.sessions import history
from onward.service.engine.sessions.history import Point
from onward.service.engine.sessions.lifecycle import live_record
from onward.service.errors import (
    DamagedRecordError,
    LateRequestError,
    NotFiniteError,
    RequestReusedError,
    ServiceError,
    SessionEndedError,
    StepConflictError,
    UnknownSessionError,
    without_frames,
)
from onward.service.store import idempotency
from onward.service.store.contract import Change, Loaded, Store
from onward.service.store.record import Record, Tombstone, new_revision

SCORED_AT_ONCE = 1024
"""The number of inputs of a batch whose predictions are scored in one turn of the event loop."""

log = logging.getLogger(__name__)


class ModelChangedError(Exception):
    """The session runs on another bundle than the item was queued for: it was ended and created anew meanwhile."""


class Executor:
    """Executes batches of one model."""

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
        """`clock` gives seconds since 1970 UTC, for the times in records.

        exact: answers have the same bits in any batch, at the cost of batching for a model whose kernels do not give
        them. keep: how many steps a session can be rewound by.
        """
        row_by_row = exact and not model.manifest.exact
        self.chunk = 1 if row_by_row else costs.chunk
        self._model, self._costs, self._store, self._clock = model, costs, store, clock
        self._keep, self._features = keep, model.manifest.features
        self.accuracy, self._observer = accuracy, observer
        self._count_sums = observer.watched(model, accuracy.sums) if observer and accuracy.enabled else None
        self._uncounted: list[tuple[bytes, bytes | None]] = []  # the accuracy of records before and after their commit
        self._max_answer_bytes = idempotency.max_answer_bytes(accuracy.max_step_bytes)
        self._call, self._ref = ModelCall(model, row_by_row=row_by_row), ref_of(model)
        self._state_bytes = model.layout.dtype.itemsize

    def run(self, batch: Sequence[WorkItem]) -> None:
        """Takes every item of the batch one model call further, and settles those that are finished or have failed.

        An item that is neither goes on in a later batch. Raises errors that no single row caused, such as a store's.
        """
        self._admit([item for item in batch if item.requests and item.state is None])
        rows, inputs = _next_inputs([item for item in batch if item.outcome is None])
        if rows:
            self._compute(rows, inputs)
            self._commit(rows)

    def _admit(self, new: Sequence[WorkItem]) -> None:
        """Gives new items their state and their inputs as arrays; settles retries and refusals.

        Records may come from a cache. An item with steps to make learns from its commit whether its record was the
        store's latest; what is answered or refused without a commit is decided anew, on a record read from the store.
        """
        unsure = self._load(new, fresh=False)
        for item in unsure:
            item.forget_record()
        for item in self._load(unsure, fresh=True):
            if item.state is None:
                outcome = item.requests[-1].outcome
                assert outcome is not None
                item.settle(outcome)

    def _load(self, new: Sequence[WorkItem], *, fresh: bool) -> list[WorkItem]:
        """Loads the items' records, and sets the state of those with a step to make.

        Returns the items with a request that has its outcome already. fresh: the records are read from the store, not
        from a cache.
        """
        if not new:
            return []
        now = self._clock()
        records = self._store.load_many([item.key for item in new], fresh=fresh)
        for item, record in zip(new, records, strict=True):
            try:
                item.record = self._checked(_record_for(item, record, now))
            except Exception as error:  # noqa: BLE001  (any error concerns this item alone)
                if self._observer is not None and isinstance(error, DamagedRecordError):
                    self._observer.damaged()
                _log_defect(error)
                for pending in item.requests:
                    pending.outcome = without_frames(error)
        parse_batch(self._model, [pending for item in new for pending in item.requests if pending.outcome is None])
        return [item for item in new if item.record is None or not self._decide(item, item.record)]

    def _decide(self, item: WorkItem, record: Record) -> bool:
        """Gives those of the item's requests that have no step to make their outcome. Returns whether all have one."""
        to_run, step, defect = [], record.step, None
        lost = item.overtaken if item.overtaken is not None and _has_lost_steps(record, item.overtaken) else None
        for pending in item.requests:
            try:
                pending.outcome = defect or pending.outcome or self._stored_result(pending, record, step, lost)
            except Exception as error:  # noqa: BLE001  (any error concerns this request alone)
                pending.outcome = without_frames(error)
            if pending.outcome is None:
                to_run.append(pending)
                step += pending.length
            elif isinstance(pending.outcome, Exception) and defect is None and _log_defect(pending.outcome):
                defect = pending.outcome  # later requests of the item get it too, so that none overtakes this one
        if to_run:
            item.state, item.accuracy = record.state, record.accuracy if self.accuracy.enabled else None
            item.surprise = record.surprise
            arrays = [pending.inputs for pending in to_run if pending.inputs is not None]
            item.inputs = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            item.length = len(item.inputs)
        return len(to_run) == len(item.requests)

    def _checked(self, record: Record) -> Record:
        if record.ref != self._ref:
            raise ModelChangedError
        if len(record.state) != self._state_bytes or not self.accuracy.can_read(record.accuracy):
            raise DamagedRecordError("its state is not its model's")
        return record

    def _stored_result(
        self, pending: PendingRequest, record: Record, step: int, lost: Record | None
    ) -> WorkResult | None:
        """Returns the stored result if the request is a retry; None if it has a step to make. Raises if it is refused.

        step: the step at which the session will be then. lost: the record of this process, if the store has lost it.
        """
        request = pending.request
        if request.request_id:
            assert pending.inputs is not None
            pending.digest = idempotency.digest(pending.inputs.tobytes())
            remembered = idempotency.find(record.requests, request.request_id)
            if remembered is not None and remembered.digest != pending.digest:
                raise RequestReusedError(request.request_id)
            if remembered is not None and not remembered.answer:
                raise LateRequestError(request.session_id, request.request_id, step)
            if remembered is not None:
                return WorkResult(
                    self.accuracy.decode_outputs(remembered.answer, pending.length), None, remembered.step
                )
        expected = lost.step if request.step is None and lost is not None else request.step
        if expected is not None and expected != step:
            raise StepConflictError(request.session_id, expected, step)
        return None

    def _compute(self, rows: Sequence[WorkItem], row_inputs: Sequence[NDArray[np.float32]]) -> None:
        """Calls the model for all rows, and advances each by its outputs and the score of its inputs."""
        inputs, sizes = padded(row_inputs)
        states = self._model.layout.stack([item.state for item in rows if item.state is not None])
        seconds = self._costs.seconds(*inputs.shape[:2])
        outputs, states_after, are_finite = cost.run(lambda: self._call(inputs, sizes, states), seconds)
        scored, accuracies = self._score([item.accuracy for item in rows], inputs, sizes, states, outputs)
        is_one_step = outputs.shape[1] == 1
        state_bytes = self._call.split(states_after)
        for row, (item, is_finite) in enumerate(in_loop_turns(list(zip(rows, are_finite, strict=True)))):
            if is_finite:
                row_outputs = scored[row] if is_one_step else scored[row][: sizes[row]]
                surprise = (
                    None if item.surprise is None else update_means(item.surprise, surprises(self._model, row_outputs))
                )
                item.advance(row_outputs, state_bytes[row], accuracies[row], surprise)
            else:
                item.settle(NotFiniteError())

    def _score(
        self,
        accuracies: Sequence[bytes | None],
        inputs: NDArray[np.float32],
        sizes: Sequence[int],
        states: State,
        outputs: Outputs,
    ) -> tuple[Sequence[Outputs] | Outputs, Sequence[bytes | None]]:
        """Scores the predictions made for the inputs, see `Accuracy.score_steps`; a large batch in parts."""
        count = max(1, SCORED_AT_ONCE // outputs.shape[1])
        if outputs.shape[1] == 1 or len(sizes) <= count:
            return self.accuracy.score_steps(accuracies, inputs, sizes, states, outputs)
        scored: list[Outputs] = []
        accuracies_after: list[bytes | None] = []
        for start in in_loop_turns(range(0, len(sizes), count), 1):
            part = slice(start, start + count)
            part_scored, part_after = self.accuracy.score_steps(
                accuracies[part], inputs[part], sizes[part], states[part], outputs[part]
            )
            scored.extend(part_scored)
            accuracies_after.extend(part_after)
        return scored, accuracies_after

    def _commit(self, rows: Sequence[WorkItem]) -> None:
        """Settles the finished rows, those of sessions by one commit of all their records."""
        finished = [item for item in rows if item.outcome is None and item.finished]
        items, outputs, changes = [], [], []
        now = self._clock()
        for item in in_loop_turns(finished):
            item_outputs = item.all_outputs()
            if not item.requests:
                item.settle(WorkResult(item_outputs, item.state, accuracy=item.accuracy, surprise=item.surprise))
            else:
                items.append(item)
                outputs.append(item_outputs)
                changes.append(self._change(item, item_outputs, now))
        if not items:
            return
        committed = self._store.commit_many(changes)
        for item, item_outputs, is_committed in zip(items, outputs, committed, strict=True):
            assert item.record is not None
            if is_committed:
                item.settle_requests(item_outputs, item.record.step + len(item_outputs))
            else:  # another process was faster: the item starts again from that process's record
                item.restart()
        if self._count_sums is not None:
            self._uncounted += [(item.record.accuracy, item.accuracy) for item in items if item.record is not None]

    def count(self) -> None:
        """Reports to the observer what was committed since the last call of this method.

        No client waits for that, so it is called after the answers are sent.
        """
        if self._count_sums is not None and self._uncounted:
            before, after = zip(*self._uncounted, strict=True)
            self._uncounted.clear()
            self._count_sums(self.accuracy.increments(before, after))

    def _change(self, item: WorkItem, outputs: Outputs, now: float) -> Change:
        before = item.record
        assert before is not None
        assert item.state is not None
        assert item.surprise is not None
        record = Record(
            new_revision(),
            before.tenant,
            before.ref,
            before.step + len(outputs),
            before.created_at,
            now,
            before.ttl_s,
            now + before.ttl_s,
            item.state,
            item.surprise,
            _remembered_requests(before, item.requests, outputs, self._max_answer_bytes),
            self._history(item, before) if self._keep else b"",
            before.accuracy if item.accuracy is None else item.accuracy,
        )
        return Change(item.key, item.stored_revision, record, advances=not item.creates_session)

    def _history(self, item: WorkItem, before: Record) -> bytes:
        """Returns the session's history after the item's inputs."""
        assert item.inputs is not None
        start = Point(before.step, before.surprise, before.state, before.accuracy)
        earlier = history.from_bytes(before.history) if before.history else history.begun(self._features, start)
        step, points = before.step + len(item.inputs), [start]
        for consumed, state, accuracy, surprise in list(item.trail or ())[:-1]:  # the last is the session's own state
            if len(points) > 1 and before.step + consumed <= step - self._keep:
                points.pop()  # the point added below is old enough
            assert surprise is not None
            points.append(Point(before.step + consumed, surprise, state, accuracy or b""))
        return earlier.advanced(points, item.inputs, step, self._keep).to_bytes()


def _record_for(item: WorkItem, stored: Loaded, now: float) -> Record:
    """Returns the record that the item goes on from: the live session's, or that of the session which it will create.

    Raises as `live_record` does.
    """
    request = item.requests[0].request
    item.stored_revision = stored.revision if isinstance(stored, (Record, Tombstone)) else None
    try:
        return live_record(request.session_id, stored, now)
    except (UnknownSessionError, SessionEndedError):
        if item.first_record is None or request.step:
            raise
    item.creates_session = True
    return item.first_record._replace(created_at=now, last_step_at=now)


def _next_inputs(rows: Sequence[WorkItem]) -> tuple[list[WorkItem], list[NDArray[np.float32]]]:
    """Returns the rows and their next inputs, without the rows whose next inputs cannot be made, which are settled."""
    ready, inputs = [], []
    for item in rows:
        try:
            inputs.append(item.next_inputs())
        except Exception as error:
            log.exception("a row has no next input")
            item.settle(error)
        else:
            ready.append(item)
    return ready, inputs


def _remembered_requests(
    before: Record, requests: Sequence[PendingRequest], outputs: Outputs, max_answer_bytes: int
) -> bytes:
    """Returns the session's last requests, with these appended. outputs: (steps,) of these, one after another."""
    remembered, end = before.requests, 0
    for pending in requests:
        if pending.outcome is None:
            start, end = end, end + pending.length
            if pending.request.request_id:
                entry = idempotency.AppliedRequest(pending.digest, before.step + end, outputs[start:end].tobytes())
                remembered = idempotency.remember(remembered, pending.request.request_id, entry, max_answer_bytes)
    return remembered


def _log_defect(error: Exception) -> bool:
    """Logs the error and returns True if it is a defect of the service, not a refusal."""
    is_defect = not isinstance(error, (ServiceError, ModelChangedError))
    if is_defect:
        log.error("a step could not be decided", exc_info=error)
    return is_defect


def _has_lost_steps(stored: Record, local: Record) -> bool:
    """Returns whether the store lacks steps that this process has committed: its record is at an earlier step, and was
    not changed since.
    """
    return stored.step < local.step and stored.last_step_at < local.last_step_at
