"""One path drawn step by step from a session's state, told as it goes; the session stays.

Each step is an item of its own, which shares batches with live steps: whoever stops asking stops the draw within one
step. What is drawn, and when it ends, is `onward.model.sampling.generation`.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

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
from onward.service.engine.batching.batcher import Dispatch
from onward.service.engine.forecasting.forecast_start import Ahead, Origin, Origins
from onward.service.engine.input_errors import refusing
from onward.service.errors import AbandonedError, DrawMovedError


class Draw:
    """A path to come from a session, held to all that can be known before its first step."""

    def __init__(
        self,
        origin: Origin,
        horizon: int,
        wish: GenerationOptions,
        seed: int,
        dispatch: Dispatch,
        has_left: Callable[[], bool] | None = None,
    ) -> None:
        """Raises InvalidInputError where the model does not fit the wish, NoForecastError where it cannot be drawn."""
        self.model, self.record, self.seed = origin.model, origin.record, seed
        self._dispatch, self._has_left = dispatch, has_left
        with refusing():
            start = GenerationStart(origin.outputs, origin.state, origin.read, origin.known)
            self._path = GeneratedPath(origin.model, start, horizon, wish, seed)

    def steps(self) -> Iterator[GeneratedStep | GenerationEnd]:
        """Each step, and at last the end; once. Raises NotFiniteError, AbandonedError, and what running raises."""
        with refusing():
            yield from self._path.steps(self._step)

    def _step(self, inputs: NDArray[np.float32], state: State) -> tuple[Outputs, State]:
        if self._has_left is not None and self._has_left():  # a single step ends long before anyone looks
            raise AbandonedError
        done = self._dispatch.run_free(self.model, inputs, state)
        assert done.state is not None
        return done.outputs, np.frombuffer(done.state, self.model.layout.dtype)


class Draws:
    def __init__(self, origins: Origins, dispatch: Dispatch) -> None:
        self._origins, self._dispatch = origins, dispatch

    def begin(
        self,
        tenant: str,
        session_id: str,
        ahead: Ahead,
        wish: GenerationOptions,
        *,
        seed: int | None = None,
        since: tuple[int, int] | None = None,
        has_left: Callable[[], bool] | None = None,
    ) -> Draw:
        """since: the step and the revision of the session when the draw that is gone on with began.

        Raises as `Origins.of` does, DrawMovedError, and InvalidInputError where the model does not fit the wish.
        """
        origin = self._origins.of(tenant, session_id, ahead, has_left)
        if since is not None and since[1] != origin.record.revision:
            raise DrawMovedError(session_id, since[0], origin.record.step)
        return Draw(origin, ahead.horizon, wish, new_seed() if seed is None else seed, self._dispatch, has_left)
