"""Parsing of a client's inputs into arrays: one request's, or those of a whole batch in one go.

Owns how many steps one call may have, and which of the service's errors a client gets for inputs that do not fit. The
rules themselves are those of `onward.model.inputs`. Knows nothing of records or of batches of rows.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np

from onward.model.inputs import InputArray, InputError, Inputs, arrays, plain_numbers, to_array
from onward.model.runner import StepModel
from onward.model.sampling.rollout import NonFiniteError, RolloutUnsupportedError
from onward.service.engine.batching.batch_row import PendingRequest
from onward.service.engine.event_loop import in_loop_turns
from onward.service.errors import Fault, InvalidInputError, NoForecastError, NotFiniteError, without_frames

PIECE = 4096
"""The number of steps that are parsed in one turn of the event loop."""
LONG = 256
"""Inputs of more steps than this are parsed before they wait in a queue, so that parsing them holds up no batch."""


class _ServiceErrors(AbstractContextManager[None]):
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (InputError, RolloutUnsupportedError, NonFiniteError)):
            error.with_traceback(None)  # the error may be stored as the cause of the new one, but without its frames
        if isinstance(error, InputError):
            raise InvalidInputError(*(Fault(*fault) for fault in error.faults)) from error
        if isinstance(error, RolloutUnsupportedError):
            raise NoForecastError(error.model, error.why) from error
        if isinstance(error, NonFiniteError):
            raise NotFiniteError from error


_SERVICE_ERRORS = _ServiceErrors()


def as_service_errors() -> AbstractContextManager[None]:
    """Translates the errors of `onward.model` raised in its block.

    InputError becomes InvalidInputError, RolloutUnsupportedError NoForecastError, and NonFiniteError NotFiniteError.
    """
    return _SERVICE_ERRORS


@dataclass(frozen=True, slots=True)
class InputParser:
    """Parses inputs, of at most `max_steps` steps in one call."""

    max_steps: int

    def check_total(self, steps: int, field: str, description: str) -> None:
        """Raises InvalidInputError if a call has more `steps` in all than `max_steps`.

        `description` names what was counted, as the subject of the error's message.
        """
        if steps > self.max_steps:
            message = (
                f"{description} are {steps} steps; at most {self.max_steps} a call, so ask for less, or in several "
                "calls"
            )
            raise InvalidInputError(Fault(field, message))

    def parse(self, model: StepModel, inputs: Inputs, field: str = "inputs") -> InputArray:
        """Returns the inputs as an array (steps, features). Raises InvalidInputError."""
        _, array = self.measure(model, inputs, field)
        return parse_inputs(model, inputs, field) if array is None else array

    def measure(self, model: StepModel, inputs: Inputs, field: str = "inputs") -> tuple[int, InputArray | None]:
        """Returns the number of steps, and the array (steps, features) if the inputs had to be parsed already.

        Bytes and inputs of more than `LONG` steps are parsed here. Raises InvalidInputError.
        """
        is_packed = isinstance(inputs, bytes)
        length = len(inputs) // (model.input_dtype.itemsize * len(model.features)) if is_packed else len(inputs)
        if length > self.max_steps:
            raise InvalidInputError(Fault(field, f"at most {self.max_steps} steps a call, not {length}"))
        if not is_packed and length <= LONG:
            return length, None
        array = parse_inputs(model, inputs, field)
        return len(array), array


def parse_inputs(model: StepModel, inputs: Inputs, field: str = "inputs") -> InputArray:
    """Returns the inputs as an array (steps, features), see `onward.model.inputs.to_array`.

    Raises InvalidInputError, which names the step and the feature at fault.
    """
    features = model.manifest.features
    if (
        model.has_plain_numbers
        and len(inputs) <= PIECE
        and (numbers := plain_numbers(inputs, len(features), model.input_dtype, model.above)) is not None
    ):
        return numbers
    with as_service_errors():
        if len(inputs) <= PIECE:
            return to_array(inputs, features, field, dtype=model.input_dtype)
        return np.concatenate(
            list(in_loop_turns(arrays(inputs, features, field, dtype=model.input_dtype, at_once=PIECE), 1))
        )


def parse_batch(model: StepModel, requests: Sequence[PendingRequest]) -> None:
    """Sets `inputs` of requests that have none yet; a request whose inputs do not fit gets the error as its outcome.

    The inputs of all requests are parsed together where they have the same form: parsing a single step alone costs more
    than the step does.
    """
    raw: list[Any] = [pending.request.inputs for pending in requests]
    forms = {type(inputs[0]) if inputs else None for inputs in raw}
    if len(raw) > 1 and (forms == {list} or forms <= {int, float}):
        try:
            joined = parse_inputs(model, list(chain.from_iterable(raw)))
        except Exception:  # noqa: BLE001, S110  (the request at fault is found below)
            pass
        else:
            start = 0
            for pending in requests:
                pending.inputs = joined[start : start + pending.length]
                start += pending.length
            return
    for pending in requests:
        parse_alone(model, pending)


def parse_alone(model: StepModel, pending: PendingRequest) -> None:
    """Does what `parse_batch` does for one request that has no `inputs` yet."""
    inputs = pending.request.inputs
    try:
        if model.has_plain_numbers:  # at less cost
            pending.inputs = plain_numbers(inputs, len(model.features), model.input_dtype, model.above)
        if pending.inputs is None:
            pending.inputs = parse_inputs(model, inputs)
    except Exception as error:  # noqa: BLE001  (any error concerns this request alone)
        pending.outcome = without_frames(error)
