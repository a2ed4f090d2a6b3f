"""Generation: a path is drawn step by step from a session's state, and each step is returned as it is drawn.

Each step is a work item of its own, which shares batches with live steps; generation ends within one step of a client
that has disconnected. What is drawn, and when the path ends, is decided by `onward.model.sampling.generation`. The
session does not change.
"""

from collections.abc import Callable, Iterator

import numpy as np

from onward.model.inputs import InputArray
from onward.model.runner import Outputs
from onward.model.sampling.generation import (
    GeneratedPath,
    GeneratedStep,
    GenerationEnd,
    GenerationOptions,
    GenerationStart,
)
from onward.model.sampling.samplers import new_seed
from onward.model.state import State
from onward.service.engine.batching.batcher import Batchers
from onward.service.engine.forecasting.forecast_start import ForecastRequest, ForecastStart, ForecastStarts
from onward.service.engine.input_parsing import as_service_errors
from onward.service.errors import AbandonedError, DrawMovedError


class Generation:
    """A path to be drawn from a session. All that can be checked before its first step is checked when it is made."""

    def __init__(
        self,
        start: ForecastStart,
        request: ForecastRequest,
        options: GenerationOptions,
        seed: int,
        batchers: Batchers,
        has_left: Callable[[], bool] | None = None,
    ) -> None:
        """Raises InvalidInputError if the options do not fit the model, NoForecastError if it cannot be drawn from."""
        self.model, self.record, self.seed = start.model, start.record, seed
        self._batchers, self._has_left = batchers, has_left
        with as_service_errors():
            origin = GenerationStart(start.outputs, start.state, start.inputs, start.covariates)
            self._path = GeneratedPath(
                start.model, origin, request.horizon, options, seed, listed_only=request.listed_only
            )

    def steps(self) -> Iterator[GeneratedStep | GenerationEnd]:
        """Yields each step and at last the end. It can be called once.

        Raises NotFiniteError, AbandonedError, and the errors of a step.
        """
        with as_service_errors():
            yield from self._path.steps(self._step)

    def _step(self, inputs: InputArray, state: State) -> tuple[Outputs, State]:
        if (
            self._has_left is not None and self._has_left()
        ):  # a step is shorter than the interval at which connections are checked
            raise AbandonedError
        result = self._batchers.run_standalone(self.model, inputs, state)
        assert result.state is not None
        return result.outputs, np.frombuffer(result.state, self.model.layout.dtype)


class Generations:
    def __init__(self, starts: ForecastStarts, batchers: Batchers) -> None:
        self._starts, self._batchers = starts, batchers

    def begin(
        self,
        tenant: str,
        session_id: str,
        request: ForecastRequest,
        options: GenerationOptions,
        *,
        seed: int | None = None,
        resumed_from: tuple[int, int] | None = None,
        has_left: Callable[[], bool] | None = None,
    ) -> Generation:
        """Returns a generation from the session's state.

        resumed_from: the step and the revision of the session when the generation that is resumed began. Raises as
        `ForecastStarts.prepare` does, DrawMovedError if the session has moved since then, and InvalidInputError if the
        options do not fit the model.
        """
        start = self._starts.prepare(tenant, session_id, request, has_left)
        if resumed_from is not None and resumed_from[1] != start.record.revision:
            raise DrawMovedError(session_id, resumed_from[0], start.record.step)
        return Generation(start, request, options, new_seed() if seed is None else seed, self._batchers, has_left)
