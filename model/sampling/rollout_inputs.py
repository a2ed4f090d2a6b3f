"""The inputs of a row that is rolled forward.

Owns how an input is assembled: the predicted or drawn values of the targets, and the future covariates.
"""

from collections.abc import Callable

import numpy as np

from onward.model.inputs import InputArray
from onward.model.runner import Outputs, StepModel

Sampler = Callable[[Outputs], InputArray]
"""A function from outputs (1,) to the targets' values (1, targets) at the next step."""


class RolloutInputs:
    """The rollout inputs of one row; it records the targets' values of all steps."""

    def __init__(self, model: StepModel, future: InputArray | None = None, sampler: Sampler | None = None) -> None:
        """future: (steps, covariates), the future covariates. sampler: by default `model.feedback`."""
        self._model, self._future, self._sampler = model, future, sampler or model.feedback
        self._values, self._steps = bytearray(), 0
        self._last: InputArray = np.zeros((1, 0), model.input_dtype)

    def next_targets(self, outputs: Outputs) -> InputArray:
        """Returns the targets' values (1, targets) at the step after outputs (1,), and records them."""
        self._last = self._sampler(outputs)
        self._values += self._last.tobytes()
        self._steps += 1
        return self._last

    def next_inputs(self) -> InputArray:
        """Returns the input (1, features) of the last recorded values and that step's future covariates."""
        future = None if self._future is None else self._future[self._steps - 1 : self._steps]
        return self._model.next_inputs(self._last, future)

    def __call__(self, outputs: Outputs) -> InputArray:
        """Returns the input (1, features) of the step after outputs (1,)."""
        self.next_targets(outputs)
        return self.next_inputs()

    def path(self) -> InputArray:
        """Returns the recorded values (steps, targets)."""
        return np.frombuffer(self._values, self._model.input_dtype).reshape(self._steps, -1)
