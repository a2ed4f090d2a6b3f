"""A turn of the event loop."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import gevent

AT_ONCE = 64

T = TypeVar("T")


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


def by_turns(items: Iterable[T]) -> Iterator[T]:
    """The items, a few in each turn: so many that what is done with all of them at once would hold others up."""
    for place, item in enumerate(items):
        if place and place % AT_ONCE == 0:
            turn()
        yield item
