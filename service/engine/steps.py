"""Steps of sessions: one, many sessions' in one call, and one session's in a row.

Owns what becomes one row of a batch, and who is told what. Whether a request is a retry, out of step or new is the
executor's.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from onward.model.runner import Outputs, StepModel
from onward.service.engine.batching.batcher import Dispatch
from onward.service.engine.batching.executor import MovedError
from onward.service.engine.batching.work_item import Asked, Call, Request, Work
from onward.service.engine.event_loop import by_turns
from onward.service.engine.input_parsing import Inputs, Intake
from onward.service.engine.models import Models
from onward.service.engine.sessions.lifecycle import Lives
from onward.service.errors import (
    Fault,
    InvalidInputError,
    NotFiniteError,
    OnwardError,
    OverloadedError,
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

PLACES = 100_000
"""How many sessions' models a process remembers, so that a step need not read its record to find its queue."""


class Answer(NamedTuple):
    """What a step or a seed says: outputs (steps,) of the model's output dtype, and the step reached.

    created: whether the step has created its session.
    """

    model: StepModel
    step: int
    outputs: Outputs
    created: bool = False


class Steps:
    def __init__(
        self,
        lives: Lives,
        models: Models,
        intake: Intake,
        dispatch: Dispatch,
        first_record: Callable[[str, StepModel], Record],
    ) -> None:
        """first_record: what a new session of a tenant on a model begins with; its times are not set."""
        self._lives, self._models, self._intake, self._dispatch = lives, models, intake, dispatch
        self._first_record = first_record
        self._places: OrderedDict[bytes, StepModel] = OrderedDict()

    def one(
        self,
        tenant: str,
        session_id: str,
        inputs: Inputs,
        *,
        step: int | None = None,
        request_id: str = "",
        model: str = "",
        has_left: Callable[[], bool] | None = None,
    ) -> Answer:
        """Advances the session by all of `inputs`, or not at all.

        `step` is the step that the client believes the session has reached; a retry with the same `request_id` gets the
        answer that the first got. Where a `model` is named and there is no living session, the step creates it on the
        newest version of that model, in the same commit, unless `step` says that the client believes in an older one.
        Raises as `Lives.session` does, UnknownModelError, SessionExistsError where the session runs on another model,
        and StepConflictError, LateRequestError,
        RequestReusedError, ModelGoneError, InvalidInputError, NotFiniteError, OverloadedError, DeadlineError,
        AbandonedError.
        """
        (told,) = self.in_order(tenant, (Asked(session_id, inputs, step, request_id, model),), has_left=has_left)
        if isinstance(told, Exception):
            try:
                raise told
            finally:
                del told  # this frame is in its traceback
        return told

    def in_order(
        self, tenant: str, many: Sequence[Asked], *, has_left: Callable[[], bool] | None = None
    ) -> list[Answer | Exception]:
        """As `one` would answer each of these of one session, one after another; those that go together are one commit.

        A refused one is passed over: what follows it and names no `step` goes on from what there is. One that could
        not be done now is not: with it ends what is told, so that nothing overtakes it.
        """
        line = _Line(list(many))
        if not many:
            return line.told
        try:
            self._run(tenant, [line], self._dispatch.call(1, has_left=has_left))
        except OverloadedError as error:
            line.tell(error)
        return line.told

    def many(
        self, tenant: str, many: Sequence[Asked], *, has_left: Callable[[], bool] | None = None
    ) -> list[Answer | Exception]:
        """Of any sessions, those of each in order, and as `in_order` tells; what follows one of its session that could
        not be done now is told the same.

        Raises OverloadedError where there is no room for all, and InvalidInputError where they have more steps together
        than a call may, or more of a session's have a request id than are remembered: sent again, the first of them
        would be applied again.
        """
        if len(many) > MAX_REQUESTS:
            _hold_retries(many)
        self._intake.limit(sum(len(asked.inputs) for asked in many), "inputs", f"those of {len(many)} items")
        lines: dict[str, _Line] = {}
        own = []
        for asked in by_turns(many):
            line = lines.get(asked.session_id)
            if line is None:
                line = lines[asked.session_id] = _Line([])
            line.asked.append(asked)
            own.append(line)
        self._run(tenant, lines.values(), self._dispatch.call(len(lines), has_left=has_left))
        return [line.take() for line in own]

    def _run(self, tenant: str, lines: Collection["_Line"], call: Call) -> None:
        """Until all is told, or held up. What cannot be one row goes in another, by the first one's deadline."""
        while True:
            begun = []
            for line in by_turns(lines):
                try:
                    begun.append((line, self._work(tenant, line.next(), call)))
                except Exception as error:  # noqa: BLE001  (whatever it is, it is the next one's alone)
                    line.tell(error)
                    call.settled(error)
            self._dispatch.run(call, [work for _, work in begun])
            for line, work in by_turns(begun):
                if isinstance(work.outcome, MovedError):
                    self._places.pop(work.line, None)
                else:
                    line.take_in(work)
            lines = [line for line in lines if not line.over]
            if not lines:
                return
            try:
                call = self._dispatch.call(len(lines), has_left=call.has_left, since=call.since)
            except OverloadedError as error:
                for line in lines:
                    line.tell(error)
                return

    def _work(self, tenant: str, many: Sequence[Asked], call: Call) -> Work:
        """The item that does the first of these, and as many more as can be one row and kept in one record.

        Raises what speaks against the first.
        """
        key, model = self._place(tenant, many[0])
        first = self._first(tenant, many[0].model) if many[0].model else None
        requests: list[Request] = []
        ids: set[str] = set()
        total = 0
        for asked in many:
            try:
                length, array = self._intake.measured(model, asked.inputs)
            except InvalidInputError:
                if requests:
                    break
                raise
            total += length
            if requests and (
                total > self._intake.max_steps
                or asked.request_id in ids
                or (asked.model and (first is None or asked.model != model.manifest.name))
            ):
                break
            if asked.request_id:
                ids.add(asked.request_id)
            requests.append(Request(asked, length, array))
        return self._dispatch.session_work(model, requests, call, key, first)

    def _place(self, tenant: str, asked: Asked) -> tuple[bytes, StepModel]:
        """The session's key and its model, remembered. Raises as `_found` does."""
        key = records.key(tenant, asked.session_id)
        model = self._places.get(key)
        if model is None or (asked.model and asked.model != model.manifest.name):
            _, model = self._found(tenant, asked)
            self._places[key] = model
            if len(self._places) > PLACES:
                self._places.popitem(last=False)
        return key, model

    def reached(self, tenant: str, session_id: str, *, step: int | None = None, model: str = "") -> int:
        """Returns the step that the session has reached, 0 where a step that names the model would create it.

        Raises what `one` would raise before it looks at the inputs, but for a `step` that is not the session's.
        """
        record, _ = self._found(tenant, Asked(session_id, [], step, "", model))
        return record.step if record else 0

    def _found(self, tenant: str, asked: Asked) -> tuple[Record | None, StepModel]:
        """Returns the living session's record and model; None, and the model to create it on, where there is none.

        Raises as `Lives.session` does, ModelGoneError, UnknownModelError, and SessionExistsError where it runs on
        another model than the one that was named.
        """
        try:
            record = self._lives.session(tenant, asked.session_id).record
        except (UnknownSessionError, SessionEndedError):
            if not asked.model or asked.step:
                raise
            return None, self._models.named(asked.model)
        if asked.model not in ("", record.ref.model):
            raise SessionExistsError(asked.session_id, f"runs on the model {record.ref.model!r}")
        return record, self._models.of(record)

    def _first(self, tenant: str, name: str) -> Record | None:
        """What a new session on that model begins with; None where the model is not served, though a session has it."""
        try:
            return self._first_record(tenant, self._models.named(name))
        except UnknownModelError:
            return None


