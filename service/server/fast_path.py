"""The fast path: ordinary step requests are answered on the connection itself, before WSGI, and without a greenlet.

It implements as much of HTTP as such a request needs: gunicorn-h1c parses the head, which has a length and nothing
unusual. Any other request is handed to gunicorn with the bytes already read, and Flask answers it. Both give the same
responses, because `onward.service.http.steps` makes both.

A request with a length is handed over alone: when gunicorn tries to read the next one, the fast path continues. A
request without a length (chunked, an upgrade, not HTTP at all) hands over the connection.
"""

import contextlib
import re
import socket
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import gevent
from gunicorn.http.wsgi import SERVER
from gunicorn.util import http_date
from gunicorn_h1c import ParseError, _parser_fast
from werkzeug.http import HTTP_STATUS_CODES

from onward.service.engine.batching.batch_row import BatchRow, StepResult
from onward.service.engine.engine import Engine
from onward.service.http import problems, request_schemas, steps
from onward.service.http.connection import LEAST_WAIT_S, STALLED_S, Pace, deliver
from onward.service.http.loop_connection import READ, LoopConnection
from onward.service.http.reply import JSON, PIECE, Reply
from onward.service.http.session_ids import TENANT
from onward.service.http.step_encoding import encode_step, is_long
from onward.service.http.step_requests import plain_step
from onward.service.server.connection_handoff import HandoffConnection

MOST_HEAD = 16_384
"""A longer head is handed to gunicorn, which applies its limits."""
MOST_CACHED_HEADS, MOST_CACHED_TARGETS = 1000, 10_000

_TARGET = re.compile(
    rb"/v1/(?:(?:models/(%b)/)?sessions/(%b)/)?steps"
    % (request_schemas.MODEL_NAME.encode(), request_schemas.SESSION_ID.encode())
).fullmatch
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch
_HARMLESS = re.compile(
    rb"accept|accept-encoding|accept-language|cache-control|cookie|origin|pragma|priority|referer|sec-fetch-[a-z]+"
    rb"|traceparent|tracestate|user-agent|via|x-forwarded-for|x-real-ip|x-request-id"
).fullmatch
"""Matches the names of headers that the service does not read."""
_READ = {
    b"host": re.compile(rb"[A-Za-z0-9.-]+(?::[0-9]{1,5})?").fullmatch,
    b"content-type": re.compile(rb"application/json(?:; ?charset=utf-8)?", re.IGNORECASE).fullmatch,
    b"content-length": _LENGTH,
    b"connection": re.compile(rb"keep-alive", re.IGNORECASE).fullmatch,
    b"x-forwarded-proto": re.compile(rb"https?").fullmatch,
}
"""Headers that the service reads, and their ordinary values. Any other header or value is unusual."""
_NEEDED = {b"host", b"content-type", b"content-length"}
_TAKES_OVER = {b"transfer-encoding", b"upgrade", b"http2-settings", b"expect"}


class Target(NamedTuple):
    """The target of a step request. session_id: None for many sessions. model: to create the session on, or empty."""

    path: str
    session_id: str | None
    model: str


class _Head(NamedTuple):
    second: int
    data: bytes


class FastPath:
    """The fast path of a worker process, which has one instance."""

    def __init__(self, engine: Engine, cfg: Any, *, most_body: int, alive: Callable[[], bool]) -> None:
        """cfg: gunicorn's configuration. alive: returns whether the worker continues after a request."""
        self.engine = engine
        self._most_body, self._alive, self._idle_s = most_body, alive, cfg.keepalive
        self.parse = partial(
            _parser_fast.parse_request,
            limit_request_line=cfg.limit_request_line,
            limit_request_fields=cfg.limit_request_fields,
            limit_request_field_size=cfg.limit_request_field_size,
        )
        self._lengths: dict[bytes, int] = {}
        """Body lengths by the bytes of the headers: most requests of a client have the same headers."""
        self._targets: dict[bytes, Target] = {}
        """Targets by their paths: most clients step the same sessions again."""
        self._connections: set[_StepConnection] = set()
        self.head = _Head(0, b"")
        """The head of the answers to plain steps of the current second, up to the body's length."""

    def watch(self) -> None:
        """Ends connections that are idle for longer than gunicorn's keep-alive time; runs for ever."""
        while True:
            gevent.sleep(1)
            before = time.monotonic() - self._idle_s
            for connection in list(self._connections):
                connection.end_if_idle(before)

    def serve(self, connection: Any, data: bytes) -> HandoffConnection | None:
        """Answers step requests until another request comes. data: bytes that were already read.

        Returns the connection at that request; None if the connection has ended or stalled.
        """
        connection.settimeout(STALLED_S)
        steps_of = _StepConnection(self, connection)
        self._connections.add(steps_of)
        try:
            return steps_of.run(data)
        except OSError:  # the client has disconnected or stalled
            return None
        finally:
            self._connections.discard(steps_of)

    def ordinary(self, request: Any, data: bytes) -> "tuple[Target | None, int]":
        """The target and the body's length of an ordinary step request; (None, 0) for any other request."""
        path = request.path
        target = self._targets.get(path)
        if target is None:
            target = _target(path)
            if len(self._targets) >= MOST_CACHED_TARGETS:
                self._targets.clear()
            if target is not None:
                self._targets[path] = target
        if target is None or request.method != b"POST" or request.minor_version != 1 or not self._alive():
            return None, 0
        headers = data[data.index(b"\r\n") : request.consumed]
        length = self._lengths.get(headers)
        if length is None:
            length = _length(request.headers)
            if len(self._lengths) >= MOST_CACHED_HEADS:
                self._lengths.clear()
            self._lengths[headers] = length
        return (target, length) if 0 <= length <= self._most_body else (None, 0)


