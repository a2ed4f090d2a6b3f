"""Steps of sessions: one, many sessions' in one call, and one session's in a row.

Owns what becomes one row of a batch, and who is told what. Whether a request is a retry, out of step or new is the
executor's.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from model.runner import Outputs, StepModel
from service.engine.dispatch import Dispatch
from service.engine.executor import MovedError
from service.engine.inputs import Inputs, Intake
from service.engine.lives import Lives
from service.engine.models import Models
from service.engine.work import Asked, Call, Request, Work
from service.errors import Fault, InvalidInputError, NotFiniteError, OnwardError, UnavailableError
from service.sessions import record as records
from service.sessions.requests import REMEMBERED

PLACES = 100_000
"""How many sessions' models a process remembers, so that a step need not read its record to find its queue."""


class Answer(NamedTuple):
    """What a step or a seed says: outputs (steps,) of the model's output dtype, and the step reached."""

    model: StepModel
    step: int
    outputs: Outputs


class Steps:
    def __init__(self, lives: Lives, models: Models, intake: Intake, dispatch: Dispatch) -> None:
        self._lives, self._models, self._intake, self._dispatch = lives, models, intake, dispatch
        self._places: OrderedDict[bytes, StepModel] = OrderedDict()

    def one(
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
        (told,) = self.in_order(tenant, (asked,), has_left=has_left)
        if isinstance(told, Exception):
            raise told
        return told

    def many(
        self, tenant: str, many: Sequence[Asked], *, has_left: Callable[[], bool] | None = None
    ) -> list[Answer | Exception]:
        """As `one` would answer each, in the same order; a session's own run one after another, as they are listed.

        Raises OverloadedError where there is no room for all, and InvalidInputError where more of a session's have a
        request id than are remembered: sent again, the first of them would be applied again.
        """
        if len(many) > REMEMBERED:
            _hold_retries(many)
        call = self._dispatch.call(len(many), has_left=has_left)
        begun: list[Work | Exception] = []
        for asked in many:
            try:
                begun.append(self._work(tenant, (asked,), call))
            except Exception as error:  # noqa: BLE001  (whatever it is, it is this item's alone)
                begun.append(error)
                call.settled(error)
        self._dispatch.run(call, [work for work in begun if isinstance(work, Work)])
        return [self._told(tenant, one, has_left) for one in begun]

    def in_order(
        self, tenant: str, many: Sequence[Asked], *, has_left: Callable[[], bool] | None = None
    ) -> list[Answer | Exception]:
        """As `one` would answer each of these of one session, one after another; those that go together are one commit.

        A refused one is passed over: what follows it and names no `step` goes on from what there is. One that could
        not be done now is not: with it ends what is told, so that nothing overtakes it.
        """
        told, alone = list[Answer | Exception](), 0
        while len(told) < len(many) and not (told and holds_up(told[-1])):
            most = 1 if len(told) < alone else REMEMBERED
            try:
                call = self._dispatch.call(1, has_left=has_left)
                work = self._work(tenant, many[len(told) : len(told) + most], call)
                self._dispatch.run(call, [work])
            except Exception as error:  # noqa: BLE001  (whatever it is, it is the next one's)
                told.append(error)
                continue
            if isinstance(work.outcome, MovedError):
                self._places.pop(work.line, None)
            elif len(work.requests) > 1 and isinstance(work.outcome, NotFiniteError):
                alone = len(told) + len(work.requests)  # whose it is, is found one by one
            else:
                for request in work.requests:
                    told.append(_answer(work.model, request))
                    if holds_up(told[-1]):
                        break
        return told

    def _told(self, tenant: str, begun: Work | Exception, has_left: Callable[[], bool] | None) -> Answer | Exception:
        if isinstance(begun, Exception):
            return begun
        if isinstance(begun.outcome, MovedError):
            self._places.pop(begun.line, None)
            return self.in_order(tenant, (begun.requests[0].asked,), has_left=has_left)[0]
        return _answer(begun.model, begun.requests[0])

    def _work(self, tenant: str, many: Sequence[Asked], call: Call) -> Work:
        """The item that does the first of these, and as many more as can be one row and kept in one record.

        Raises what speaks against the first.
        """
        key, model = self._place(tenant, many[0].session_id)
        requests, ids, total = list[Request](), set[str](), 0
        for asked in many:
            try:
                length, array = self._intake.measured(model, asked.inputs)
            except InvalidInputError:
                if requests:
                    break
                raise
            total += length
            if requests and (total > self._intake.max_steps or asked.request_id in ids):
                break
            if asked.request_id:
                ids.add(asked.request_id)
            requests.append(Request(asked, length, array))
        return self._dispatch.session_work(model, requests, call, key)

    def _place(self, tenant: str, session_id: str) -> tuple[bytes, StepModel]:
        """The session's key and its model, remembered. Raises as `Lives.session` does, and ModelGoneError."""
        key = records.key(tenant, session_id)
        model = self._places.get(key)
        if model is None:
            model = self._models.of(self._lives.session(tenant, session_id).record)
            self._places[key] = model
            if len(self._places) > PLACES:
                self._places.popitem(last=False)
        return key, model


def _answer(model: StepModel, request: Request) -> Answer | Exception:
    told = request.outcome
    if isinstance(told, Exception):
        return told
    assert told is not None
    return Answer(model, told.step, told.outputs)


def _hold_retries(many: Sequence[Asked]) -> None:
    named = Counter(asked.session_id for asked in many if asked.request_id)
    for session_id, count in named.most_common(1):
        if count > REMEMBERED:
            why = f"{count} of session {session_id!r} have one, and its last {REMEMBERED} are known; send them in parts"
            raise InvalidInputError(Fault("request_id", why))


def holds_up(told: Answer | Exception) -> bool:
    """Whether it is no answer, and is no refusal of what was asked either."""
    return isinstance(told, Exception) and (isinstance(told, UnavailableError) or not isinstance(told, OnwardError))
