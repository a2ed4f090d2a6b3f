"""gunicorn's gevent worker, which owns the engine's lifetime and answers with problems where gunicorn sends HTML.

gunicorn's master imports this module before it forks. So nothing here may import ONNX Runtime before a model is opened:
ONNX Runtime starts a thread that the fork does not copy, and a worker that joins it at its end would abort.
"""

import contextlib
import ctypes
import faulthandler
import gc
import importlib.util
import logging
import os
import re
import ssl
import tempfile
from functools import partial
from typing import Any, NamedTuple

import gevent
from gevent import events
from gevent.server import StreamServer
from gunicorn.config import Config
from gunicorn.http import errors as parsing
from gunicorn.util import close_graceful, write_nonblock
from gunicorn.workers.ggevent import GeventWorker

from onward.service.errors import Fault
from onward.service.http import problems
from onward.service.http.problems import HTTP_PROBLEM_TYPES, INTERNAL, ProblemType
from onward.service.server.connection_handoff import HandoffConnection
from onward.service.websocket.connection import WebSocketConnections

log = logging.getLogger(__name__)

_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*").fullmatch
_STATUS = {parsing.LimitRequestLine: 414, parsing.LimitRequestHeaders: 431}


_PER_REQUEST = (
    "accesslog", "certfile", "http_parser", "http_protocols", "keyfile", "logconfig", "logconfig_dict",
    "logconfig_json", "logger_class", "max_requests", "post_request", "pre_request", "protocol", "proxy_protocol",
    "statsd_host",
)  # fmt: skip
"""gunicorn's settings that the fast path does not implement: work for each request, or another protocol."""


MOST_UNREAD = 4 * 2**20
"""After an early response, up to this many bytes of the request are still read.

Closing at once would send a TCP reset, which could discard the response.
"""

