"""Steps over a WebSocket, as a flow: up to 32 unanswered, in order, and none lost or doubled by a broken connection.

Each message carries a request id. The service remembers the responses to a session's last 32 requests, so after a
broken connection all unanswered messages are sent again on the next one, and those that were applied before are
answered from the session's record.

Each message but the first carries the step it is for, so that the messages behind a refused one are refused too. The
first response tells at which step the session is: until then no other message is sent.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import orjson

from onward.client import results
from onward.client.command_flow import Emit, EmittingFlow, NoResponse, Response, Retry, RetryPolicy, failure
from onward.client.inputs import Step, json_step
from onward.client.operations import REMEMBERED, new_id, session_path
from onward.errors import RETRYABLE_STATUSES, InvalidRequest, Problem


class Connect(NamedTuple):
    """The command to open a WebSocket and close any earlier one. Its outcome is None, the Response that refuses the
    WebSocket, or a NoResponse.
    """

    path: str


class Send(NamedTuple):
    """The command to send the text. What becomes of it arrives as Received or Disconnected."""

    text: str


class TakeInput(NamedTuple):
    """The command to take one more input from the caller's iterator. It arrives as InputTaken or InputsEnded."""


class Wait(NamedTuple):
    """The command to wait for the next event: InputTaken, InputsEnded, Received or Disconnected."""


class InputTaken(NamedTuple):
    step: Any


class InputsEnded(NamedTuple):
    """The caller's iterator has ended, or has raised the error."""

    error: Exception | None = None


class Received(NamedTuple):
    text: bytes


class Disconnected(NamedTuple):
    """The connection has ended: it broke, the service stops (1001), or this client read too slowly (4008)."""

    error: Exception


class StepStream:
    """A run over the inputs that a transport takes. `run` emits the Prediction after each of them, in order.

    It connects when there is a message to send, so the service may close a connection that is idle.
    """

    def __init__(self, session_id: str, policy: RetryPolicy, query: Mapping[str, str] | None = None) -> None:
        """query: that of the connection's URL."""
        self._path = session_path(session_id, "/stream") + ("?" + urlencode(query) if query else "")
        self._policy, self._retry = policy, Retry(policy)
        self._unanswered: deque[tuple[str, str]] = deque()  # request ids and messages, the oldest first
        self._taking_input = self._inputs_ended = self._connected = False
        self._step: int | None = None  # the session's step once all messages are answered
        self._error: Exception | None = None

    def run(self) -> EmittingFlow:
        """Raises Problem, UnreachableError, and, once all earlier inputs are answered, the error that ended the inputs:
        of the caller's iterator, or InvalidRequest for an input that cannot be sent.
        """
        while not self._inputs_ended or self._unanswered:
            if self._unanswered and not self._connected:
                yield from self._connect()
            elif not self._taking_input and not self._inputs_ended and len(self._unanswered) < self._most_unanswered:
                self._taking_input = True
                yield TakeInput()
            else:
                yield from self._handle((yield Wait()))
        if self._error is not None:
            raise self._error

    @property
    def _most_unanswered(self) -> int:
        return 1 if self._step is None else REMEMBERED

    def _connect(self) -> EmittingFlow:
        failed: Response | NoResponse | None = yield Connect(self._path)
        if failed is None:
            self._connected = True
            for _, message in self._unanswered:
                yield Send(message)
        elif isinstance(failed, Response) and failed.status not in RETRYABLE_STATUSES:
            raise failure(failed)
        else:
            yield self._retry.pause(failed)

    def _handle(self, event: InputTaken | InputsEnded | Received | Disconnected) -> EmittingFlow:
        match event:
            case InputTaken(step):
                self._taking_input = False
                try:
                    message = self._message(step)
                except InvalidRequest as error:
                    self._inputs_ended, self._error = True, error
                else:
                    if self._connected:
                        yield Send(message)
            case InputsEnded(error):
                self._inputs_ended, self._error = True, error
            case Received(text):
                yield from self._receive(text)
            case Disconnected(error):
                self._connected = False
                if self._unanswered:
                    yield self._retry.pause(NoResponse(error, sent=True))

    def _message(self, step: Step) -> str:
        """Returns the message for the step, and adds it to the unanswered ones.

        Raises InvalidRequest if the step has no JSON form.
        """
        request_id = new_id()
        body = {"inputs": json_step(step), "request_id": request_id} | results.without_none(step=self._step)
        message = orjson.dumps(body).decode()
        self._unanswered.append((request_id, message))
        if self._step is not None:
            self._step += 1
        return message

    def _receive(self, text: bytes) -> EmittingFlow:
        response = orjson.loads(text)
        if "status" not in response:
            if not self._unanswered or response.get("request_id") != self._unanswered[0][0]:
                raise ValueError(f"the response to request {response.get('request_id')!r} came out of order")
            self._unanswered.popleft()
            self._retry = Retry(self._policy)
            self._step = response["step"] if self._step is None else self._step
            yield Emit(results.predictions(response).last)
            return
        problem = Problem.from_document(response)
        if problem.status not in RETRYABLE_STATUSES:
            raise problem
        self._connected = False  # this message and all behind it are sent again on another connection
        yield self._retry.pause(Response(problem.status, {}, text))
