"""A client's inputs as arrays: by the rules of `onward.model.inputs`, at most so many steps a call, and with the
service's errors where they do not fit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import Inputs, arrays, to_array
from onward.model.runner import StepModel
from onward.service.engine.event_loop import by_turns
from onward.service.engine.input_errors import refusing
from onward.service.errors import Fault, InvalidInputError

__all__ = ["Inputs", "Intake", "array_of"]

PIECE = 4096
"""Steps that are read at once."""
LONG = 256
"""Inputs of more steps are read before they wait in a queue, so that no batch is held up while they are."""


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
        is_packed = isinstance(inputs, bytes)
        length = len(inputs) // (4 * len(model.features)) if is_packed else len(inputs)
        if length > self.max_steps:
            raise InvalidInputError(Fault(field, f"at most {self.max_steps} steps a call, not {length}"))
        if not is_packed and length <= LONG:
            return length, None
        array = array_of(model, inputs, field)
        return len(array), array


def array_of(model: StepModel, inputs: Inputs, field: str = "inputs") -> NDArray[np.float32]:
    """(steps, features), see `onward.model.inputs.to_array`. Raises InvalidInputError, naming the step and the
    feature.
    """
    features = model.manifest.features
    with refusing():
        if len(inputs) <= PIECE:
            return to_array(inputs, features, field)
        return np.concatenate(list(by_turns(arrays(inputs, features, field, PIECE), 1)))
