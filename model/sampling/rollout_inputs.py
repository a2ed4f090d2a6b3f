"""What a row that is rolled forward is given next.

Owns how that is put together: what is said of the targets, which may be drawn, among what is known of the others.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onward.model.runner import Outputs, StepModel

Sampler = Callable[[Outputs], NDArray[np.float32]]
"""Of outputs (1,) the targets' values at the step after them, (1, targets)."""


class RolloutInputs:
    """One a row: it keeps what was said, as numbers one behind the other."""

    def __init__(self, model: StepModel, known: NDArray[np.float32] | None = None, say: Sampler | None = None) -> None:
        """known: (steps, others) of the features that are not predicted. say: by default what the model feeds back."""
        self._model, self._known, self._say = model, known, say or model.feedback
        self._said, self._steps, self._last = bytearray(), 0, np.zeros((1, 0), np.float32)

    def next_targets(self, outputs: Outputs) -> NDArray[np.float32]:
        """(1, targets) of the step after outputs (1,), from now on among what was said."""
        self._last = self._say(outputs)
        self._said += self._last.tobytes()
        self._steps += 1
        return self._last

    def next_inputs(self) -> NDArray[np.float32]:
        """(1, features) of what was said last, among what is known at that step."""
        known = None if self._known is None else self._known[self._steps - 1 : self._steps]
        return self._model.next_inputs(self._last, known)

    def __call__(self, outputs: Outputs) -> NDArray[np.float32]:
        """(1, features) the input after outputs (1,)."""
        self.next_targets(outputs)
        return self.next_inputs()

    def path(self) -> NDArray[np.float32]:
        """(steps, targets) what was said."""
        return np.frombuffer(self._said, np.float32).reshape(self._steps, -1)
