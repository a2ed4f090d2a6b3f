"""The start of a forecast: a session's state, or the state after further inputs that the session has not consumed.

Whether a model can be rolled forward, and which future covariates that takes, is decided by
`onward.model.sampling.rollout`. The session does not change.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onward.model.finite import finite
from onward.model.inputs import InputArray, Inputs
from onward.model.listed_rankings import require_listed
from onward.model.runner import Outputs, StepModel
from onward.model.sampling import rollout
from onward.model.state import State
from onward.service.engine.batching.batcher import Batchers
from onward.service.engine.input_parsing import InputParser, as_service_errors
from onward.service.engine.models import Models, state_of
from onward.service.engine.sessions.lifecycle import SessionLifecycle
from onward.service.errors import Fault, InvalidInputError, NotFiniteError
from onward.service.store.record import Record


class ForecastRequest(NamedTuple):
    """A forecast as a client asks for it.

    horizon: the number of steps. inputs: consumed before the forecast starts, but not by the session. future: the
    future covariates, the features that are not predicted, at each step that is fed back. listed_only: rankings are of
    listed categories, see `onward.model.listed_rankings`.
    """

    horizon: int
    inputs: Inputs | None = None
    future: Inputs | None = None
    listed_only: bool = False


class ForecastStart(NamedTuple):
    """The start of a forecast from the session with this `record`.

    inputs: (steps, features) that were consumed beyond the session's own. outputs, state: (1,) after these inputs.
    covariates: (horizon - 1 or more, covariates) the future covariates; None if every feature is predicted.
    """

    model: StepModel
    record: Record
    inputs: InputArray
    outputs: Outputs
    state: State
    covariates: InputArray | None


class ForecastStarts:
    def __init__(
        self, sessions: SessionLifecycle, models: Models, parser: InputParser, batchers: Batchers, *, max_horizon: int
    ) -> None:
        self._sessions, self._models, self._parser, self._batchers = sessions, models, parser, batchers
        self._max_horizon = max_horizon

    def prepare(
        self, tenant: str, session_id: str, request: ForecastRequest, has_left: Callable[[], bool] | None = None
    ) -> ForecastStart:
        """Returns the session's state, or the state after `request.inputs`.

        Raises as `SessionLifecycle.get` does, ModelGoneError, NoForecastError, InvalidInputError, NotFiniteError, and
        the errors of a step.
        """
        record = self._sessions.get(tenant, session_id).record
        model = self._models.of(record)
        self.check(model, request.horizon, listed_only=request.listed_only)
        if request.future is not None and len(request.future) > self._max_horizon:
            raise InvalidInputError(Fault("future", f"at most {self._max_horizon} steps; horizon - 1 are read"))
        with as_service_errors():
            covariates = rollout.future_covariates(model.manifest, request.horizon, request.future)
        state = state_of(model, record)
        if request.inputs is None:
            outputs, inputs = model.last_prediction(state), np.zeros((0, len(model.features)), model.input_dtype)
        else:
            inputs = self._parser.parse(model, request.inputs)
            result = self._batchers.run_standalone(model, inputs, state, has_left=has_left)
            assert result.state is not None
            outputs, state = result.outputs[-1:], np.frombuffer(result.state, model.layout.dtype)
        if not finite(outputs):
            raise NotFiniteError
        return ForecastStart(model, record, inputs, outputs, state, covariates)

    def check(self, model: StepModel, horizon: int, *, listed_only: bool = False) -> None:
        """Raises NoForecastError or InvalidInputError if the model cannot be rolled forward by that many steps."""
        if horizon > self._max_horizon:
            raise InvalidInputError(Fault("horizon", f"at most {self._max_horizon}"))
        with as_service_errors():
            rollout.require_rollout(model.manifest)
            if listed_only:
                require_listed(model)
