"""A connection on its way through gunicorn: what was read of it before, and whether it is for HTTP still."""

from typing import Any


class Handed:
    """A connection as gunicorn gets it: first the bytes already read, then the socket's.

    left: how many bytes the request has, None where that is not known and the connection is gunicorn's from here on.
    """

    def __init__(self, connection: Any, read: bytes, left: int | None) -> None:
        self._connection, self._left = connection, left
        self.rest = read
        """What was read and not yet asked for."""
        self.asked_for_more = False
        """Whether gunicorn is done with the request, and would go on with the next."""
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
        data: bytes = self.rest[:size] if self.rest or not size else self._connection.recv(size)
        self.rest = self.rest[len(data) :]
        if self._left is not None:
            self._left -= len(data)
        return data

    def shutdown(self, how: int) -> None:
        self._left, self.rest = None, b""  # the connection ends: what is still read is what the client still sends
        self._connection.shutdown(how)

    def close(self) -> None:
        """Left to the worker, which knows whether the lane goes on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
