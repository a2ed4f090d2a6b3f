"""Steps of sessions: one step, several of one session in order, and steps of many sessions in one call.

Owns which requests share a row of a batch, and which result each request gets. Whether a request is a retry, out of
step or new is decided by the batch's admission.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence

from onward.model.inputs import Inputs
from onward.model.listed_rankings import require_listed
from onward.model.runner import StepModel
from onward.service.engine.batching.admission import ModelChangedError
from onward.service.engine.batching.batch_row import (
    BatchRow,
    Caller,
    PendingCall,
    PendingRequest,
    StepRequest,
    StepResult,
)
from onward.service.engine.batching.batcher import Batchers
from onward.service.engine.event_loop import in_loop_turns
from onward.service.engine.input_parsing import LONG, InputParser, as_service_errors
from onward.service.engine.models import Models
from onward.service.engine.sessions.lifecycle import SessionLifecycle
from onward.service.errors import (
    Fault,
    InvalidInputError,
    NotFiniteError,
    OverloadedError,
    ServiceError,
    SessionEndedError,
    SessionExistsError,
    UnavailableError,
    UnknownModelError,
    UnknownSessionError,
    without_frames,
)
from onward.service.store import record as records
from onward.service.store.idempotency import MAX_REQUESTS
from onward.service.store.record import Record

CACHED_SESSIONS = 100_000
"""The number of sessions whose models a process remembers, so that a step finds its batcher without the record."""


class Steps:
    def __init__(
        self,
        sessions: SessionLifecycle,
        models: Models,
        parser: InputParser,
        batchers: Batchers,
        first_record: Callable[[str, StepModel], Record],
    ) -> None:
        """first_record: returns what a new session of a tenant on a model begins with, without its times."""
        self._sessions, self._models, self._parser, self._batchers = sessions, models, parser, batchers
        self._first_record = first_record
        self._session_models: OrderedDict[bytes, StepModel] = OrderedDict()
        self._most_unmeasured = min(LONG, parser.max_steps)
        self.now, self.submit = batchers.now, batchers.submit
        """The clock that times calls; and what submits a row of `row`, whose caller then waits for it to be settled."""

    def step(
        self,
        tenant: str,
        session_id: str,
        inputs: Inputs,
        *,
        step: int | None = None,
        request_id: str = "",
        model: str = "",
        listed_only: bool = False,
        has_left: Callable[[], bool] | None = None,
    ) -> StepResult:
        """Advances the session by all of `inputs`, or not at all.

        `step` is the step that the client believes the session has reached; a retry with the same `request_id` gets the
        result of the first try. If a `model` is named and there is no live session, the step creates it on the newest
        version of that model, in the same commit, unless `step` shows that the client expects an older session.
        Raises as `SessionLifecycle.get` does, UnknownModelError, SessionExistsError if the session runs on another
        model, and StepConflictError, LateRequestError, RequestReusedError, ModelGoneError, InvalidInputError,
        NotFiniteError, OverloadedError, DeadlineError, AbandonedError.
        """
        request = StepRequest(session_id, inputs, step, request_id, model, listed_only)
        (result,) = self.step_in_order(tenant, (request,), has_left=has_left)
        if isinstance(result, Exception):
            try:
                raise result
            finally:
                del result  # this frame is in the error's traceback: the two would form a reference cycle
        return result

    def row(self, tenant: str, request: StepRequest, call: Caller) -> BatchRow | None:
        """Returns the row of a request, to be submitted by a caller that cannot wait.

        Returns None if the store must be asked first which model the session runs on: then `step` is for the request,
        as it is for one of listed categories only.
        Raises InvalidInputError.
        """
        key = records.key(tenant, request.session_id)
        model = self._session_models.get(key)
        if model is None or (request.model and request.model != model.manifest.name):
            return None
        length, array = len(request.inputs), None
        if length > self._most_unmeasured or type(request.inputs) is not list:
            length, array = self._parser.measure(model, request.inputs)
        first_record = self._first_record_on(tenant, request.model) if request.model else None
        return self._batchers.session_row(model, (PendingRequest(request, length, array),), call, key, first_record)

    def has_model_changed(self, row: BatchRow) -> bool:
        """Returns whether a settled row must be made anew, by `step`, as its session has moved to another bundle."""
        if not isinstance(row.outcome, ModelChangedError):
            return False
        self._session_models.pop(row.key, None)
        return True

    def step_in_order(
        self, tenant: str, requests: Sequence[StepRequest], *, has_left: Callable[[], bool] | None = None
    ) -> list[StepResult | Exception]:
        """Returns the results of requests of one session, in order, as `step` would answer them one after another.

        Requests that fit in one row are one commit. If a request is refused, the next one that names no `step` goes on
        from where the session is. If a request fails with a retryable error, the later ones are skipped, so that none
        of them is applied out of order: the results end with that error.
        """
        session = _SessionRequests(list(requests))
        if not requests:
            return session.results
        try:
            self._run(tenant, [session], self._batchers.call(1, has_left=has_left))
        except OverloadedError as error:
            session.add_result(error)
        return session.results

    def step_many(
        self, tenant: str, requests: Sequence[StepRequest], *, has_left: Callable[[], bool] | None = None
    ) -> list[StepResult | Exception]:
        """Returns the result of each request. The requests of one session are applied in order, as by `step_in_order`;
        those that follow a retryable error of their session get the same error.

        Raises OverloadedError if there is no room for all, and InvalidInputError if the requests have more steps
        together than a call may, or if more of a session's requests have a request id than are remembered: were they
        all sent again, the first of them would be applied again.
        """
        if len(requests) > MAX_REQUESTS:
            _check_retries(requests)
        steps = sum(len(request.inputs) for request in requests)
        self._parser.check_total(steps, "inputs", f"those of {len(requests)} items")
        if len({request.session_id for request in requests}) == len(requests):
            return self._step_each(tenant, requests, self._batchers.call(len(requests), has_left=has_left))
        sessions: dict[str, _SessionRequests] = {}
        session_of_request = []
        for request in in_loop_turns(requests):
            session = sessions.get(request.session_id)
            if session is None:
                session = sessions[request.session_id] = _SessionRequests([])
            session.requests.append(request)
            session_of_request.append(session)
        self._run(tenant, sessions.values(), self._batchers.call(len(sessions), has_left=has_left))
        return [session.next_result() for session in session_of_request]

    def current_step(self, tenant: str, session_id: str, *, step: int | None = None, model: str = "") -> int:
        """Returns the step that the session has reached, 0 if a step that names the model would create it.

        Raises the errors that `step` would raise before it looks at the inputs, except StepConflictError.
        """
        record, _ = self._find(tenant, StepRequest(session_id, [], step, "", model))
        return record.step if record else 0

    def _step_each(
        self, tenant: str, requests: Sequence[StepRequest], call: PendingCall
    ) -> list[StepResult | Exception]:
        """Returns the result of each request, all of different sessions."""
        rows: list[BatchRow] = []
        results: list[StepResult | Exception | None] = []
        for request in in_loop_turns(requests):
            try:
                row = None if request.listed_only else self.row(tenant, request, call)
                rows.append(row or self._row(tenant, (request,), call))
                results.append(None)
            except Exception as error:  # noqa: BLE001  (any error concerns this request alone)
                results.append(without_frames(error))
                call.count_settled(error)
        self._batchers.run(call, rows)
        left = iter(rows)
        for index, result in enumerate(in_loop_turns(results)):
            if result is None:
                row = next(left)
                if self.has_model_changed(row):
                    (results[index],) = self.step_in_order(tenant, [requests[index]], has_left=call.client)
                else:
                    results[index] = row.requests[0].outcome
        return [result for result in results if result is not None]

    def _run(self, tenant: str, sessions: Collection["_SessionRequests"], call: PendingCall) -> None:
        """Runs the requests of all sessions until each has its result, or was skipped after a retryable error.

        Requests that do not fit in a session's row go in another one, which has the deadline of the first call.
        """
        while True:
            started = []
            for session in in_loop_turns(sessions):
                try:
                    started.append((session, self._row(tenant, session.next_requests(), call)))
                except Exception as error:  # noqa: BLE001  (any error concerns the session's next request alone)
                    session.add_result(error)
                    call.count_settled(error)
            self._batchers.run(call, [row for _, row in started])
            for session, row in in_loop_turns(started):
                if not self.has_model_changed(row):
                    session.add_results_of(row)
            sessions = [session for session in sessions if not session.is_finished]
            if not sessions:
                return
            try:
                call = self._batchers.call(len(sessions), has_left=call.client, started_at=call.started_at)
            except OverloadedError as error:
                for session in sessions:
                    session.add_result(error)
                return

    def _row(self, tenant: str, requests: Sequence[StepRequest], call: PendingCall) -> BatchRow:
        """Returns the row for the first of these requests of a session, and for as many more as fit in it and in one
        record.

        Raises the error with which the first is refused.
        """
        key, model = self._key_and_model(tenant, requests[0])
        if requests[0].listed_only:
            with as_service_errors():
                require_listed(model)
        first_record = self._first_record_on(tenant, requests[0].model) if requests[0].model else None
        accepted: list[PendingRequest] = []
        ids: set[str] = set()
        steps = 0
        for request in requests:
            try:
                length, array = self._parser.measure(model, request.inputs)
            except InvalidInputError:
                if accepted:
                    break
                raise
            steps += length
            if accepted and (
                steps > self._parser.max_steps
                or request.request_id in ids
                or (request.model and (first_record is None or request.model != model.manifest.name))
            ):
                break
            if request.request_id:
                ids.add(request.request_id)
            accepted.append(PendingRequest(request, length, array))
        return self._batchers.session_row(model, accepted, call, key, first_record)

    def _key_and_model(self, tenant: str, request: StepRequest) -> tuple[bytes, StepModel]:
        """Returns the session's key and its model, which is cached. Raises as `_find` does."""
        key = records.key(tenant, request.session_id)
        model = self._session_models.get(key)
        if model is None or (request.model and request.model != model.manifest.name):
            _, model = self._find(tenant, request)
            self._session_models[key] = model
            if len(self._session_models) > CACHED_SESSIONS:
                self._session_models.popitem(last=False)
        return key, model

    def _find(self, tenant: str, request: StepRequest) -> tuple[Record | None, StepModel]:
        """Returns the live session's record and model; None and the model to create it on if there is none.

        Raises as `SessionLifecycle.get` does, ModelGoneError, UnknownModelError, and SessionExistsError if the session
        runs on another model than the request names.
        """
        try:
            record = self._sessions.get(tenant, request.session_id).record
        except (UnknownSessionError, SessionEndedError):
            if not request.model or request.step:
                raise
            return None, self._models.named(request.model)
        if request.model not in ("", record.ref.model):
            raise SessionExistsError(request.session_id, f"runs on the model {record.ref.model!r}")
        return record, self._models.of(record)

    def _first_record_on(self, tenant: str, name: str) -> Record | None:
        """Returns what a new session on that model begins with; None if only existing sessions can run on it, because
        it is not served any more.
        """
        try:
            return self._first_record(tenant, self._models.named(name))
        except UnknownModelError:
            return None


