"""GET /v1/sessions/{id}/stream: a session's steps over a WebSocket, a message in, a message out, in order.

Owns what messages mean. A text is a step as it would be posted, answered as that would be, and with its `request_id`.
Bytes are a number, 0 or one that makes a retry safe, and the values of one or more steps; what comes back is the step
that was reached and the numbers that a text would say of each. Problems are texts in either case.
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
from onward.service.engine.batching.work_item import StepRequest
from onward.service.engine.engine import Engine
from onward.service.engine.steps import StepResult, is_retryable
from onward.service.errors import Fault
from onward.service.http import problems, steps
from onward.service.http.connection import HasLeft
from onward.service.http.operations import Operation
from onward.service.http.problems import HTTP_KINDS, RequestError
from onward.service.http.reply import Empty, encode
from onward.service.http.step_encoding import written
from onward.service.http.steps import TENANT, checked
from onward.service.websocket.framing import Frames, Message

_NUMBER = struct.Struct("<Q")
MOST_NAMED = 65_536
"""A longer text that is no request is not read again for its `request_id`: that could cost more than to refuse it."""


class Conversation:
    """What a stream says of its session."""

    def __init__(self, engine: Engine, session_id: str, model: str = "") -> None:
        """model: the first step creates the session on it where there is none; empty: the session must exist."""
        self._engine, self._session_id, self._model = engine, session_id, model

    def answers(self, messages: Sequence[Message], has_left: HasLeft | None = None) -> tuple[list[Message], bool]:
        """To each its own, in their order; what has come together advances the session in one go.

        And whether the stream goes on: not where one could not be done now. It is the last that is told, why, so that
        those after it do not overtake it.
        """
        reads = [self._read(message) for message in messages]
        asked = [read for read in reads if isinstance(read, StepRequest)]
        outcomes = self._engine.steps.step_in_order(TENANT, asked, has_left=has_left)
        if not all(isinstance(outcome, Exception) for outcome in outcomes):
            self._model = ""  # a session that ends during the stream is not begun anew in silence
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
        """What a message asks for, or the problem that answers one that is no request.

        The problem is encoded at once: pydantic's error would hold many times the memory of its message.
        """
        data, is_text = message
        try:
            if is_text:
                return steps.asked(self._session_id, data, self._engine.limits, self._model)
            number, values = data[: _NUMBER.size], data[_NUMBER.size :]
            name = f"#{_NUMBER.unpack(number)[0]}" if any(number) else ""
            return StepRequest(self._session_id, values, None, name, self._model)
        except struct.error:
            return self._problem(RequestError(HTTP_KINDS[400], f"bytes begin with a number of {_NUMBER.size} bytes"))
        except Exception as error:  # noqa: BLE001  (whatever it is, it is this message's alone)
            return self._problem(error, _request_id(data))

    def _answer(self, asked: StepRequest, outcome: StepResult | Exception, *, is_text: bool) -> Message:
        if isinstance(outcome, Exception):
            return self._problem(outcome, asked.request_id), True
        if is_text:
            return _with_request_id(written(outcome), asked.request_id), True
        return _NUMBER.pack(outcome.step) + _values(outcome), False

    def _problem(self, error: Exception, request_id: str = "") -> bytes:
        reply = problems.of(error, "GET", f"/v1/sessions/{self._session_id}/stream")
        return _with_request_id(reply.body, request_id)


def _with_request_id(document: bytes, request_id: str) -> bytes:
    """A JSON object with what the client can tell the answer by, where it gave its message a name."""
    return b'%b,"request_id":%b}' % (document[:-1], encode(request_id)) if request_id else document


def _request_id(data: bytes) -> str:
    """The name that a text has which is no request."""
    content = steps.loaded(data) if len(data) <= MOST_NAMED else None
    name = content.get("request_id") if isinstance(content, dict) else None
    return name if isinstance(name, str) else ""


def _values(answer: StepResult) -> bytes:
    """float32 (steps, values): the head's outputs, then the surprise and what else the answer has."""
    head, told = answer.model.manifest.head, answer.outputs.dtype.names or ()
    names = [*head.outputs, *(name for name in (head.surprise, *SCORING_OUTPUTS) if name in told)]
    columns = [answer.outputs[name].reshape(len(answer.outputs), -1) for name in names]
    return np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind").tobytes()


def stream(engine: Engine, session_id: str, model: str = "") -> Response:
    """Takes the connection over, once gunicorn has sent the answer. model: as of `Conversation`."""
    engine.steps.current_step(TENANT, checked(session_id), model=model)
    connection = request.environ.get("gunicorn.socket")
    if not hasattr(connection, "take_over"):
        raise RequestError(problems.NO_STREAM, "this connection cannot be taken over; end TLS in front of the service")
    assert connection is not None
    own = [Origin(f"{scheme}://{request.host}") for scheme in ("http", "https")]
    protocol = ServerProtocol(state=State.OPEN, origins=[None, *own])
    answer = protocol.accept(Request(request.full_path, Headers(request.headers.items()), request.method, "HTTP/1.1"))
    if answer.status_code != 101:
        raise _refused(answer.status_code, str(protocol.handshake_exc))
    connection.take_over(Frames(request.max_content_length or 2**63), Conversation(engine, session_id, model))
    names = ("Upgrade", "Connection", "Sec-WebSocket-Accept")
    return Empty(status=101, headers=[(name, answer.headers[name]) for name in names])


def _refused(status: int, why: str) -> RequestError:
    if status == 403:
        return RequestError(problems.ORIGIN, f"{why}; a page of another site may not use this service")
    if status == 426:
        detail = "streams are WebSockets: send the handshake of RFC 6455, or POST to .../steps"
        return RequestError(problems.UPGRADE, detail, [Fault("Upgrade", "expected websocket")])
    return RequestError(HTTP_KINDS[400], f"not a WebSocket handshake: {why}")


OPERATIONS = (
    Operation(
        "stream_or_create_session", "GET", "/v1/models/{model}/sessions/{session_id}/stream",
        stream, "A WebSocket as of the operation below; the first step creates the session", None,
        status=101, problems=(400, 403, 404, 409, 410, 422, 426, 500, 501, 503),
    ),
    Operation(
        "stream_session", "GET", "/v1/sessions/{session_id}/stream",
        stream, "A WebSocket: a step a message, answered in order", None,
        status=101, problems=(400, 403, 404, 410, 422, 426, 500, 501, 503),
    ),
)  # fmt: skip
