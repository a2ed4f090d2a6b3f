"""What runs next. Pure: no I/O, no clock, no threads; time is passed in.

Owns the order of items. Knows nothing of models, of stores or of what an item does.

Items of one line (a session) run one after another, first come first served. Lines take turns. The item whose turn it
is sets a batch's length, and those join whose own length is near it, so that at most a quarter of a batch is padding.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
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
    """The waiting items of one model."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._lines: dict[Hashable, deque[I]] = {}  # every item that is not finished; a line's first may be running
        self._ready: OrderedDict[Hashable, None] = (
            OrderedDict()
        )  # lines with nothing running, in the order of their turns
        self.waiting = 0

    def add(self, item: I) -> None:
        line = self._lines.setdefault(item.line, deque())
        line.append(item)
        self.waiting += 1
        if len(line) == 1:
            self._ready[item.line] = None

    def batch(self, now: float) -> tuple[list[I], list[I]]:
        """The items to run next, at most one a line, and those that are dropped before they run: late, or over.

        Every item of the batch must come back by `finish` or `put_back`. Both lists are empty when nothing waits.
        """
        rows: list[I] = []
        late: list[I] = []
        longest = 0
        for line in list(self._ready):
            item = self._first_in_time(line, now, late)
            if item is None:
                continue
            longest = longest or item.size
            if (1 - PADDING) * longest <= item.size <= longest:
                del self._ready[line]
                rows.append(item)
                if len(rows) == self._max_rows:
                    break
        return rows, late

    def finish(self, item: I) -> None:
        """The item is over; the next of its line gets a turn."""
        line = self._lines[item.line]
        line.popleft()
        self.waiting -= 1
        if line:
            self._ready[item.line] = None
        else:
            del self._lines[item.line]

    def put_back(self, item: I) -> None:
        """The item goes on later; it stays the first of its line, and its line goes to the end of the turns."""
        self._ready[item.line] = None

    def _first_in_time(self, key: Hashable, now: float, late: list[I]) -> I | None:
        line = self._lines[key]
        while line and (line[0].over or line[0].deadline <= now):
            late.append(line.popleft())
            self.waiting -= 1
        if not line:
            del self._lines[key], self._ready[key]
            return None
        return line[0]
