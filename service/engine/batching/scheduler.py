"""Scheduling: which items run next. Pure: no I/O, no clock, no threads; time is passed in.

Owns the order of items. Knows nothing of models, of stores or of what an item does.

Items with the same key (those of a session) run one after another, first come first served. The first of each key waits
in the size class of its next call, and the classes take turns: each batch begins with the item that has waited longest,
so long items and short ones do not hold each other up. A batch holds items of one class, whose sizes are so close that
at most a quarter of the batch is padding.
"""

from collections import deque
from collections.abc import Hashable
from functools import cache
from typing import Generic, Protocol, TypeVar

PADDING = 0.25


class Item(Protocol):
    @property
    def key(self) -> Hashable: ...
    @property
    def size(self) -> int: ...
    @property
    def deadline(self) -> float: ...
    @property
    def is_obsolete(self) -> bool:
        """Whether nobody waits for the item any more."""


I = TypeVar("I", bound=Item)  # noqa: E741


class Scheduler(Generic[I]):
    """The waiting items of one model. A batch has at most `max_rows` rows, and `max_cells` steps, padding included."""

    def __init__(self, max_rows: int, max_cells: int) -> None:
        self._max_rows, self._max_cells = max_rows, max_cells
        self._behind: dict[Hashable, deque[I] | None] = {}
        """By the key of each item that is ready or in the current batch: the items behind it, None if there are none.
        """
        self._ready: dict[int, deque[tuple[int, I]]] = {}
        """By size class: turn and item of the first item of each key, in the order of turns."""
        self._turn = 0
        self.waiting = 0

    def add(self, item: I) -> None:
        self.waiting += 1
        key = item.key
        if key not in self._behind:
            self._behind[key] = None
            self._make_ready(item)
        elif (queue := self._behind[key]) is None:
            self._behind[key] = deque((item,))
        else:
            queue.append(item)

    def batch(self, now: float) -> tuple[list[I], list[I]]:
        """Returns the items to run next, at most one of a key, and those dropped before they ran, late or obsolete.

        Every item of the batch must come back by `finish` or `put_back`. Both lists are empty if nothing waits.
        """
        rows: list[I] = []
        dropped: list[I] = []
        while self._ready and not rows:
            chosen = min(self._ready, key=self._longest_waiting) if len(self._ready) > 1 else next(iter(self._ready))
            ready, longest = self._ready[chosen], 0
            while ready and len(rows) < self._max_rows:
                item = ready[0][1]
                if item.is_obsolete or item.deadline <= now:
                    dropped.append(item)
                    ready.popleft()
                    self.finish(item)
                    continue
                if chosen > 1:
                    longest = max(longest, item.size)
                    if rows and (len(rows) + 1) * longest > self._max_cells:
                        break
                elif len(rows) >= self._max_cells:
                    break
                rows.append(item)
                ready.popleft()
            if not ready:
                del self._ready[chosen]
        return rows, dropped

    def finish(self, item: I) -> None:
        """Removes a finished item; the next one of its key waits for a turn."""
        self.waiting -= 1
        queue = self._behind.pop(item.key)
        if queue:
            following = queue.popleft()
            self._behind[item.key] = queue or None
            self._make_ready(following)

    def put_back(self, item: I) -> None:
        """Takes back an unfinished item: it stays the first of its key, and waits for another turn."""
        self._make_ready(item)

    def items(self) -> list[I]:
        """Returns the items that wait, without those of the current batch."""
        ready = [item for waiting in self._ready.values() for _, item in waiting]
        return ready + [item for queue in self._behind.values() if queue for item in queue]

    def _make_ready(self, item: I) -> None:
        self._turn += 1
        size_class = _size_class(item.size)
        ready = self._ready.get(size_class)
        if ready is None:
            ready = self._ready[size_class] = deque()
        ready.append((self._turn, item))

    def _longest_waiting(self, size_class: int) -> int:
        return self._ready[size_class][0][0]


@cache
def _size_class(size: int) -> int:
    """Returns the longest size that may share a batch with this one: 1, 2, 3, 4, 6, 9, 13, 18, 25, ..."""
    longest = 1
    while longest < size:
        longest = int((longest + 1) / (1 - PADDING))
    return longest
