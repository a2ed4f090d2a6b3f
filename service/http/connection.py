"""What a connection tells of its client, and writing to one that may read slowly, or not at all."""

import fcntl
import select
import struct
import termios
from collections.abc import Callable
from typing import Any

from flask import request
from gevent.monkey import get_original

HasLeft = Callable[[], bool]

_poll = get_original("select", "poll")  # gevent's own would wait in the event loop; this one is asked without waiting


STALLED_S = 60.0
"""A client that sends nothing of a request that it has begun, or reads nothing of its answer, for so long is cut."""


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
