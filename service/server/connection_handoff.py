"""A connection on its way through gunicorn: what was read of it before, and whether it is for HTTP still."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onward.service.http.connection import STALLED_S, Pace, deliver


class Handed:
    """A connection as gunicorn gets it: first the bytes already read, then the socket's.

    left: how many bytes the request has, None where that is not known and the connection is gunicorn's from here on.
    patience_s: how long is waited for more of the request.
    """

    def __init__(self, connection: Any, read: bytes, left: int | None, *, patience_s: float = STALLED_S) -> None:
        self._connection, self._left, self._patience_s = connection, left, patience_s
        self.rest = read
        """What was read and not yet asked for."""
        self.asked_for_more = False
        """Whether gunicorn is done with the request, and would go on with the next."""
        self.waits_long = False
        """Whether more of the request may come when it likes."""
        self._pace: Pace | None = None
        """How long the body, or the line, that has begun may take; None between requests."""
        self.taken: tuple[Any, ...] | None = None
        """What the connection is for from now on, where it is no longer for HTTP."""

    def take_over(self, *taken: Any) -> None:
        """From now on gunicorn reads the connection's end; what it still writes is written."""
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
                self._pace.came(len(data))
        if self._left is not None:
            self._left -= len(data)
        return data

    def sendall(self, data: bytes) -> None:
        if self._connection.gettimeout() == 0.0:  # gunicorn asks not to wait, of what it says to no request
            self._connection.sendall(data)
            return
        with self._at_most(STALLED_S):
            deliver(self._connection, data)

    def _wait_s(self) -> float | None:
        if self.waits_long:
            return None
        return self._patience_s if self._pace is None else min(self._patience_s, self._pace.patience_s())

    @contextmanager
    def _at_most(self, seconds: float | None) -> Iterator[None]:
        """For as long at a time; whoever takes longer has gone, for all that gunicorn is told."""
        self._connection.settimeout(seconds)
        try:
            yield
        except TimeoutError as error:
            raise ConnectionResetError(errno.ECONNRESET, "too little came or was read in time") from error
        finally:
            self._connection.settimeout(None)

    def wait_long(self) -> None:
        """The request takes its time: whether the client is there still is left to the network to find out."""
        self.waits_long = True
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def begin(self) -> None:
        """From now on a body, or a line of one, has to come at some pace."""
        self.waits_long, self._pace = False, Pace()

    def end(self) -> None:
        """The request is over."""
        self.waits_long, self._pace = False, None

    def shutdown(self, how: int) -> None:
        self._left, self.rest = None, b""  # the connection ends: what is still read is what the client still sends
        self._connection.shutdown(how)

    def close(self) -> None:
        """Left to the worker, which knows whether the lane goes on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