class _SessionRequests:
    """The requests of one session in a call, and the results so far."""

    __slots__ = ("_read", "_single_until", "is_finished", "requests", "results")

    def __init__(self, requests: list[StepRequest]) -> None:
        self.requests = requests
        self.results: list[StepResult | Exception] = []
        self.is_finished = False
        self._single_until = 0  # requests before this index go in a row each
        self._read = 0  # the number of results that `next_result` has returned

    def next_requests(self) -> Sequence[StepRequest]:
        """Returns the requests that may go in the next row."""
        start = len(self.results)
        return self.requests[start : start + (1 if start < self._single_until else MAX_REQUESTS)]

    def next_result(self) -> StepResult | Exception:
        """Returns the next request's result. It is the last one again for requests skipped after a retryable error."""
        self._read += 1
        return self.results[min(self._read, len(self.results)) - 1]

    def add_result(self, result: StepResult | Exception) -> None:
        self.results.append(without_frames(result) if isinstance(result, Exception) else result)
        self.is_finished = len(self.results) == len(self.requests) or is_retryable(result)

    def add_results_of(self, row: BatchRow) -> None:
        if len(row.requests) > 1 and isinstance(row.outcome, NotFiniteError):
            self._single_until = len(self.results) + len(row.requests)  # a row each shows which request is at fault
            return
        for pending in row.requests:
            assert pending.outcome is not None
            self.add_result(pending.outcome)
            if self.is_finished:
                return


def is_retryable(result: StepResult | Exception) -> bool:
    """Returns whether the result is an error that says nothing against the request, which may be sent again."""
    return isinstance(result, Exception) and (
        isinstance(result, UnavailableError) or not isinstance(result, ServiceError)
    )


def _check_retries(requests: Sequence[StepRequest]) -> None:
    """Raises InvalidInputError if more requests of one session have a request id than are remembered."""
    counts = Counter(request.session_id for request in requests if request.request_id)
    for session_id, count in counts.most_common(1):
        if count > MAX_REQUESTS:
            why = (
                f"{count} of session {session_id!r} have one, and its last {MAX_REQUESTS} are known; send them in parts"
            )
            raise InvalidInputError(Fault("request_id", why))
