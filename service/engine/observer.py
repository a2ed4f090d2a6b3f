"""Who watches the engine: told of what was committed, by whoever wants to show it. Knows nothing of how."""

from collections.abc import Callable, Sequence
from typing import Protocol

from onward.model.runner import StepModel
from onward.model.scoring.layout import Sum


class Observer(Protocol):
    def watched(self, model: StepModel, sums: Sequence[Sum]) -> Callable[[Sequence[float]], None]:
        """What is to be called with how much each of the sums grew, once for each batch that was committed."""

    def damaged(self) -> None:
        """A record was read that is damaged."""
