"""What a connection tells of its client."""

import select
from collections.abc import Callable

from flask import request
from gevent.monkey import get_original

HasLeft = Callable[[], bool]

_poll = get_original("select", "poll")  # gevent's own would wait in the event loop; this one is asked without waiting


def hung_up(file: int) -> bool:
    """Whether the client has closed the connection, or its own side of it."""
    poll = _poll()
    poll.register(file, select.POLLRDHUP)
    return bool(poll.poll(0))


def client() -> HasLeft | None:
    """Whether the client of this request has closed its connection; None where there is no connection, as in tests."""
    connection = request.environ.get("gunicorn.socket")
    return None if connection is None else lambda: hung_up(connection.fileno())
