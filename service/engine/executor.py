"""Running a batch: gather states, one call of ONNX Runtime, one commit.

Owns what happens to each row, and exactly-once: whether a request is a retry, out of step, or new is decided here and
nowhere else, against the record that the commit is compared with. One bad row never fails its neighbours.
"""

from collections.abc import Callable, Sequence

import numpy as np

from model.runner import Outputs, StepModel
from model.state import State, StateError
from service.engine.work import Done, Intent, Work
from service.errors import (
    DamagedRecordError,
    ModelGoneError,
    NotFiniteError,
    OnwardError,
    RequestReusedError,
    SessionEndedError,
    StepConflictError,
    UnknownSessionError,
)
from service.sessions.record import Record, Ref
from service.sessions.store import Change, Store


class MovedError(Exception):
    """The session runs on another bundle than the item was queued for: it was ended and created anew meanwhile."""


class Executor:
    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970 UTC, for what records say of time."""
        self._store, self._clock = store, clock

    def run(self, model: StepModel, batch: Sequence[Work]) -> None:
        """Takes every item of the batch one call further; answers those that are finished or failed.

        An item that is neither goes on in a later batch. Raises what is no single row's fault, such as a store's.
        """
        rows = self._admit(model, batch)
        if rows:
            self._compute(model, rows)
            self._commit(rows)

    def _admit(self, model: StepModel, batch: Sequence[Work]) -> list[Work]:
        """The items that may run, with their state; retries and refusals are answered."""
        new = [(work, work.intent) for work in batch if work.intent is not None and work.state is None]
        if new:
            now = self._clock()
            for (work, intent), record in zip(
                new, self._store.load_many([intent.key for _, intent in new]), strict=True
            ):
                try:
                    _admit_one(model, work, intent, living(intent.session_id, record, now))
                except (OnwardError, MovedError) as error:
                    work.settle(error)
        return [work for work in batch if not work.result.ready()]

    def _compute(self, model: StepModel, rows: Sequence[Work]) -> None:
        steps = [work.take() for work in rows]
        lengths = np.array([len(step) for step in steps], np.int32)
        inputs = np.zeros((len(rows), int(lengths.max()), len(model.features)), np.float32)
        for row, step in enumerate(steps):
            inputs[row, : len(step)] = step
        states = [work.state for work in rows if work.state is not None]
        outputs, after = model.run(inputs, lengths, np.concatenate(states))
        for row, work in enumerate(rows):
            own = outputs[row, : lengths[row]]
            if finite(own) and finite(after[row : row + 1]):
                work.advance(own, after[row : row + 1])
            else:
                work.settle(NotFiniteError())

    def _commit(self, rows: Sequence[Work]) -> None:
        sessions: list[tuple[Work, Change]] = []
        for work in rows:
            if not work.finished or work.over:
                continue
            if work.intent is None:
                work.settle(Done(work.all_outputs(), work.state, None))
            else:
                sessions.append((work, self._change(work, work.intent)))
        committed = self._store.commit_many([change for _, change in sessions]) if sessions else []
        for (work, change), done in zip(sessions, committed, strict=True):
            if done:
                work.settle(Done(work.all_outputs(), work.state, change.record))
            else:  # another process was faster: from its record on, anew
                work.restart()

    def _change(self, work: Work, intent: Intent) -> Change:
        before, now = work.record, self._clock()
        assert before is not None
        assert work.state is not None
        outputs = work.all_outputs()
        record = Record(
            revision=before.revision + 1,
            tenant=before.tenant,
            ref=before.ref,
            step=before.step + len(outputs),
            created_at=before.created_at,
            last_step_at=now,
            ttl_s=before.ttl_s,
            expires_at=now + before.ttl_s,
            state=work.model.layout.to_bytes(work.state[0]),
            surprise=before.surprise.after(surprises(work.model, outputs)),
            request_id=intent.request_id,
            request_digest=intent.digest,
            answer=outputs.tobytes() if intent.request_id else b"",
        )
        return Change(intent.key, before.revision, record)


def _admit_one(model: StepModel, work: Work, intent: Intent, record: Record) -> None:
    """Gives the item its state, or answers it. Raises what the client must be told."""
    if record.ref != ref_of(model):
        raise MovedError
    if intent.request_id and intent.request_id == record.request_id:
        if intent.digest != record.request_digest:
            raise RequestReusedError(intent.request_id)
        work.settle(Done(np.frombuffer(record.answer, model.output_dtype), None, record))
        return
    if intent.expected_step not in (None, record.step):
        raise StepConflictError(intent.session_id, intent.expected_step, record.step)
    work.state, work.record = state_of(model, record), record


def living(session_id: str, record: Record | DamagedRecordError | None, now: float) -> Record:
    """The record of a living session. Raises UnknownSessionError, SessionEndedError or DamagedRecordError."""
    if isinstance(record, DamagedRecordError):
        raise record
    if record is None or (record.ended is not None and now >= record.expires_at):
        raise UnknownSessionError(session_id)
    if record.ended is not None:
        raise SessionEndedError(session_id, record.ended, record.ended_at)
    if not record.alive(now):
        raise SessionEndedError(session_id, "expired", record.expires_at)
    return record


def state_of(model: StepModel, record: Record) -> State:
    """(1,) the state that the record holds. Raises DamagedRecordError."""
    try:
        return model.layout.from_bytes(record.state)
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
    return [] if name is None else [float(value) for value in outputs[name]]


def finite(rows: Outputs | State) -> bool:
    """Whether every number in structured rows is finite."""
    return all(bool(np.isfinite(rows[name]).all()) for name in rows.dtype.names or ())
