"""A turn of the event loop."""

from typing import Any

import gevent


def turn() -> None:
    """Lets everything else that is ready run, what has just come over the network too.

    `gevent.sleep(0)` would not: gevent runs it up to 50 times before it looks at the network again.
    """
    hub = gevent.get_hub()
    timer: Any = hub.loop.timer(0)
    try:
        hub.wait(timer)
    finally:
        timer.close()
