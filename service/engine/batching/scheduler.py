"""What runs next. Pure: no I/O, no clock, no threads; time is passed in.

Owns the order of items. Knows nothing of models, of stores or of what an item does.

Items of one line (a session) run one after another, first come first served. Lines take turns: each batch begins with
the line whose turn it has been for longest, so long items and short ones pass each other. Lines wait in classes by the
length of their first item, drawn so that at most a quarter of a batch is padding; a batch is of one class.
"""

from collections import deque
from collections.abc import Hashable
from functools import cache
from typing import Generic, Protocol, TypeVar

PADDING = 0.25


class Item(Protocol):
    @property
    def line(self) -> Hashable: ...
    @property
    def size(self) -> int: ...
    @property
    def deadline(self) -> float: ...
    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""


I = TypeVar("I", bound=Item)  # noqa: E741


class Scheduler(Generic[I]):
    """The waiting items of one model. A batch has at most `max_rows` rows, and `max_cells` steps, padding included."""

    def __init__(self, max_rows: int, max_cells: int) -> None:
        self._max_rows, self._max_cells = max_rows, max_cells
        self._lines: dict[Hashable, deque[I]] = {}  # every item that is not finished; a line's first may be running
        self._ready: dict[int, deque[tuple[int, Hashable]]] = {}  # by class, turn and line; a line in one class, once
        self._turn = 0
        self.waiting = 0

    def add(self, item: I) -> None:
        self.waiting += 1
        line = self._lines.get(item.line)
        if line is None:
            self._lines[item.line] = deque((item,))
            self._queue(item)
        else:
            line.append(item)

    def batch(self, now: float) -> tuple[list[I], list[I]]:
        """The items to run next, at most one a line, and those that are dropped before they run: late, or over.

        Every item of the batch must come back by `finish` or `put_back`. Both lists are empty when nothing waits.
        """
        rows: list[I] = []
        late: list[I] = []
        while self._ready and not rows:
            chosen = min(self._ready, key=self._longest_ready) if len(self._ready) > 1 else next(iter(self._ready))
            queue, longest = self._ready[chosen], 0
            while queue and len(rows) < self._max_rows:
                item = self._first_in_time(queue[0][1], now, late)
                if item is not None and _class(size := item.size) == chosen:
                    longest = max(longest, size)
                    if rows and (len(rows) + 1) * longest > self._max_cells:
                        break
                    rows.append(item)
                elif item is not None:
                    self._queue(item)
                queue.popleft()
            if not queue:
                del self._ready[chosen]
        return rows, late

    def finish(self, item: I) -> None:
        """The item is over; the next of its line gets a turn."""
        line = self._lines[item.line]
        line.popleft()
        self.waiting -= 1
        if line:
            self._queue(line[0])
        else:
            del self._lines[item.line]

    def put_back(self, item: I) -> None:
        """The item goes on later; it stays the first of its line, and its line goes to the end of the turns."""
        self._queue(item)

    def _queue(self, item: I) -> None:
        self._turn += 1
        of = _class(item.size)
        queue = self._ready.get(of)
        if queue is None:
            queue = self._ready[of] = deque()
        queue.append((self._turn, item.line))

    def _longest_ready(self, of: int) -> int:
        return self._ready[of][0][0]

    def _first_in_time(self, key: Hashable, now: float, late: list[I]) -> I | None:
        line = self._lines[key]
        while (item := line[0]).over or item.deadline <= now:
            late.append(line.popleft())
            self.waiting -= 1
            if not line:
                del self._lines[key]
                return None
        return item


@cache
def _class(size: int) -> int:
    """The longest size of those that may share a batch with this one: 1, 2, 3, 4, 6, 9, 13, 18, 25, ..."""
    longest = 1
    while longest < size:
        longest = int((longest + 1) / (1 - PADDING))
    return longest
