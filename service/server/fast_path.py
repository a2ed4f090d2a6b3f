"""The fast path: ordinary step requests are answered on the connection itself, before WSGI.

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
from typing import Any

import gevent
from gunicorn.http.wsgi import SERVER
from gunicorn.util import http_date
from gunicorn_h1c import ParseError, _parser_fast
from werkzeug.http import HTTP_STATUS_CODES

from onward.service.engine.engine import Engine
from onward.service.http import problems, request_schemas, steps
from onward.service.http.connection import LEAST_WAIT_S, STALLED_S, Pace, deliver, hung_up
from onward.service.http.reply import Reply
from onward.service.server.connection_handoff import HandoffConnection

READ = 65_536
MOST_HEAD = 16_384
"""A longer head is handed to gunicorn, which applies its limits."""
MOST_CACHED_HEADS = 1000

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


class FastPath:
    """The fast path of a worker process, which has one instance."""

    def __init__(self, engine: Engine, cfg: Any, *, most_body: int, alive: Callable[[], bool]) -> None:
        """cfg: gunicorn's configuration. alive: returns whether the worker continues after a request."""
        self._engine, self._most_body, self._alive, self._idle_s = engine, most_body, alive, cfg.keepalive
        self._parse = partial(
            _parser_fast.parse_request,
            limit_request_line=cfg.limit_request_line,
            limit_request_fields=cfg.limit_request_fields,
            limit_request_field_size=cfg.limit_request_field_size,
        )
        self._lengths: dict[bytes, int] = {}
        """Body lengths by the bytes of the headers: most requests of a client have the same headers."""
        self._reading: dict[Any, float] = {}
        """Connections that wait for a request, and since when: `watch` is one clock for all of them."""

    def watch(self) -> None:
        """Ends connections that are idle for longer than gunicorn's keep-alive time; runs for ever."""
        while True:
            gevent.sleep(1)
            before = time.monotonic() - self._idle_s
            for connection in [idle for idle, since in self._reading.items() if since < before]:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)  # its reader sees the end

    def serve(self, connection: Any, data: bytes) -> HandoffConnection | None:
        """Answers step requests until another request comes.

        Returns the connection at that request; None if the connection has ended or stalled.
        """
        connection.settimeout(STALLED_S)
        file = connection.fileno()
        has_left = partial(hung_up, file)
        watcher = gevent.get_hub().loop.io(file, 1)
        try:
            while True:
                data, request = self._head(connection, watcher, data)
                if not data:
                    return None
                if request is None:
                    return HandoffConnection(connection, data, None)
                target, length = self._ordinary(request, data)
                if target is None:
                    return HandoffConnection(connection, data, _whole(request))
                start, end = request.consumed, request.consumed + length
                if len(data) < end and len(data := _read_to(connection, data, end)) < end:
                    return HandoffConnection(
                        connection, data, end, timeout_s=LEAST_WAIT_S
                    )  # it has stopped: Flask says so
                answer = self._answer(target, data[start:end], has_left)
                data = data[end:]
                deliver(connection, answer)
        except OSError:  # the client has disconnected or stalled
            return None
        finally:
            watcher.close()

    def _head(self, connection: Any, watcher: Any, data: bytes) -> tuple[bytes, Any]:
        """The bytes read, and the parsed request at their beginning, None if they are no request.

        The bytes are empty at the end of the connection.
        """
        began = time.monotonic()
        while True:
            if data:
                try:
                    return data, self._parse(data)
                except (
                    _parser_fast.IncompleteError
                ):  # not gunicorn_h1c.IncompleteError: the parser has a class of its own
                    if len(data) > MOST_HEAD:
                        return data, None
                except (ParseError, _parser_fast.ParseError):
                    return data, None
            self._reading[connection] = began
            try:
                gevent.get_hub().wait(watcher)  # a read before the wait would mostly find nothing
                more = connection.recv(READ)
            finally:
                del self._reading[connection]
            if not more:
                return b"", None
            data += more

    def _ordinary(self, request: Any, data: bytes) -> tuple[Any, int]:
        """The matched target and the body's length of an ordinary step request; (None, 0) for any other request."""
        target = _TARGET(request.path)
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

    def _answer(self, target: re.Match[bytes], body: bytes, has_left: Callable[[], bool]) -> bytes:
        model, session = target.groups()
        try:
            reply = steps.reply(
                self._engine, None if session is None else session.decode(), body, has_left, (model or b"").decode()
            )
        except Exception as error:  # noqa: BLE001  (as Flask's error handlers do)
            reply = problems.of(error, "POST", target[0].decode())
        return _written(reply)


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
