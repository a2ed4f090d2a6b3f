"""Scheduling: which items run next. Pure: no I/O, no clock, no threads; time is passed in.

Owns the order of items. Knows nothing of models, of stores or of what an item does.

Items with the same key (those of a session) form a queue, and run one after another, first come first served. The
queues take turns: each batch begins with the queue that has waited longest for its turn, so long items and short ones
do not hold each other up. A queue waits in the size class of its first item; a batch holds items of one class, whose
sizes are so close that at most a quarter of the batch is padding.
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
        self._queues: dict[
            Hashable, deque[I]
        ] = {}  # by key: every unfinished item; the first of a queue may be update_means
        self._ready: dict[int, deque[tuple[int, Hashable]]] = {}  # by size class: turn and key; each key at most once
        self._turn = 0
        self.waiting = 0

    def add(self, item: I) -> None:
        self.waiting += 1
        queue = self._queues.get(item.key)
        if queue is None:
            self._queues[item.key] = deque((item,))
            self._make_ready(item)
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
                item = self._first_of(ready[0][1], now, dropped)
                if item is not None and _size_class(size := item.size) == chosen:
                    longest = max(longest, size)
                    if rows and (len(rows) + 1) * longest > self._max_cells:
                        break
                    rows.append(item)
                elif item is not None:
                    self._make_ready(item)
                ready.popleft()
            if not ready:
                del self._ready[chosen]
        return rows, dropped

    def finish(self, item: I) -> None:
        """Removes a finished item; the next one of its queue waits for a turn."""
        queue = self._queues[item.key]
        queue.popleft()
        self.waiting -= 1
        if queue:
            self._make_ready(queue[0])
        else:
            del self._queues[item.key]

    def put_back(self, item: I) -> None:
        """Takes back an unfinished item: it stays the first of its queue, which waits for another turn."""
        self._make_ready(item)

    def _make_ready(self, item: I) -> None:
        self._turn += 1
        size_class = _size_class(item.size)
        ready = self._ready.get(size_class)
        if ready is None:
            ready = self._ready[size_class] = deque()
        ready.append((self._turn, item.key))

    def _longest_waiting(self, size_class: int) -> int:
        return self._ready[size_class][0][0]

    def _first_of(self, key: Hashable, now: float, dropped: list[I]) -> I | None:
        """Returns the first item of a queue that can run; those before it are dropped. None if there is none."""
        queue = self._queues[key]
        while (item := queue[0]).is_obsolete or item.deadline <= now:
            dropped.append(queue.popleft())
            self.waiting -= 1
            if not queue:
                del self._queues[key]
                return None
        return item


@cache
def _size_class(size: int) -> int:
    """Returns the longest size that may share a batch with this one: 1, 2, 3, 4, 6, 9, 13, 18, 25, ..."""
    longest = 1
    while longest < size:
        longest = int((longest + 1) / (1 - PADDING))
    return longest
