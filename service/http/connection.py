"""What a connection tells of its client, and writing to one that may read slowly, or not at all."""

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

_poll = get_original("select", "poll")  # gevent's own would wait in the event loop; this one is asked without waiting


STALLED_S = 60.0
"""A client that sends nothing of a request that it has begun, or reads nothing of its answer, for so long is cut."""


NOT_AGAIN_S = 0.001
"""How long more is waited for of a request that has been waited for already."""
SLOWEST = 500
"""Bytes a second that a body has to bring on average after that time, as Apache's mod_reqtimeout asks by default: a
slow link brings more, and whoever sends byte by byte to hold connections open does not.
"""


class Pace:
    """How long a body, or a line of one, may take: STALLED_S, and a second more for each SLOWEST bytes that came."""

    def __init__(self) -> None:
        self._due = time.monotonic() + STALLED_S

    def came(self, count: int) -> None:
        self._due += count / SLOWEST

    def patience_s(self) -> float:
        """How long to wait for more. Never nothing: what is here already is taken, also where this process was late."""
        return min(STALLED_S, max(NOT_AGAIN_S, self._due - time.monotonic()))


def deliver(connection: Any, data: bytes) -> None:
    """Sends all of it, however slowly it is read. `connection` waits STALLED_S at a time.

    Raises TimeoutError where nothing arrived for so long. That nothing could be sent says less: the system lets more be
    sent only once much of what it holds has arrived, which takes a slow reader longer.
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
    """How many bytes were sent and have not arrived."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(count)


def hung_up(file: int) -> bool:
    """Whether the client has closed the connection, or its own side of it."""
    poll = _poll()
    poll.register(file, select.POLLRDHUP)
    return bool(poll.poll(0))


def client() -> HasLeft | None:
    """Whether the client of this request has closed its connection; None where there is no connection, as in tests."""
    connection = request.environ.get("gunicorn.socket")
    return None if connection is None else lambda: hung_up(connection.fileno())
