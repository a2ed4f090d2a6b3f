"""A client's inputs as arrays: by the rules of `onward.model.inputs`, at most so many steps a call, and with the
service's errors where they do not fit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import Inputs, to_array
from onward.model.runner import StepModel
from onward.service.engine.input_errors import refusing
from onward.service.errors import Fault, InvalidInputError

__all__ = ["Inputs", "Intake", "array_of"]


@dataclass(frozen=True, slots=True)
class Intake:
    max_steps: int

    def limit(self, steps: int, field: str, count: str) -> None:
        """Raises InvalidInputError where a call takes more `steps` in all than one may; `count` says what they are."""
        if steps > self.max_steps:
            message = (
                f"{count} are {steps} steps; at most {self.max_steps} a call, so ask for less, or in several calls"
            )
            raise InvalidInputError(Fault(field, message))

    def array(self, model: StepModel, inputs: Inputs, field: str = "inputs") -> NDArray[np.float32]:
        """(steps, features). Raises InvalidInputError."""
        _, array = self.measured(model, inputs, field)
        return array_of(model, inputs, field) if array is None else array

    def measured(
        self, model: StepModel, inputs: Inputs, field: str = "inputs"
    ) -> tuple[int, NDArray[np.float32] | None]:
        """How many steps these are, and them (steps, features) where they had to be read for that.

        Raises InvalidInputError.
        """
        array = array_of(model, inputs, field) if isinstance(inputs, bytes) else None
        length = len(inputs) if array is None else len(array)
        if length > self.max_steps:
            raise InvalidInputError(Fault(field, f"at most {self.max_steps} steps a call, not {length}"))
        return length, array


def array_of(model: StepModel, inputs: Inputs, field: str = "inputs") -> NDArray[np.float32]:
    """(steps, features), see `onward.model.inputs.to_array`. Raises InvalidInputError, naming the step and the
    feature.
    """
    with refusing():
        return to_array(inputs, model.manifest.features, field)
