"""Turns of the event loop: how a greenlet with long work lets the others run in between."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import gevent

AT_ONCE = 256

T = TypeVar("T")


class LoopTurns:
    """Turns of the event loop for one greenlet. It makes the loop's timer once, so each turn costs less than a single
    `take_loop_turn`.
    """

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._timer: Any = self._hub.loop.timer(0)

    def take(self) -> None:
        """Lets every other greenlet that is ready run, also those with data that has just come over the network.

        `gevent.sleep(0)` would not: gevent runs it up to 50 times before it looks at the network again.
        """
        self._hub.wait(self._timer)

    def close(self) -> None:
        self._timer.close()


def take_loop_turn() -> None:
    """Lets every other greenlet that is ready run, once; see `LoopTurns.take`."""
    turns = LoopTurns()
    try:
        turns.take()
    finally:
        turns.close()


def in_loop_turns(items: Iterable[T], at_once: int = AT_ONCE) -> Iterable[T]:
    """Returns the items, `at_once` of them in each turn of the event loop, so that work on all of them does not hold up
    the rest of the worker.

    A list that has no more than that comes back as it is, at no cost.
    """
    return items if isinstance(items, list) and len(items) <= at_once else _in_loop_turns(items, at_once)


def _in_loop_turns(items: Iterable[T], at_once: int) -> Iterator[T]:
    turns = LoopTurns()
    try:
        for number, item in enumerate(items):
            if number and number % at_once == 0:
                turns.take()
            yield item
    finally:
        turns.close()