class _StepConnection(LoopConnection[HandoffConnection]):
    """A connection that sends step requests, while the fast path has it.

    What its greenlet does, because it may wait: a body that has not come, a body of many sessions or of a form that the
    schemas read, a session whose model is not known yet, a long answer, a client that reads slowly, and the handoff of
    other requests.
    """

    __slots__ = ("_body", "_data", "_fast_path", "_target")

    def __init__(self, fast_path: FastPath, connection: Any) -> None:
        super().__init__(connection)
        self._fast_path = fast_path
        self._data = b""  # bytes of the next request
        self._target = Target("", None, "")  # of the request that was submitted
        self._body = b""

    def end_if_idle(self, since: float) -> None:
        """Ends the connection if it has waited for the rest of a request since before that time."""
        if self._waits_since is not None and self._waits_since < since:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RD)  # the watcher sees the end

    def _go_on(self) -> None:
        if self._is_over:
            return
        self._waits_since = time.monotonic()
        if self._data:
            self._take(b"")
        else:
            self._watch()

    def _take(self, data: bytes) -> None:
        fast_path = self._fast_path
        if self._data:
            data, self._data = self._data + data, b""
        try:
            request = fast_path.parse(data)
        except _parser_fast.IncompleteError:  # not gunicorn_h1c.IncompleteError: the parser has a class of its own
            if len(data) > MOST_HEAD:
                self._hand_over(data, None)
                return
            self._data = data
            self._watch()
            return
        except (ParseError, _parser_fast.ParseError):
            self._hand_over(data, None)
            return
        target, length = fast_path.ordinary(request, data)
        if target is None:
            self._hand_over(data, _whole(request))
            return
        start, end = request.consumed, request.consumed + length
        if len(data) < end:
            self._give(partial(self._read_rest, target, data, start, end))
            return
        body, self._data = data[start:end], data[end:]
        try:
            self._submit(target, body)
        except Exception as error:  # noqa: BLE001  (as Flask's error handlers do)
            self._write(_written(problems.of(error, "POST", target.path)))

    def _submit(self, target: Target, body: bytes) -> None:
        """Submits a plain step. Raises the error with which it is refused."""
        steps_of = self._fast_path.engine.steps
        if target.session_id is not None:
            request = plain_step(target.session_id, body, target.model)
            if request is not None:
                self.abandoned, self.started_at = False, steps_of.now()
                if (row := steps_of.row(TENANT, request, self)) is not None:
                    steps_of.submit(row)
                    self._waits_since, self._target, self._body = None, target, body
                    return
        self._give(partial(self._answer, target, body))

    def settled(self, row: BatchRow) -> None:
        if self._is_over:
            return
        outcome = row.outcome
        assert isinstance(outcome, (StepResult, Exception))
        if isinstance(outcome, Exception) and self._fast_path.engine.steps.has_model_changed(row):
            self._give(partial(self._answer, self._target, self._body))
            return
        is_short = row.length == 1 and row.model.output_dtype.itemsize <= PIECE
        try:
            if not isinstance(outcome, StepResult):
                answer = _written(problems.of(outcome, "POST", self._target.path))
            elif not is_short and is_long(outcome):
                self._give(partial(self._answer_later, outcome, row.requests[0].request.session_id))
                return
            elif outcome.created:
                answer = _written(steps.reply_to(outcome, row.requests[0].request.session_id))
            else:
                body, second = encode_step(outcome), int(time.time())
                head = self._fast_path.head
                if head.second != second:
                    head = self._fast_path.head = _Head(second, _head(200, second, (), JSON))
                answer = b"%b%d\r\n\r\n%b" % (head.data, len(body), body)
        except Exception as error:  # noqa: BLE001  (the other rows of the batch must be answered)
            answer = _written(problems.of(error, "POST", self._target.path))
        if not self._send(answer):
            return
        if self._is_watching and not self._data:
            self._waits_since = time.monotonic()
        else:
            self._sent()

    def _write(self, answer: bytes) -> None:
        if self._send(answer):
            self._sent()

    def _sent(self) -> None:
        """Waits for the next request, unless it has come with the last one."""
        if self._data:
            self._waits_since = None  # until then nothing more is read
            self._hub.loop.run_callback(self._go_on)
        else:
            self._go_on()

    # The work of the greenlet

    def _answer(self, target: Target, body: bytes) -> None:
        """Answers a request whose answer may take a while."""
        try:
            reply = steps.reply(self._fast_path.engine, target.session_id, body, self.has_left, target.model)
        except Exception as error:  # noqa: BLE001  (as Flask's error handlers do)
            reply = problems.of(error, "POST", target.path)
        self._deliver(_written(reply))

    def _answer_later(self, result: StepResult, session_id: str) -> None:
        """Answers with a result whose encoding takes turns of the event loop."""
        self._deliver(_written(steps.reply_to(result, session_id)))

    def _deliver(self, answer: bytes) -> None:
        deliver(self._connection, answer)

    def _read_rest(self, target: Target, data: bytes, start: int, end: int) -> HandoffConnection | None:
        """Reads the rest of a body, and answers its request."""
        data = _read_to(self._connection, data, end)
        if len(data) < end:  # it has stopped: Flask says so
            return HandoffConnection(self._connection, data, end, timeout_s=LEAST_WAIT_S)
        self._data = data[end:]
        self._answer(target, data[start:end])
        return None

    def _hand_over(self, data: bytes, size: int | None) -> None:
        self._give(lambda: HandoffConnection(self._connection, data, size))


