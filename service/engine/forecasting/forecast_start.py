"""Where predictions are rolled forward from: a session's state, or that after inputs which it has not had.

Whether a model can be rolled forward, and what it must be told for that, is `onward.model.sampling.rollout`. The
session stays.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.runner import Outputs, StepModel
from onward.model.sampling import rollout
from onward.model.state import State
from onward.service.engine.batching.batcher import Dispatch
from onward.service.engine.batching.model_call import finite
from onward.service.engine.input_errors import refusing
from onward.service.engine.input_parsing import Inputs, Intake
from onward.service.engine.models import Models, state_of
from onward.service.engine.sessions.lifecycle import Lives
from onward.service.errors import Fault, InvalidInputError, NotFiniteError
from onward.service.store.record import Record


class Ahead(NamedTuple):
    """What a client wants rolled forward: so many steps, after `inputs` that the session has not had, with what is not
    predicted as `future` says it is at each step that is fed back.
    """

    horizon: int
    inputs: Inputs | None = None
    future: Inputs | None = None


class Origin(NamedTuple):
    """`record` is the session's. outputs, state: (1,) what the model says and holds after `read` (steps, features).

    known: (horizon - 1 or more, others) the features that are not predicted, None where all are.
    """

    model: StepModel
    record: Record
    read: NDArray[np.float32]
    outputs: Outputs
    state: State
    known: NDArray[np.float32] | None


class Origins:
    def __init__(self, lives: Lives, models: Models, intake: Intake, dispatch: Dispatch, *, max_horizon: int) -> None:
        self._lives, self._models, self._intake, self._dispatch = lives, models, intake, dispatch
        self._max_horizon = max_horizon

    def of(self, tenant: str, session_id: str, ahead: Ahead, has_left: Callable[[], bool] | None = None) -> Origin:
        """The session's state, or that after `ahead.inputs`.

        Raises as `Lives.session` does, ModelGoneError, NoForecastError, InvalidInputError, NotFiniteError, and what
        running raises.
        """
        record = self._lives.session(tenant, session_id).record
        model = self._models.of(record)
        self.hold(model, ahead.horizon)
        if ahead.future is not None and len(ahead.future) > self._max_horizon:
            raise InvalidInputError(Fault("future", f"at most {self._max_horizon} steps; horizon - 1 are read"))
        with refusing():
            known = rollout.future_covariates(model.manifest, ahead.horizon, ahead.future)
        state = state_of(model, record)
        if ahead.inputs is None:
            outputs, read = model.last_prediction(state), np.zeros((0, len(model.features)), np.float32)
        else:
            read = self._intake.array(model, ahead.inputs)
            done = self._dispatch.run_free(model, read, state, has_left=has_left)
            assert done.state is not None
            outputs, state = done.outputs[-1:], np.frombuffer(done.state, model.layout.dtype)
        if not finite(outputs):
            raise NotFiniteError
        return Origin(model, record, read, outputs, state, known)

    def hold(self, model: StepModel, horizon: int) -> None:
        """Raises NoForecastError or InvalidInputError where the model cannot be rolled so far."""
        if horizon > self._max_horizon:
            raise InvalidInputError(Fault("horizon", f"at most {self._max_horizon}"))
        with refusing():
            rollout.require_rollout(model.manifest)