KEPT_BYTES = 32 * 2**20
"""Freed memory that the process keeps for its next batch, instead of returning it to the system page by page."""
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""glibc's options for `KEPT_BYTES`, by the environment variables that set them."""


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    _fast_path: Any = None
    _websockets: Any = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trace = tempfile.TemporaryFile(dir=self.cfg.worker_tmp_dir)  # noqa: SIM115  (the master closes it)
        """The stack of the process when a fatal signal ended it; the master reads it."""

    def init_signals(self) -> None:
        super().init_signals()
        faulthandler.enable(self.trace)

    def patch(self) -> None:
        """Patches the standard library as gunicorn does, without gevent's search for plugins.

        gevent would read the metadata of every installed package 25 times, a large part of a worker's start.
        """
        gevent_events: Any = events
        search = gevent_events.notify_and_call_entry_points
        gevent_events.notify_and_call_entry_points = gevent_events.notify
        try:
            super().patch()
        finally:
            gevent_events.notify_and_call_entry_points = search

    def run(self) -> None:
        self.wsgi.extensions["alive"] = alive = lambda: self.alive
        self._fast_path, self._websockets = self._open_fast_path(), WebSocketConnections(alive)
        gc.set_threshold(10_000)  # each collection would scan the lists of a long body, which are not garbage
        gc.collect()
        gc.freeze()  # modules and models live as long as the worker: no collection scans them again
        _keep_memory()
        try:
            watches = [gevent.spawn(part.watch) for part in (self._fast_path, self._websockets) if part is not None]
            super().run()
            gevent.killall(watches)
        finally:
            self.wsgi.extensions["onward"].close()
            gc.unfreeze()  # the interpreter collects at its end, while the modules that finalizers need are still there

    def server_class(self, listener: Any, *, spawn: Any, **options: Any) -> "Server":
        """The server that accepts connections from a listening socket; gunicorn calls this like a server's class."""
        tls = {"ssl_context": options["ssl_context"]} if "ssl_context" in options else {}
        address = Address(listener.getsockname())
        server = Server(listener, handle=partial(self.handle, address), spawn=spawn, **tls)
        server.most_waiting = self.cfg.backlog
        if self.cfg.workers > 1:
            server.max_accept = 1  # so that other workers get their share
        return server

    def _open_fast_path(self) -> Any:
        """The fast path; None if it is off. Unless a setting turns it off, the first worker logs the reason."""
        app = self.wsgi
        if not app.config["FAST_PATH"]:
            return None
        if importlib.util.find_spec("gunicorn_h1c") is None:
            why = "gunicorn-h1c is not installed (pip install 'onward[lane]', with a C compiler)"
        elif unsupported := [name for name in _PER_REQUEST if _is_set(self.cfg, name)]:
            why = f"gunicorn is configured with {', '.join(unsupported)}"
        elif not self.cfg.keepalive:
            why = "gunicorn is configured to keep no connection alive"
        else:
            from onward.service.server.fast_path import FastPath  # noqa: PLC0415  (gunicorn-h1c may be missing)

            most_body = app.config["MAX_CONTENT_LENGTH"]
            return FastPath(app.extensions["onward"], self.cfg, most_body=most_body, alive=lambda: self.alive)
        if self.age == 1:
            self.log.info("Steps are answered by Flask, more slowly: %s", why)
        return None

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        if isinstance(client, ssl.SSLSocket):  # gunicorn checks its class
            super().handle(listener, client, addr)
            return
        try:
            read = b""
            while (handoff := self._next(client, read)) is not None:
                super().handle(listener, handoff, addr)
                if handoff.taken is not None:
                    self._websockets.serve(client, handoff.rest, *handoff.taken)
                if not handoff.asked_for_more or handoff.taken is not None:
                    break
                read = handoff.rest
        finally:
            close_graceful(client, max_drain=MOST_UNREAD)

    def _next(self, client: Any, read: bytes) -> HandoffConnection | None:
        """The connection at the next request for gunicorn; None if the connection has ended."""
        if self._fast_path is None:
            return HandoffConnection(client, read, None)
        handoff: HandoffConnection | None = self._fast_path.serve(client, read)
        return handoff

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        _check_host(req)
        if not isinstance(sock, HandoffConnection):
            return super().handle_request(listener_name, req, sock, addr)
        sock.begin()
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            sock.end()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers a request that gunicorn could not parse."""
        del req, addr
        problem_type, detail = _problem_type_of(exc)
        if problem_type is INTERNAL:
            log.error("a request failed outside the application", exc_info=exc)
        field = "path" if problem_type.status == 414 else "Host" if isinstance(exc, Unaddressed) else None
        fault = [Fault(field, detail)] if field else []
        body = problems.document(problem_type, detail, fault)
        head = (
            f"HTTP/1.1 {problem_type.status} {problem_type.title}\r\nConnection: close\r\n"
            f"Content-Type: {problems.MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            write_nonblock(client, head.encode() + body)
        except OSError as error:
            log.debug("the client had gone: %s", error)


class Address(NamedTuple):
    """The name of a listening socket, which gunicorn asks for also after the socket is closed."""

    name: Any

    def getsockname(self) -> Any:
        return self.name


class Server(StreamServer):
    most_waiting: int

    def close(self) -> None:
        """Accepts the waiting connections first: the system would reset them when the last worker closes the socket."""
        with contextlib.suppress(OSError):
            for _ in range(self.most_waiting if self.started else 0):
                if self.full() or not (arrived := self.do_read()):
                    break
                self.do_handle(*arrived)
        super().close()


def _check_host(req: Any) -> None:
    """Checks the Host header as RFC 9112, 3.2 requires; gunicorn itself refuses several. Raises Unaddressed."""
    host = next((value for name, value in req.headers if name == "HOST"), None)
    if host is None and req.version >= (1, 1):
        raise Unaddressed("an HTTP/1.1 request must have a Host header")
    if host is not None and not _HOST(host):
        raise Unaddressed("the Host header is not a valid host")


class Unaddressed(parsing.ParseException):  # type: ignore[misc]  # gunicorn has no types
    """The request has no valid Host header."""


def _keep_memory() -> None:
    """Keeps freed memory in the process, if the C library is glibc and no environment variable sets its options."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None and not _MALLOPT.keys() & os.environ.keys():
        for option in _MALLOPT.values():
            mallopt(option, KEPT_BYTES)


def _is_set(cfg: Any, name: str) -> bool:
    return bool(cfg.settings[name].get() != Config().settings[name].get())


def _problem_type_of(error: BaseException) -> tuple[ProblemType, str]:
    if isinstance(error, parsing.ParseException):
        problem_type = HTTP_PROBLEM_TYPES[
            next((status for of, status in _STATUS.items() if isinstance(error, of)), 400)
        ]
        return problem_type, str(error)[:200] or problem_type.title
    return INTERNAL, "this is an error of the service; it is logged"
