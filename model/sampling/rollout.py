"""The conditions of a rollout: whether predictions can be fed back, and which future covariates that needs.

Owns the error messages. Knows nothing of sessions: the service and the local client apply the same rules.
"""

import numpy as np

from onward.model.inputs import Fault, InputArray, InputError, Inputs, to_array
from onward.model.manifest import Manifest


class RolloutUnsupportedError(ValueError):
    """The model cannot be rolled forward."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"model {model!r} cannot be rolled forward: {why}")
        self.model, self.why = model, why


class NonFiniteError(ArithmeticError):
    """The drawn values led to numbers that are not finite."""


def require_rollout(manifest: Manifest) -> None:
    """Raises RolloutUnsupportedError if predictions cannot be fed back."""
    if not manifest.can_forecast:
        label = manifest.head.kind == "label"
        why = "it predicts a label, not its inputs" if label else "it does not keep its last prediction"
        raise RolloutUnsupportedError(manifest.name, why)


def require_rollout_without_future(manifest: Manifest) -> None:
    """Raises RolloutUnsupportedError if a rollout is impossible or needs future covariates, which are not given."""
    require_rollout(manifest)
    if manifest.future_covariates:
        why = f"it does not predict {', '.join(manifest.future_covariates)}; forecast a session, which takes `future`"
        raise RolloutUnsupportedError(manifest.name, why)


def future_covariates(manifest: Manifest, horizon: int, future: Inputs | None) -> InputArray | None:
    """Returns the future covariates (at least horizon - 1, covariates) of the steps that are fed back.

    Returns None if the model predicts all of its features. Raises InputError if `future` is missing, too short, not
    needed, or does not fit the features.
    """
    names, fed_back_steps, dtype = manifest.future_covariates, horizon - 1, np.dtype(manifest.dtype)
    if not names:
        if future is not None:
            raise InputError(Fault("future", "the model predicts all of its features"))
        return None
    if future is None and fed_back_steps:
        message = f"the model does not predict {', '.join(names)}; say what they are at {fed_back_steps} steps"
        raise InputError(Fault("future", message))
    if future is None:
        return np.zeros((0, len(names)), dtype)
    values = to_array(future, [manifest.feature(name) for name in names], "future", dtype=dtype)
    if len(values) < fed_back_steps:
        message = f"{len(values)} steps of {', '.join(names)}; a horizon of {horizon} needs {fed_back_steps}"
        raise InputError(Fault("future", message))
    return values
