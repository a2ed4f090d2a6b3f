"""Connections that the event loop reads and answers itself, without a switch to their greenlet.

A connection's watcher reads what has come and submits ordinary steps to the engine, whose batch calls `settled`, which
writes the answer. The greenlet of the connection is parked meanwhile and does only the work that may wait.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import gevent

from onward.service.engine.batching.batch_row import BatchRow
from onward.service.http.connection import hung_up

READ = 65_536

log = logging.getLogger(__name__)

T = TypeVar("T")


class LoopConnection(Generic[T]):
    """A connection whose greenlet is parked while the event loop serves it. It is the caller of its rows.

    T: what ends the serving, when the work of the greenlet returns it.
    """

    __slots__ = (
        "_connection", "_greenlet", "_hub", "_is_over", "_is_parked", "_is_watching", "_socket", "_waits_since",
        "_watcher", "_work", "abandoned", "has_left", "started_at",
    )  # fmt: skip

    def __init__(self, connection: Any) -> None:
        """The greenlet that makes it has to run it."""
        self._connection = connection
        self._socket = connection._sock  # noqa: SLF001  (the system's socket, which never waits)
        self._hub, self._greenlet = gevent.get_hub(), gevent.getcurrent()
        self._watcher = self._hub.loop.io(connection.fileno(), 1)
        self._waits_since: float | None = time.monotonic()
        """When it began to wait for what is next to be answered; None while something is answered."""
        self._work: Callable[[], T | None] | None = None  # for the greenlet
        self._is_parked = self._is_watching = self._is_over = False
        self.abandoned, self.started_at = False, 0.0
        self.has_left = partial(hung_up, connection.fileno())

    def run(self, data: bytes) -> T | None:
        """Serves the connection until work of the greenlet returns something, and returns it; None if it has ended.

        data: bytes that were already read. Raises OSError.
        """
        try:
            if data:
                self._take(data)
            else:
                self._watch()
            while True:
                while self._work is None:
                    self._park()
                work, self._work = self._work, None
                if (result := work()) is not None:
                    return result
                self._go_on()
        except EndedError:
            return None
        finally:
            self.abandoned = self._is_over = True
            self._watcher.close()

    def _park(self) -> None:
        self._is_parked = True
        try:
            self._hub.switch()
        finally:
            self._is_parked = False

    def _unpark(self) -> None:
        if self._is_parked:  # it was not killed meanwhile
            self._greenlet.switch()

    def _give(self, work: Callable[[], T | None]) -> None:
        """Has the greenlet do this work, and `_go_on` after it."""
        self._waits_since, self._work = None, work
        if self._is_parked:
            self._hub.loop.run_callback(self._unpark)

    def _watch(self) -> None:
        """Has the event loop read what comes next."""
        if not self._is_watching:
            self._is_watching = True
            self._watcher.start(self._read)

    def _read(self) -> None:
        """Reads what has come, which may be the end of the connection; the event loop calls it."""
        if self._waits_since is None:  # they wait until what came before them is answered
            self._watcher.stop()
            self._is_watching = False
            return
        try:
            data = self._socket.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._give(end)
            return
        try:
            self._take(data)
        except Exception:  # the event loop would only print it, and the client would wait for ever
            log.exception("what a client sent could not be read")
            self._give(end)

    def _send(self, answer: bytes) -> bool:
        """Sends what can be sent without waiting. Returns False if the greenlet has been given the rest of the work."""
        try:
            sent = self._socket.send(answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._give(end)
            return False
        if sent == len(answer):
            return True
        self._give(partial(self._deliver, answer[sent:]))
        return False

    def _take(self, data: bytes) -> None:
        """Submits the step that the next bytes bring, or gives the work that they make to the greenlet."""
        raise NotImplementedError

    def settled(self, row: BatchRow) -> None:
        """Answers the step of a row that was submitted."""
        raise NotImplementedError

    def _go_on(self) -> None:
        """Begins to wait for what is next, once an answer is sent."""
        raise NotImplementedError

    # The work of the greenlet

    def _deliver(self, answer: bytes) -> None:
        """Sends an answer to a client that reads slowly. Raises OSError."""
        raise NotImplementedError


class EndedError(Exception):
    """The connection has ended."""


def end() -> None:
    """Ends the serving of a connection, as the work of its greenlet. Raises EndedError."""
    raise EndedError