class _Line:
    """What is asked of one session, and what was told of it so far."""

    __slots__ = ("_alone", "_taken", "asked", "over", "told")

    def __init__(self, asked: list[Asked]) -> None:
        self.asked = asked
        self.told: list[Answer | Exception] = []
        self.over = False
        self._alone = 0  # those before this place go one by one
        self._taken = 0

    def next(self) -> Sequence[Asked]:
        """What may go in one row."""
        start = len(self.told)
        return self.asked[start : start + (1 if start < self._alone else MAX_REQUESTS)]

    def take(self) -> Answer | Exception:
        """What is told to the next: the same as the last where that has held it up."""
        self._taken += 1
        return self.told[min(self._taken, len(self.told)) - 1]

    def tell(self, told: Answer | Exception) -> None:
        self.told.append(without_frames(told) if isinstance(told, Exception) else told)
        self.over = len(self.told) == len(self.asked) or holds_up(told)

    def take_in(self, work: Work) -> None:
        if len(work.requests) > 1 and isinstance(work.outcome, NotFiniteError):
            self._alone = len(self.told) + len(work.requests)  # whose it is, is found one by one
            return
        for request in work.requests:
            outcome = request.outcome
            assert outcome is not None
            if isinstance(outcome, Exception):
                self.tell(outcome)
            else:
                created = work.creates and outcome.step == len(outcome.outputs)
                self.tell(Answer(work.model, outcome.step, outcome.outputs, created))
            if self.over:
                return


def holds_up(told: Answer | Exception) -> bool:
    """Whether it is no answer, and is no refusal of what was asked either."""
    return isinstance(told, Exception) and (isinstance(told, UnavailableError) or not isinstance(told, OnwardError))


def _hold_retries(many: Sequence[Asked]) -> None:
    named = Counter(asked.session_id for asked in many if asked.request_id)
    for session_id, count in named.most_common(1):
        if count > MAX_REQUESTS:
            why = (
                f"{count} of session {session_id!r} have one, and its last {MAX_REQUESTS} are known; send them in parts"
            )
            raise InvalidInputError(Fault("request_id", why))
