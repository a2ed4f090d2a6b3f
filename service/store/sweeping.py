"""The position of a sweep, which must get past entries that it cannot handle. Knows nothing of the stores."""

import math
from typing import Generic, TypeVar

PASS_S = 60.0
"""A pass over more entries than one call examines restarts at most once in this time."""

Position = TypeVar("Position")


class SweepPass(Generic[Position]):
    """A pass of `Store.sweep`: its calls from the first due entry to the last.

    A call removes or moves the entries that it can handle, so that the next call finds the following ones at the same
    position. Entries whose record cannot be read stay: the next call begins behind them, at `position`.
    """

    def __init__(self) -> None:
        self._position: Position | None = None
        self._began_at, self._is_over = -math.inf, False

    def begin(self, now: float) -> Position | None:
        """Returns the position at which this call begins; None: the first entry."""
        if self._is_over and not 0 <= now - self._began_at < PASS_S:
            self._position = None
        if self._position is None:
            self._began_at = now
        return self._position

    def end(self, position: Position | None, *, is_over: bool) -> None:
        """Records the end of a call. position: behind the entries skipped so far. is_over: no more entries are due."""
        took_one_call = is_over and self._position is None
        self._position = None if took_one_call else position
        self._is_over = is_over
