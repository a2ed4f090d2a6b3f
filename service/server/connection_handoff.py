"""The handoff of a connection to gunicorn: the bytes that were read before it, and the end of HTTP on it."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onward.service.http.connection import STALLED_S, Pace, deliver


class HandoffConnection:
    """A connection as gunicorn reads it: first the bytes already read, then those of the socket.

    left: the bytes of the request; None if they are not known, so that gunicorn owns the connection from here on.
    timeout_s: how long a read waits for more of the request.
    """

    def __init__(self, connection: Any, read: bytes, left: int | None, *, timeout_s: float = STALLED_S) -> None:
        self._connection, self._left, self._patience_s = connection, left, timeout_s
        self.rest = read
        """Bytes that were read from the socket and not yet by gunicorn."""
        self.asked_for_more = False
        """True if gunicorn has finished the request and tried to read the next one."""
        self.waits_long = False
        """True if the rest of the request may come at any time."""
        self._pace: Pace | None = None
        """The time limit of the body, or the line, that has begun; None between requests."""
        self.taken: tuple[Any, ...] | None = None
        """The WebSocket framing and protocol that own the connection after HTTP; None while it is HTTP."""

    def take_over(self, *taken: Any) -> None:
        """Ends HTTP on the connection: gunicorn reads an end of file from now on, and may still write its response."""
        self.taken = taken

    def recv(self, size: int) -> bytes:
        if self.taken is not None:
            return b""
        if self._left is not None:
            self.asked_for_more = self._left == 0
            size = min(size, self._left)
        if self.rest or not size:
            data, self.rest = self.rest[:size], self.rest[size:]
        else:
            with self._at_most(self._wait_s()):
                data = self._connection.recv(size)
            if self._pace is not None:
                self._pace.received(len(data))
        if self._left is not None:
            self._left -= len(data)
        return data

    def sendall(self, data: bytes) -> None:
        if self._connection.gettimeout() == 0.0:  # gunicorn does not wait when it writes a response without a request
            self._connection.sendall(data)
            return
        with self._at_most(STALLED_S):
            deliver(self._connection, data)

    def _wait_s(self) -> float | None:
        if self.waits_long:
            return None
        return self._patience_s if self._pace is None else min(self._patience_s, self._pace.timeout_s())

    @contextmanager
    def _at_most(self, seconds: float | None) -> Iterator[None]:
        """Limits each wait of the connection. For gunicorn a client that takes longer has disconnected."""
        self._connection.settimeout(seconds)
        try:
            yield
        except TimeoutError as error:
            raise ConnectionResetError(errno.ECONNRESET, "too little was received or read in time") from error
        finally:
            self._connection.settimeout(None)

    def wait_long(self) -> None:
        """Lets the rest of the request come at any time: TCP keep-alive detects a client that has gone."""
        self.waits_long = True
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def begin(self) -> None:
        """Begins the time limit of a body, or of a line of one."""
        self.waits_long, self._pace = False, Pace()

    def end(self) -> None:
        """Ends the time limit of the request."""
        self.waits_long, self._pace = False, None

    def shutdown(self, how: int) -> None:
        self._left, self.rest = None, b""  # the connection ends: reads now return what the client still sends
        self._connection.shutdown(how)

    def close(self) -> None:
        """Does nothing: the worker closes the connection, because it knows whether the fast path continues."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
