"""The step lane: ordinary requests that advance sessions, answered on the connection itself, ahead of WSGI.

Knows HTTP as far as such a request goes: parsed whole by gunicorn-h1c, a length, nothing unusual in its head. Whatever
else comes is handed to gunicorn with the bytes already read, and it and Flask answer. The answers are Flask's, since
`onward.service.http.steps` makes both.

A request with a length is handed over alone: when gunicorn asks for what follows it, the lane goes on. One without
(chunked, an upgrade, no HTTP at all) takes the connection with it.
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
from onward.service.http.connection import NOT_AGAIN_S, STALLED_S, Pace, deliver, hung_up
from onward.service.http.reply import Reply
from onward.service.server.connection_handoff import Handed

READ = 65_536
MOST_HEAD = 16_384
"""A longer head is gunicorn's, which knows the limits."""
MOST_KNOWN = 1000

_TARGET = re.compile(
    rb"/v1/(?:(?:models/(%b)/)?sessions/(%b)/)?steps"
    % (request_schemas.MODEL_NAME.encode(), request_schemas.SESSION_ID.encode())
).fullmatch
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch
_HARMLESS = re.compile(
    rb"accept|accept-encoding|accept-language|cache-control|cookie|origin|pragma|priority|referer|sec-fetch-[a-z]+"
    rb"|traceparent|tracestate|user-agent|via|x-forwarded-for|x-real-ip|x-request-id"
).fullmatch
"""Headers that nothing in the service reads."""
_READ = {
    b"host": re.compile(rb"[A-Za-z0-9.-]+(?::[0-9]{1,5})?").fullmatch,
    b"content-type": re.compile(rb"application/json(?:; ?charset=utf-8)?", re.IGNORECASE).fullmatch,
    b"content-length": _LENGTH,
    b"connection": re.compile(rb"keep-alive", re.IGNORECASE).fullmatch,
    b"x-forwarded-proto": re.compile(rb"https?").fullmatch,
}
"""Headers that matter, and the values that are ordinary. Any other header, or value, is unusual."""
_NEEDED = {b"host", b"content-type", b"content-length"}
_TAKES_OVER = {b"transfer-encoding", b"upgrade", b"http2-settings", b"expect"}


class Lane:
    """One a worker process."""

    def __init__(self, engine: Engine, cfg: Any, *, most_body: int, alive: Callable[[], bool]) -> None:
        """`cfg` is gunicorn's; `alive` says whether the worker is to go on after a request."""
        self._engine, self._most_body, self._alive, self._idle_s = engine, most_body, alive, cfg.keepalive
        self._parse = partial(
            _parser_fast.parse_request,
            limit_request_line=cfg.limit_request_line,
            limit_request_fields=cfg.limit_request_fields,
            limit_request_field_size=cfg.limit_request_field_size,
        )
        self._lengths: dict[bytes, int] = {}
        """Of bodies, by their headers: a client's requests mostly have the same ones."""
        self._reading: dict[Any, float] = {}
        """Connections whose next request is not here, and since when: one clock for all, not one each."""

    def watch(self) -> None:
        """Ends, for ever, what is idle for longer than gunicorn lets connections be."""
        while True:
            gevent.sleep(1)
            before = time.monotonic() - self._idle_s
            for connection in [one for one, since in self._reading.items() if since < before]:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)  # whoever reads it sees its end

    def serve(self, connection: Any, data: bytes) -> Handed | None:
        """Answers steps until something else comes, which it gives; None where the connection is over, or stalled."""
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
                    return Handed(connection, data, None)
                target, length = self._ordinary(request, data)
                if target is None:
                    return Handed(connection, data, _whole(request))
                start, end = request.consumed, request.consumed + length
                if len(data) < end and len(data := _read_to(connection, data, end)) < end:
                    return Handed(connection, data, end, patience_s=NOT_AGAIN_S)  # it has stopped: Flask says so
                answer = self._answer(target, data[start:end], has_left)
                data = data[end:]
                deliver(connection, answer)
        except OSError:  # the client has gone, or nothing moves
            return None
        finally:
            watcher.close()

    def _head(self, connection: Any, watcher: Any, data: bytes) -> tuple[bytes, Any]:
        """What was read, nothing at the connection's end; with the request at its beginning, None where it is none."""
        began = time.monotonic()
        while True:
            if data:
                try:
                    return data, self._parse(data)
                except _parser_fast.IncompleteError:  # this parser's own: it is no gunicorn_h1c.IncompleteError
                    if len(data) > MOST_HEAD:
                        return data, None
                except (ParseError, _parser_fast.ParseError):
                    return data, None
            self._reading[connection] = began
            try:
                gevent.get_hub().wait(watcher)  # to read at once would mostly be in vain
                more = connection.recv(READ)
            finally:
                del self._reading[connection]
            if not more:
                return b"", None
            data += more

    def _ordinary(self, request: Any, data: bytes) -> tuple[Any, int]:
        """The target of an ordinary step request, None where it is none, and the length of its body."""
        target = _TARGET(request.path)
        if target is None or request.method != b"POST" or request.minor_version != 1 or not self._alive():
            return None, 0
        headers = data[data.index(b"\r\n") : request.consumed]
        length = self._lengths.get(headers)
        if length is None:
            length = _length(request.headers)
            if len(self._lengths) >= MOST_KNOWN:
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
    """Of the body that ordinary headers announce; -1 where they are not ordinary."""
    values = {name.lower(): value for name, value in headers}
    if len(values) < len(headers) or not values.keys() >= _NEEDED:
        return -1
    for name, value in values.items():
        if not (_READ[name](value) if name in _READ else _HARMLESS(name)):
            return -1
    return int(values[b"content-length"])


def _whole(request: Any) -> int | None:
    """How many bytes the request has in all, None where its head alone does not say."""
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
    """`data` and what follows it, up to `end` at least; less where the client stops, or is too slow."""
    parts, have, pace = [data], len(data), Pace()
    with contextlib.suppress(TimeoutError):
        while have < end and (more := connection.recv(max(READ, end - have))):
            parts.append(more)
            have += len(more)
            pace.came(len(more))
            connection.settimeout(pace.patience_s())
    connection.settimeout(STALLED_S)
    return b"".join(parts)


def _written(reply: Reply) -> bytes:
    """As gunicorn would write what Flask makes of it."""
    head = _head(reply.status, int(time.time()), reply.headers, reply.media)
    return b"%b%d\r\n\r\n%b" % (head, len(reply.body), reply.body)


@lru_cache(8)
def _head(status: int, second: int, headers: tuple[tuple[str, str], ...], media: str) -> bytes:
    """Up to the body's length; those of one second are mostly the same."""
    first = f"HTTP/1.1 {status} {HTTP_STATUS_CODES[status].upper()}\r\nServer: {SERVER}\r\n"
    more = "".join(f"{name}: {value}\r\n" for name, value in headers)
    last = f"Content-Type: {media}\r\nContent-Length: "
    return f"{first}Date: {http_date(second)}\r\nConnection: keep-alive\r\n{more}{last}".encode()
