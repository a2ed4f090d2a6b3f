"""Admission of rows to a batch: exactly-once is decided here and nowhere else.

Owns whether a request is a retry, out of step, or new, against the record that the commit is compared with.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from onward.model.runner import StepModel
from onward.model.scoring.accuracy import Accuracy
from onward.service.engine.batching.batch_row import BatchRow, PendingRequest, StepResult
from onward.service.engine.input_parsing import parse_alone, parse_batch
from onward.service.engine.observer import Observer
from onward.service.engine.sessions.lifecycle import live_record
from onward.service.errors import (
    DamagedRecordError,
    LateRequestError,
    RequestReusedError,
    ServiceError,
    SessionEndedError,
    StepConflictError,
    UnknownSessionError,
    without_frames,
)
from onward.service.store import idempotency
from onward.service.store.contract import Loaded, Store
from onward.service.store.record import EXPIRES_AT, HEAD, REVISION_FIELD, VERSION, Record, Tombstone

log = logging.getLogger(__name__)


class ModelChangedError(Exception):
    """The session runs on another bundle than the row was queued for: it was ended and created anew meanwhile."""


class Admission:
    """Admits rows of sessions of one model."""

    def __init__(
        self,
        model: StepModel,
        store: Store,
        clock: Callable[[], float],
        accuracy: Accuracy,
        plain_sizes: tuple[int, int] | None,
        observer: Observer | None = None,
    ) -> None:
        """`clock` gives seconds since 1970 UTC, for the times in records.

        plain_sizes: the bytes of the statistics and the state of records that fit columns; None if none do.
        """
        self._model, self._store, self._clock = model, store, clock
        self._accuracy, self._plain_sizes, self._observer = accuracy, plain_sizes, observer
        self._version, self._digest = model.manifest.version, model.digest
        self._name = model.manifest.name.encode()
        self._state_bytes = model.layout.dtype.itemsize

    def admit(self, new: Sequence[BatchRow]) -> None:
        """Gives rows with a step to make their record and their inputs as arrays; settles retries and refusals.

        Records may come from a cache. A row with steps to make learns from its commit whether its record was the
        store's latest; what is answered or refused without a commit is decided anew, on a record read from the store.
        """
        unsure = self._load(new, fresh=False)
        if not unsure:
            return
        for row in unsure:
            row.forget_record()
        for row in self._load(unsure, fresh=True):
            outcome = row.requests[-1].outcome
            if row.inputs is None:
                assert outcome is not None
                row.settle(outcome)

    def _load(self, new: Sequence[BatchRow], *, fresh: bool) -> list[BatchRow]:
        """Loads the rows' records, and decides their requests.

        Returns the rows with a request that has its outcome already. fresh: the records are read from the store, not
        from a cache.
        """
        now = self._clock()
        records = self._store.load_many([row.key for row in new], fresh=fresh)
        for row, record in zip(new, records, strict=True):
            row.inputs = None
            try:
                self._accept(row, record, now)
            except Exception as error:  # noqa: BLE001  (any error concerns this row alone)
                self._refuse(row, error)
        to_parse = [
            pending for row in new for pending in row.requests if pending.outcome is None and pending.inputs is None
        ]
        if len(to_parse) == 1:
            parse_alone(self._model, to_parse[0])
        else:
            parse_batch(self._model, to_parse)
        unsure = []
        for row in new:
            pending = row.requests[0]
            if pending.outcome is None and row.is_simple:
                row.inputs = pending.inputs
            elif row.record is None or not self._decide(row, row.record):
                unsure.append(row)
        return unsure

    def _accept(self, row: BatchRow, loaded: Loaded, now: float) -> None:
        """Gives the row the record that it goes on from: the live session's, or that of the session it will create.

        Raises as `live_record` does, ModelChangedError, DamagedRecordError.
        """
        record = loaded if isinstance(loaded, Record) else _first_record(row, loaded, now)
        head = HEAD.unpack_from(record.data)
        if head[EXPIRES_AT] <= now and not row.creates_session:
            record = _first_record(row, loaded, now)
            head = HEAD.unpack_from(record.data)
        version, digest, accuracy_bytes, state_bytes, tenant_bytes, model_bytes, _, history_bytes = head[VERSION:]
        start = HEAD.size + accuracy_bytes + state_bytes + tenant_bytes
        if digest != self._digest or version != self._version or record.data[start : start + model_bytes] != self._name:
            raise ModelChangedError
        row.record, row.head, request = record, head, row.requests[0].request
        if not row.creates_session:
            row.stored_revision = head[REVISION_FIELD]
        is_single = len(row.requests) == 1
        row.is_simple = is_single and request.step is None and not request.request_id and row.overtaken is None
        if (accuracy_bytes, state_bytes) == self._plain_sizes:
            row.is_plain = is_single and row.length == 1 and not history_bytes
        elif state_bytes != self._state_bytes or not self._accuracy.can_read(accuracy_bytes):
            row.record = None
            raise DamagedRecordError("its state is not its model's")

    def _refuse(self, row: BatchRow, error: Exception) -> None:
        if self._observer is not None and isinstance(error, DamagedRecordError):
            self._observer.damaged()
        _log_defect(error)
        for pending in row.requests:
            pending.outcome = without_frames(error)

    def _decide(self, row: BatchRow, record: Record) -> bool:
        """Gives those of the row's requests that have no step to make their outcome. Returns whether none has one."""
        to_run, step, defect = [], record.step, None
        lost = row.overtaken if row.overtaken is not None and _has_lost_steps(record, row.overtaken) else None
        for pending in row.requests:
            try:
                pending.outcome = defect or pending.outcome or self._stored_result(pending, record, step, lost)
            except Exception as error:  # noqa: BLE001  (any error concerns this request alone)
                pending.outcome = without_frames(error)
            if pending.outcome is None:
                to_run.append(pending)
                step += pending.length
            elif isinstance(pending.outcome, Exception) and defect is None and _log_defect(pending.outcome):
                defect = pending.outcome  # later requests of the row get it too, so that none overtakes this one
        if to_run:
            arrays = [pending.inputs for pending in to_run if pending.inputs is not None]
            row.inputs = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            row.length = len(row.inputs)
        return len(to_run) == len(row.requests)

    def _stored_result(
        self, pending: PendingRequest, record: Record, step: int, lost: Record | None
    ) -> StepResult | None:
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
                outputs = self._accuracy.decode_outputs(remembered.answer, pending.length)
                return StepResult(self._model, remembered.step, outputs)
        expected = lost.step if request.step is None and lost is not None else request.step
        if expected is not None and expected != step:
            raise StepConflictError(request.session_id, expected, step)
        return None


def _first_record(row: BatchRow, stored: Loaded, now: float) -> Record:
    """Returns the record of the session that the row will create, as there is no live one.

    Raises as `live_record` does if it may not create one.
    """
    request = row.requests[0].request
    row.stored_revision = stored.revision if isinstance(stored, (Record, Tombstone)) else None
    try:
        return live_record(request.session_id, stored, now)
    except (UnknownSessionError, SessionEndedError):
        if row.first_record is None or request.step:
            raise
    row.creates_session = True
    return row.first_record.replace(created_at=now, last_step_at=now)


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
