"""The client's side of a connection: whether the client has closed it, and writing to a client that reads slowly."""

import fcntl
import select
import struct
import termios
import time
from collections.abc import Callable
from typing import Any

from flask import request
from gevent.monkey import get_original

HasLeft = Callable[[], bool]

_poll = get_original("select", "poll")  # gevent's own would wait in the event loop; this poll does not wait


STALLED_S = 60.0
"""A client that sends nothing of its request, or reads nothing of its response, for this long is disconnected."""


LEAST_WAIT_S = 0.001
"""The shortest wait for more of a request, also after its time limit."""
LEAST_BYTES_PER_S = 500
"""The rate that a body must reach on average after that time, as Apache's mod_reqtimeout requires by default.

A slow link is faster; a client that sends single bytes to hold connections open is not.
"""


class Pace:
    """The time limit of a body or a line: STALLED_S, and a second more for each LEAST_BYTES_PER_S bytes received."""

    def __init__(self) -> None:
        self._due = time.monotonic() + STALLED_S

    def received(self, count: int) -> None:
        self._due += count / LEAST_BYTES_PER_S

    def timeout_s(self) -> float:
        """The seconds to wait for more; never zero, so that bytes that have arrived are read."""
        return min(STALLED_S, max(LEAST_WAIT_S, self._due - time.monotonic()))


def deliver(connection: Any, data: bytes) -> None:
    """Sends all of the data, however slowly the client reads. `connection` has a timeout of STALLED_S.

    Raises TimeoutError if the client received nothing during a timeout. A send that times out does not prove that: the
    system accepts more only after much of its buffer was received, which takes longer with a slow client.
    """
    rest, before = memoryview(data), -1
    while rest:
        try:
            rest = rest[connection.send(rest) :]
            before = _unread(connection) if rest else -1
        except TimeoutError:
            now = _unread(connection)
            if now == before:
                raise
            before = now


def _unread(connection: Any) -> int:
    """The number of bytes that were sent and not yet received."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(count)


def hung_up(file: int) -> bool:
    """True if the client has closed the connection, or its own side of it."""
    poll = _poll()
    poll.register(file, select.POLLRDHUP)
    return bool(poll.poll(0))


def client() -> HasLeft | None:
    """A function that returns whether the client of this request has closed its connection.

    None where the request has no connection, as in tests.
    """
    connection = request.environ.get("gunicorn.socket")
    return None if connection is None else lambda: hung_up(connection.fileno())
