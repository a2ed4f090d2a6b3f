"""A turn of the event loop."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import gevent

AT_ONCE = 64

T = TypeVar("T")


class Turns:
    """Those that one greenlet takes, for less than single ones: the loop's timer is made once."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._timer: Any = self._hub.loop.timer(0)

    def take(self) -> None:
        """Lets everything else that is ready run, what has just come over the network too.

        `gevent.sleep(0)` would not: gevent runs it up to 50 times before it looks at the network again.
        """
        self._hub.wait(self._timer)

    def close(self) -> None:
        self._timer.close()


def turn() -> None:
    """A single one."""
    turns = Turns()
    try:
        turns.take()
    finally:
        turns.close()


def by_turns(items: Iterable[T]) -> Iterator[T]:
    """The items, a few in each turn: so many that what is done with all of them at once would hold others up."""
    for place, item in enumerate(items):
        if place and place % AT_ONCE == 0:
            turn()
        yield item
