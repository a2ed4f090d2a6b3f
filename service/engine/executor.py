"""Running a batch: gather states, one call of ONNX Runtime, one commit.

Owns what happens to each row, and exactly-once: whether a request is a retry, out of step, or new is decided here and
nowhere else, against the record that the commit is compared with. One bad row never fails its neighbours.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from model.runner import Outputs, StepModel
from model.state import State, StateError
from service.engine import cost
from service.engine.cost import Cost
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
    """Runs batches of one model."""

    def __init__(
        self, model: StepModel, cost: Cost, store: Store, clock: Callable[[], float], *, exact: bool = False
    ) -> None:
        """`clock` gives seconds since 1970 UTC, for what records say of time.

        exact: the same bits in any batch from a model whose kernels do not give them, at the cost of batching.
        """
        self._model, self._cost, self._store, self._clock = model, cost, store, clock
        self._alone = exact and not model.manifest.exact
        self.chunk = 1 if self._alone else cost.chunk
        self._ref = ref_of(model)

    def run(self, batch: Sequence[Work]) -> None:
        """Takes every item of the batch one call further; answers those that are finished or failed.

        An item that is neither goes on in a later batch. Raises what is no single row's fault, such as a store's.
        """
        self._admit(batch)
        rows = [work for work in batch if work.outcome is None]
        if rows:
            self._compute(rows)
            self._commit(rows)

    def _admit(self, batch: Sequence[Work]) -> None:
        """Gives new items their state; retries and refusals are answered."""
        new = [(work, work.intent) for work in batch if work.intent is not None and work.state is None]
        if not new:
            return
        now, admitted = self._clock(), []
        for (work, intent), record in zip(new, self._store.load_many([intent.key for _, intent in new]), strict=True):
            try:
                work.record = living(intent.session_id, record, now)
                if self._goes_on(work, intent, work.record):
                    admitted.append(work)
            except (OnwardError, MovedError) as error:
                work.settle(error)
        if admitted:
            self._give_states(admitted)

    def _goes_on(self, work: Work, intent: Intent, record: Record) -> bool:
        """Whether the item is to run; a retry is answered. Raises what the client must be told."""
        if record.ref != self._ref:
            raise MovedError
        if intent.request_id and intent.request_id == record.request_id:
            if intent.digest != record.request_digest:
                raise RequestReusedError(intent.request_id)
            work.settle(Done(np.frombuffer(record.answer, self._model.output_dtype), None, record))
            return False
        if intent.expected_step is not None and intent.expected_step != record.step:
            raise StepConflictError(intent.session_id, intent.expected_step, record.step)
        return True

    def _give_states(self, works: Sequence[Work]) -> None:
        records = [work.record for work in works if work.record is not None]
        try:
            states = self._model.layout.stack([record.state for record in records])
        except StateError:
            for work, record in zip(works, records, strict=True):
                try:
                    work.state = state_of(self._model, record)
                except DamagedRecordError as error:
                    work.settle(error)
        else:
            for row, work in enumerate(works):
                work.state = states[row : row + 1]

    def _compute(self, rows: Sequence[Work]) -> None:
        taken = [work.take() for work in rows]
        sizes = [len(steps) for steps in taken]
        longest = max(sizes)
        if min(sizes) == longest:
            inputs = np.concatenate(taken).reshape(len(rows), longest, -1)
        else:
            inputs = np.zeros((len(rows), longest, len(self._model.features)), np.float32)
            for row, steps in enumerate(taken):
                inputs[row, : len(steps)] = steps
        state = np.concatenate([work.state for work in rows if work.state is not None])
        lengths = np.array(sizes, np.int32)
        seconds = self._cost.call_s(len(rows), longest)
        outputs, after = cost.run(lambda: self._called(inputs, lengths, state), seconds)
        sound = finite(outputs) and finite(after)
        for row, work in enumerate(rows):
            own, kept = outputs[row, : sizes[row]], after[row : row + 1]
            if sound or (finite(own) and finite(kept)):
                work.advance(own, kept)
            else:
                work.settle(NotFiniteError())

    def _called(self, inputs: NDArray[np.float32], lengths: NDArray[np.int32], state: State) -> tuple[Outputs, State]:
        if not self._alone:
            return self._model.run(inputs, lengths, state)
        parts = [self._model.run_row(inputs[row], state[row : row + 1]) for row in range(len(inputs))]
        return np.stack([outputs for outputs, _ in parts]), np.concatenate([after for _, after in parts])

    def _commit(self, rows: Sequence[Work]) -> None:
        sessions: list[tuple[Work, Outputs, Change]] = []
        now = self._clock()
        for work in rows:
            if not work.finished or work.outcome is not None:
                continue
            outputs = work.all_outputs()
            if work.intent is None:
                work.settle(Done(outputs, work.state, None))
            else:
                sessions.append((work, outputs, self._change(work, work.intent, outputs, now)))
        if not sessions:
            return
        committed = self._store.commit_many([change for _, _, change in sessions])
        for (work, outputs, change), done in zip(sessions, committed, strict=True):
            if done:
                work.settle(Done(outputs, work.state, change.record))
            else:  # another process was faster: from its record on, anew
                work.restart()

    def _change(self, work: Work, intent: Intent, outputs: Outputs, now: float) -> Change:
        before = work.record
        assert before is not None
        assert work.state is not None
        record = Record(
            revision=before.revision + 1,
            tenant=before.tenant,
            ref=before.ref,
            step=before.step + len(outputs),
            created_at=before.created_at,
            last_step_at=now,
            ttl_s=before.ttl_s,
            expires_at=now + before.ttl_s,
            state=self._model.layout.to_bytes(work.state[0]),
            surprise=before.surprise.after(surprises(self._model, outputs)),
            request_id=intent.request_id,
            request_digest=intent.digest,
            answer=outputs.tobytes() if intent.request_id else b"",
        )
        return Change(intent.key, before.revision, record)


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
    return [] if name is None else np.asarray(outputs[name], np.float64).tolist()


def finite(rows: Outputs | State) -> bool:
    """Whether every number in structured rows is finite."""
    return all(bool(np.isfinite(rows[name]).all()) for name in rows.dtype.names or ())
