"""GET /v1/sessions/{id}/stream: a session's steps over a WebSocket, a message in, a message out, in order.

Owns what messages mean. A text is a step as it would be posted, answered as that would be, and with its `request_id`.
Bytes are a number, 0 or one that makes a retry safe, and the values of one or more steps; what comes back is the step
that was reached and the numbers that a text would say of each. Problems are texts in either case.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from flask import Response, request
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Origin

from model.scoring.figures import ADDED
from service.engine.engine import Engine
from service.engine.steps import Answer, holds_up
from service.engine.work import Asked
from service.errors import Fault
from service.frames import Frames, Message
from service.http import problems, steps
from service.http.connection import HasLeft
from service.http.forms import written
from service.http.operations import Operation
from service.http.problems import HTTP_KINDS, RequestError
from service.http.reply import encode
from service.http.steps import TENANT, checked

_NUMBER = struct.Struct("<Q")


class Conversation:
    """What a stream says of its session."""

    def __init__(self, engine: Engine, session_id: str) -> None:
        self._engine, self._session_id = engine, session_id

    def answers(self, messages: Sequence[Message], has_left: HasLeft | None = None) -> tuple[list[Message], bool]:
        """To each its own, in their order; what has come together advances the session in one go.

        And whether the stream goes on: not where one could not be done now. It is the last that is told, why, so that
        those after it do not overtake it.
        """
        read = [self._read(message) for message in messages]
        asked = [one for one in read if isinstance(one, Asked)]
        answers = self._engine.steps.in_order(TENANT, asked, has_left=has_left)
        held_up = answers[-1] if answers and holds_up(answers[-1]) else None
        said, left = [], iter(answers)
        for message, one in zip(messages, read, strict=True):
            told = next(left) if isinstance(one, Asked) else one
            said.append(self._told(message, one, told))
            if told is held_up:
                break
        return said, held_up is None

    def _read(self, message: Message) -> Asked | Exception:
        data, is_text = message
        try:
            if is_text:
                return steps.asked(self._session_id, data)
            number, values = data[: _NUMBER.size], data[_NUMBER.size :]
            name = f"#{_NUMBER.unpack(number)[0]}" if any(number) else ""
            return Asked(self._session_id, values, None, name)
        except struct.error:
            return RequestError(HTTP_KINDS[400], f"bytes begin with a number of {_NUMBER.size} bytes")
        except Exception as error:  # noqa: BLE001  (whatever it is, it is this message's alone)
            return error

    def _told(self, message: Message, asked: Asked | Exception, told: Answer | Exception) -> Message:
        if isinstance(told, Exception):
            document = orjson.loads(problems.of(told, "GET", f"/v1/sessions/{self._session_id}/stream").body)
            return encode(document | _name(message, asked)), True
        _, is_text = message
        if is_text:
            said, name = written(told), _name(message, asked)
            return (b"%b,%b" % (said[:-1], encode(name)[1:]) if name else said), True
        return _NUMBER.pack(told.step) + _values(told), False


def _name(message: Message, asked: Asked | Exception) -> dict[str, Any]:
    """What the client can tell the answer by, where it gave its message a name."""
    if isinstance(asked, Asked):
        return {"request_id": asked.request_id} if asked.request_id else {}
    data, is_text = message
    content = steps.loaded(data) if is_text else None
    name = content.get("request_id") if isinstance(content, dict) else None
    return {"request_id": name} if isinstance(name, str) else {}


def _values(answer: Answer) -> bytes:
    """float32 (steps, values): the head's outputs, then the surprise and what else the answer has."""
    head, told = answer.model.manifest.head, answer.outputs.dtype.names or ()
    names = [*head.outputs, *(name for name in (head.surprise, *ADDED) if name in told)]
    columns = [answer.outputs[name].reshape(len(answer.outputs), -1) for name in names]
    return np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind").tobytes()


def stream(engine: Engine, session_id: str) -> Response:
    """Takes the connection over, once gunicorn has sent the answer."""
    engine.lives.session(TENANT, checked(session_id))
    connection = request.environ.get("gunicorn.socket")
    if not hasattr(connection, "take_over"):
        raise RequestError(problems.NO_STREAM, "this connection cannot be taken over; end TLS in front of the service")
    assert connection is not None
    own = [Origin(f"{scheme}://{request.host}") for scheme in ("http", "https")]
    protocol = ServerProtocol(
        state=State.OPEN,
        origins=[None, *own],
        max_size=request.max_content_length,
    )
    answer = protocol.accept(Request(request.full_path, Headers(request.headers.items()), request.method, "HTTP/1.1"))
    if answer.status_code != 101:
        raise _refused(answer.status_code, str(protocol.handshake_exc))
    connection.take_over(Frames(protocol), Conversation(engine, session_id))
    names = ("Upgrade", "Connection", "Sec-WebSocket-Accept")
    return Response(status=101, headers=[(name, answer.headers[name]) for name in names])


def _refused(status: int, why: str) -> RequestError:
    if status == 403:
        return RequestError(problems.ORIGIN, f"{why}; a page of another site may not use this service")
    if status == 426:
        detail = "streams are WebSockets: send the handshake of RFC 6455, or POST to .../steps"
        return RequestError(problems.UPGRADE, detail, [Fault("Upgrade", "expected websocket")])
    return RequestError(HTTP_KINDS[400], f"not a WebSocket handshake: {why}")


OPERATIONS = (
    Operation(
        "stream_session", "GET", "/v1/sessions/{session_id}/stream",
        stream, "A WebSocket: a step a message, answered in order", None,
        status=101, problems=(400, 403, 404, 410, 422, 426, 500, 501, 503),
    ),
)  # fmt: skip
