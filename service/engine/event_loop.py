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


def by_turns(items: Iterable[T], at_once: int = AT_ONCE) -> Iterable[T]:
    """The items, `at_once` of them in each turn, so that work on all of them does not hold up the rest of the worker.

    A list that has no more than that comes back as it is, at no cost.
    """
    return items if isinstance(items, list) and len(items) <= at_once else _by_turns(items, at_once)


def _by_turns(items: Iterable[T], at_once: int) -> Iterator[T]:
    turns = Turns()
    try:
        for number, item in enumerate(items):
            if number and number % at_once == 0:
                turns.take()
            yield item
    finally:
        turns.close()
