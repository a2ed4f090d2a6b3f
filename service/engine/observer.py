"""The interface of an observer of the engine, which counts what was committed. Knows nothing of how it shows that."""

from collections.abc import Callable, Sequence
from typing import Protocol

from onward.model.runner import StepModel
from onward.model.scoring.layout import Sum


class Observer(Protocol):
    def watched(self, model: StepModel, sums: Sequence[Sum]) -> Callable[[Sequence[float]], None]:
        """Returns a function to call once for each committed batch, with how much each of the sums grew."""

    def damaged(self) -> None:
        """Counts a damaged record that was read."""
