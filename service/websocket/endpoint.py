"""GET /v1/sessions/{id}/stream: a session's steps over a WebSocket, one response a message, in order.

Owns the meaning of messages. A text is the body of a step request; its response is that of the request, with its
`request_id`. A binary message is a number, 0 or one that makes a retry safe, and the values of one or more steps; its
response is the step reached and the numbers that a text response has for each step. Problems are always texts.
"""

import struct
from collections.abc import Sequence

import numpy as np
from flask import Response, request
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Origin

from onward.model.scoring.layout import SCORING_OUTPUTS
from onward.service.engine.batching.batch_row import BatchRow, Caller, StandaloneResult, StepRequest, StepResult
from onward.service.engine.engine import Engine
from onward.service.engine.steps import is_retryable
from onward.service.errors import Fault
from onward.service.http import problems, step_requests
from onward.service.http.connection import HasLeft
from onward.service.http.json_parsing import PIECE
from onward.service.http.operations import LISTED_ONLY, Operation, wants_listed_only
from onward.service.http.problems import HTTP_PROBLEM_TYPES, RequestError
from onward.service.http.reply import Empty, encode
from onward.service.http.session_ids import TENANT, checked
from onward.service.http.step_encoding import encode_step
from onward.service.http.step_requests import plain_step
from onward.service.websocket.framing import Frames, Message

_NUMBER = struct.Struct("<Q")
MOST_NAMED = 65_536
"""The longest invalid text that is parsed again for its `request_id`: more could cost more than its refusal."""


class SessionProtocol:
    """The message protocol of a session on one WebSocket."""

    def __init__(self, engine: Engine, session_id: str, model: str = "", *, listed_only: bool = False) -> None:
        """model: the first step creates a missing session on it; empty: the session must exist.

        listed_only: rankings have listed categories only.
        """
        self._engine, self._session_id, self._model = engine, session_id, model
        self._listed_only = listed_only

    def submit(self, message: Message, call: Caller) -> bool:
        """Submits the step of a short message in the plain form; returns False if `answers` is for the message."""
        data, is_text = message
        if self._listed_only:
            return False
        if is_text:
            request = plain_step(self._session_id, data, self._model)
        else:
            request = self._packed(data) if _NUMBER.size <= len(data) <= PIECE else None
        if request is None:
            return False
        steps, call.abandoned = self._engine.steps, False
        call.started_at = steps.now()
        try:
            if (row := steps.row(TENANT, request, call)) is None:
                return False
            steps.submit(row)
        except Exception:  # noqa: BLE001  (`answers` makes a problem of the same error)
            return False
        return True

    def answer_to(self, row: BatchRow, *, is_text: bool) -> tuple[Message, bool] | None:
        """The response to a message that was submitted, and whether the stream continues; None if `answers` is for it
        after all.
        """
        outcome = row.outcome
        if isinstance(outcome, StepResult):
            self._model = ""
        elif self._engine.steps.has_model_changed(row):
            return None
        assert not isinstance(outcome, StandaloneResult | None)
        return self._answer(row.requests[0].request, outcome, is_text=is_text), not is_retryable(outcome)

    def answers(self, messages: Sequence[Message], has_left: HasLeft | None = None) -> tuple[list[Message], bool]:
        """The responses in the order of the messages, and whether the stream continues. One call advances all of them.

        If a message fails with a retryable error, its problem is the last response and the stream ends, so that no
        later message is applied out of order.
        """
        reads = [self._read(message) for message in messages]
        asked = [read for read in reads if isinstance(read, StepRequest)]
        for step_request in asked:
            step_request.listed_only = self._listed_only
        outcomes = self._engine.steps.step_in_order(TENANT, asked, has_left=has_left)
        if not all(isinstance(outcome, Exception) for outcome in outcomes):
            self._model = ""  # a session that ends during the stream is not silently created again
        held_up = outcomes[-1] if outcomes and is_retryable(outcomes[-1]) else None
        answers, left = list[Message](), iter(outcomes)
        for (_, is_text), read in zip(messages, reads, strict=True):
            if isinstance(read, bytes):
                answers.append((read, True))
                continue
            outcome = next(left)
            answers.append(self._answer(read, outcome, is_text=is_text))
            if outcome is held_up:
                break
        return answers, held_up is None

    def _read(self, message: Message) -> StepRequest | bytes:
        """The step request of a message, or the encoded problem if the message is invalid.

        The problem is encoded at once, because pydantic's error takes many times the memory of the message.
        """
        data, is_text = message
        try:
            if is_text:
                return step_requests.parse_step(self._session_id, data, self._engine.limits, self._model)
            return self._packed(data)
        except struct.error:
            return self._problem(
                RequestError(
                    HTTP_PROBLEM_TYPES[400], f"a binary message must begin with a number of {_NUMBER.size} bytes"
                )
            )
        except Exception as error:  # noqa: BLE001  (any error is the problem of this message alone)
            return self._problem(error, _request_id(data))

    def _packed(self, data: bytes) -> StepRequest:
        """The step request of a binary message. Raises struct.error."""
        number, values = data[: _NUMBER.size], data[_NUMBER.size :]
        name = f"#{_NUMBER.unpack(number)[0]}" if any(number) else ""
        return StepRequest(self._session_id, values, None, name, self._model)

    def _answer(self, asked: StepRequest, outcome: StepResult | Exception, *, is_text: bool) -> Message:
        if isinstance(outcome, Exception):
            return self._problem(outcome, asked.request_id), True
        if self._listed_only:
            outcome = outcome.listed()
        if is_text:
            return _with_request_id(encode_step(outcome), asked.request_id), True
        return _NUMBER.pack(outcome.step) + _values(outcome), False

    def _problem(self, error: Exception, request_id: str = "") -> bytes:
        reply = problems.of(error, "GET", f"/v1/sessions/{self._session_id}/stream")
        return _with_request_id(reply.body, request_id)