def _target(path: bytes) -> Target | None:
    """The target with this path; None if it is no step's."""
    match = _TARGET(path)
    if match is None:
        return None
    model, session = match.groups()
    return Target(path.decode(), None if session is None else session.decode(), "" if model is None else model.decode())


def _length(headers: tuple[tuple[bytes, bytes], ...]) -> int:
    """The body's length by ordinary headers; -1 if the headers are not ordinary."""
    values = {name.lower(): value for name, value in headers}
    if len(values) < len(headers) or not values.keys() >= _NEEDED:
        return -1
    for name, value in values.items():
        if not (_READ[name](value) if name in _READ else _HARMLESS(name)):
            return -1
    return int(values[b"content-length"])


def _whole(request: Any) -> int | None:
    """The size of the whole request in bytes; None if its head does not determine it."""
    lengths = []
    for name, value in request.headers:
        if name.lower() == b"upgrade" and value.lower() == b"websocket":
            continue
        if name.lower() in _TAKES_OVER or (name.lower() == b"content-length" and not _LENGTH(value)):
            return None
        if name.lower() == b"content-length":
            lengths.append(int(value))
    if request.method == b"CONNECT" or len(lengths) > 1:
        return None
    whole: int = request.consumed + sum(lengths)
    return whole


def _read_to(connection: Any, data: bytes, end: int) -> bytes:
    """`data` and the bytes after it, at least `end` in all; fewer if the client stops or is too slow."""
    parts, size, pace = [data], len(data), Pace()
    with contextlib.suppress(TimeoutError):
        while size < end and (more := connection.recv(max(READ, end - size))):
            parts.append(more)
            size += len(more)
            pace.received(len(more))
            connection.settimeout(pace.timeout_s())
    connection.settimeout(STALLED_S)
    return b"".join(parts)


def _written(reply: Reply) -> bytes:
    """The response as gunicorn would write it for Flask."""
    head = _head(reply.status, int(time.time()), reply.headers, reply.media)
    return b"%b%d\r\n\r\n%b" % (head, len(reply.body), reply.body)


@lru_cache(8)
def _head(status: int, second: int, headers: tuple[tuple[str, str], ...], media: str) -> bytes:
    """The response's head up to the body's length; most heads within a second are the same."""
    first = f"HTTP/1.1 {status} {HTTP_STATUS_CODES[status].upper()}\r\nServer: {SERVER}\r\n"
    more = "".join(f"{name}: {value}\r\n" for name, value in headers)
    last = f"Content-Type: {media}\r\nContent-Length: "
    return f"{first}Date: {http_date(second)}\r\nConnection: keep-alive\r\n{more}{last}".encode()
