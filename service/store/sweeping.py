"""How a sweep gets past entries that it must leave alone. Owns where its next call begins, and knows no store."""

import math
from typing import Generic, TypeVar

PASS_S = 60.0
"""A pass over more entries than one call looks at is begun anew at most so often."""

Position = TypeVar("Position")


class SweepPass(Generic[Position]):
    """The calls of `Store.sweep` from the first entry that is due to the last.

    Entries that can be handled are removed or moved, so that the next call finds others in the same place. Entries
    whose record cannot be read stay where they are: the next call begins behind them, at `position`.
    """

    def __init__(self) -> None:
        self._position: Position | None = None
        self._began_at, self._is_over = -math.inf, False

    def begin(self, now: float) -> Position | None:
        """Where this call begins; None: at the first entry."""
        if self._is_over and not 0 <= now - self._began_at < PASS_S:
            self._position = None
        if self._position is None:
            self._began_at = now
        return self._position

    def end(self, position: Position | None, *, is_over: bool) -> None:
        """position: behind what was left alone so far. is_over: no more is due."""
        took_one_call = is_over and self._position is None
        self._position = None if took_one_call else position
        self._is_over = is_over
