"""gunicorn's gevent worker with the engine's lifetime, and problems where gunicorn would answer with HTML.

gunicorn's master imports this module before it forks. So nothing here may import ONNX Runtime before a model is opened:
that starts a thread, which the fork does not copy, and a worker would abort at its end when it joins it.
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
from onward.service.http.problems import HTTP_KINDS, INTERNAL, Kind
from onward.service.server.connection_handoff import Handed
from onward.service.websocket.connection import Streams

log = logging.getLogger(__name__)

_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*").fullmatch
_STATUS = {parsing.LimitRequestLine: 414, parsing.LimitRequestHeaders: 431}


_PER_REQUEST = (
    "accesslog", "certfile", "http_parser", "http_protocols", "keyfile", "logconfig", "logconfig_dict",
    "logconfig_json", "logger_class", "max_requests", "post_request", "pre_request", "protocol", "proxy_protocol",
    "statsd_host",
)  # fmt: skip
"""Settings of gunicorn that ask it for more with each request, or for another protocol, than the lane does."""


MOST_UNREAD = 4 * 2**20
"""Of a request that was answered before its end, so much is still read: closing at once could take the answer back."""

KEPT_BYTES = 32 * 2**20
"""Memory that a batch has freed and the next one takes, rather than the system, page by page anew."""
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""glibc's options for that, by the variables that set them."""


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    _lane: Any = None
    _streams: Any = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trace = tempfile.TemporaryFile(dir=self.cfg.worker_tmp_dir)  # noqa: SIM115  (the master closes it)
        """What the process was doing when a fatal signal ended it; the master reads it."""

    def init_signals(self) -> None:
        super().init_signals()
        faulthandler.enable(self.trace)

    def patch(self) -> None:
        """As gunicorn does, but no package is asked for plugins to that: gevent would read what each that is installed
        says of itself, 25 times, a good part of a worker's start.
        """
        told: Any = events
        asking, told.notify_and_call_entry_points = told.notify_and_call_entry_points, told.notify
        try:
            super().patch()
        finally:
            told.notify_and_call_entry_points = asking

    def run(self) -> None:
        self.wsgi.extensions["alive"] = alive = lambda: self.alive
        self._lane, self._streams = self._open_lane(), Streams(alive)
        gc.set_threshold(10_000)  # a long body's lists are not garbage, and are looked at each time
        gc.collect()
        gc.freeze()  # modules and models stay: no collection of a worker that serves looks at them again
        _keep_memory()
        try:
            watches = [gevent.spawn(one.watch) for one in (self._lane, self._streams) if one is not None]
            super().run()
            gevent.killall(watches)
        finally:
            self.wsgi.extensions["onward"].close()

    def server_class(self, listener: Any, *, spawn: Any, **asked: Any) -> "Server":
        """What accepts connections from a listening socket; gunicorn calls this as it would the class of a server."""
        tls = {"ssl_context": asked["ssl_context"]} if "ssl_context" in asked else {}
        address = Address(listener.getsockname())
        server = Server(listener, handle=partial(self.handle, address), spawn=spawn, **tls)
        server.most_waiting = self.cfg.backlog
        if self.cfg.workers > 1:
            server.max_accept = 1  # the others shall have their share
        return server

    def _open_lane(self) -> Any:
        """The step lane; None where it is off, and the first worker says why unless it was told so."""
        app = self.wsgi
        if not app.config["LANE"]:
            return None
        if importlib.util.find_spec("gunicorn_h1c") is None:
            why = "gunicorn-h1c is not installed (pip install 'onward[lane]', with a C compiler)"
        elif asked := [name for name in _PER_REQUEST if _is_set(self.cfg, name)]:
            why = f"gunicorn is told {', '.join(asked)}"
        elif not self.cfg.keepalive:
            why = "gunicorn is told to keep no connection"
        else:
            from onward.service.server.fast_path import Lane  # noqa: PLC0415  (gunicorn-h1c may be missing)

            most_body = app.config["MAX_CONTENT_LENGTH"]
            return Lane(app.extensions["onward"], self.cfg, most_body=most_body, alive=lambda: self.alive)
        if self.age == 1:
            self.log.info("Steps are answered by Flask, more slowly: %s", why)
        return None

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        if isinstance(client, ssl.SSLSocket):  # gunicorn looks at what it is
            super().handle(listener, client, addr)
            return
        try:
            read = b""
            while (handed := self._next(client, read)) is not None:
                super().handle(listener, handed, addr)
                if handed.taken is not None:
                    self._streams.serve(client, handed.rest, *handed.taken)
                if not handed.asked_for_more or handed.taken is not None:
                    break
                read = handed.rest
        finally:
            close_graceful(client, max_drain=MOST_UNREAD)

    def _next(self, client: Any, read: bytes) -> Handed | None:
        """The connection at the next request that is gunicorn's; None where it is over."""
        if self._lane is None:
            return Handed(client, read, None)
        handed: Handed | None = self._lane.serve(client, read)
        return handed

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        _check_host(req)
        if not isinstance(sock, Handed):
            return super().handle_request(listener_name, req, sock, addr)
        sock.begin()
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            sock.end()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers a request that never became one."""
        del req, addr
        kind, detail = _kind_of(exc)
        if kind is INTERNAL:
            log.error("a request failed outside the application", exc_info=exc)
        field = "path" if kind.status == 414 else "Host" if isinstance(exc, Unaddressed) else None
        fault = [Fault(field, detail)] if field else []
        body = problems.document(kind, detail, fault)
        head = (
            f"HTTP/1.1 {kind.status} {kind.title}\r\nConnection: close\r\n"
            f"Content-Type: {problems.MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            write_nonblock(client, head.encode() + body)
        except OSError as error:
            log.debug("the client had gone: %s", error)


class Address(NamedTuple):
    """What gunicorn asks its listening socket for, also when it has been closed, while requests are still answered."""

    name: Any

    def getsockname(self) -> Any:
        return self.name


class Server(StreamServer):
    most_waiting: int

    def close(self) -> None:
        """Accepts what waits at the listening socket first: the system would reset it when the last worker closes."""
        with contextlib.suppress(OSError):
            for _ in range(self.most_waiting if self.started else 0):
                if self.full() or not (arrived := self.do_read()):
                    break
                self.do_handle(*arrived)
        super().close()


def _check_host(req: Any) -> None:
    """As RFC 9112, 3.2, asks of a server; gunicorn itself refuses several. Raises Unaddressed."""
    host = next((value for name, value in req.headers if name == "HOST"), None)
    if host is None and req.version >= (1, 1):
        raise Unaddressed("a request of HTTP/1.1 has a Host header; this one has none")
    if host is not None and not _HOST(host):
        raise Unaddressed("the Host header names no host")


class Unaddressed(parsing.ParseException):  # type: ignore[misc]  # gunicorn has no types
    """A request that does not say which host it is for."""


def _keep_memory() -> None:
    """Where the C library can be told to, as glibc can, and nobody has told it something else."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None and not _MALLOPT.keys() & os.environ.keys():
        for option in _MALLOPT.values():
            mallopt(option, KEPT_BYTES)


def _is_set(cfg: Any, name: str) -> bool:
    return bool(cfg.settings[name].get() != Config().settings[name].get())


def _kind_of(error: BaseException) -> tuple[Kind, str]:
    if isinstance(error, parsing.ParseException):
        kind = HTTP_KINDS[next((status for of, status in _STATUS.items() if isinstance(error, of)), 400)]
        return kind, str(error)[:200] or kind.title
    return INTERNAL, "this is our fault and is in the log"