def _with_request_id(document: bytes, request_id: str) -> bytes:
    """The JSON object with the `request_id` of its message added, if the message has one."""
    return b'%b,"request_id":%b}' % (document[:-1], encode(request_id)) if request_id else document


def _request_id(data: bytes) -> str:
    """The `request_id` of an invalid text; empty if it has none."""
    content = step_requests.json_or_none(data) if len(data) <= MOST_NAMED else None
    name = content.get("request_id") if isinstance(content, dict) else None
    return name if isinstance(name, str) else ""


def _values(answer: StepResult) -> bytes:
    """The bytes of numbers (steps, values): the head's outputs, then the surprise and the session's scores."""
    head, available = answer.model.manifest.head, answer.outputs.dtype.names or ()
    names = [*head.outputs, *(name for name in (head.surprise, *SCORING_OUTPUTS) if name in available)]
    columns = [answer.outputs[name].reshape(len(answer.outputs), -1) for name in names]
    return np.concatenate(columns, axis=1, dtype=answer.model.input_dtype, casting="same_kind").tobytes()


def stream(engine: Engine, session_id: str, model: str = "") -> Response:
    """The handshake; the WebSocket takes the connection over after it. model: see `SessionProtocol`."""
    engine.steps.current_step(TENANT, checked(session_id), model=model)
    protocol_of_session = SessionProtocol(engine, session_id, model, listed_only=wants_listed_only())
    connection = request.environ.get("gunicorn.socket")
    if not hasattr(connection, "take_over"):
        raise RequestError(problems.NO_STREAM, "this connection cannot be taken over; end TLS in front of the service")
    assert connection is not None
    own = [Origin(f"{scheme}://{request.host}") for scheme in ("http", "https")]
    protocol = ServerProtocol(state=State.OPEN, origins=[None, *own])
    answer = protocol.accept(Request(request.full_path, Headers(request.headers.items()), request.method, "HTTP/1.1"))
    if answer.status_code != 101:
        raise _refused(answer.status_code, str(protocol.handshake_exc))
    connection.take_over(Frames(request.max_content_length or 2**63), protocol_of_session)
    names = ("Upgrade", "Connection", "Sec-WebSocket-Accept")
    return Empty(status=101, headers=[(name, answer.headers[name]) for name in names])


def _refused(status: int, why: str) -> RequestError:
    if status == 403:
        return RequestError(problems.ORIGIN, f"{why}; pages of other sites may not use this service")
    if status == 426:
        detail = "streams are WebSockets: send the handshake of RFC 6455, or POST to .../steps"
        return RequestError(problems.UPGRADE, detail, [Fault("Upgrade", "expected websocket")])
    return RequestError(HTTP_PROBLEM_TYPES[400], f"not a WebSocket handshake: {why}")


OPERATIONS = (
    Operation(
        "stream_or_create_session", "GET", "/v1/models/{model}/sessions/{session_id}/stream",
        stream, "A WebSocket as of the operation below; the first step creates the session", None,
        status=101, problems=(400, 403, 404, 409, 410, 422, 426, 500, 501, 503), query=(LISTED_ONLY,),
    ),
    Operation(
        "stream_session", "GET", "/v1/sessions/{session_id}/stream",
        stream, "A WebSocket: a step a message, answered in order", None,
        status=101, problems=(400, 403, 404, 410, 422, 426, 500, 501, 503), query=(LISTED_ONLY,),
    ),
)  # fmt: skip
