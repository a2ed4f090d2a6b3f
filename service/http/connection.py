"""What a connection tells of its client."""

import select

from gevent.monkey import get_original

_poll = get_original("select", "poll")  # gevent's own would wait in the event loop; this one is asked without waiting


def hung_up(file: int) -> bool:
    """Whether the client has closed the connection, or its own side of it."""
    poll = _poll()
    poll.register(file, select.POLLRDHUP)
    return bool(poll.poll(0))
