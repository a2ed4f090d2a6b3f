"""Whether a model can be rolled forward, and what it must be told for that.

Owns the words of what stands in the way. Knows nothing of sessions: the service and whoever runs a bundle in process
roll forward by these rules.
"""

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import Fault, InputError, Inputs, to_array
from onward.model.manifest import Manifest


class RolloutUnsupportedError(ValueError):
    """The model cannot be rolled forward."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"model {model!r} cannot be rolled forward: {why}")
        self.model, self.why = model, why


class NonFiniteError(ArithmeticError):
    """What was drawn led to numbers that are not finite."""


def require_rollout(manifest: Manifest) -> None:
    """Raises RolloutUnsupportedError where predictions cannot be fed back."""
    if not manifest.can_forecast:
        label = manifest.head.kind == "label"
        why = "it predicts a label, not its inputs" if label else "it does not keep its last prediction"
        raise RolloutUnsupportedError(manifest.name, why)


def require_rollout_without_future(manifest: Manifest) -> None:
    """Raises RolloutUnsupportedError where `future` would be needed, or rollout is impossible."""
    require_rollout(manifest)
    if manifest.future_covariates:
        why = f"it does not predict {', '.join(manifest.future_covariates)}; forecast a session, which takes `future`"
        raise RolloutUnsupportedError(manifest.name, why)


def future_covariates(manifest: Manifest, horizon: int, future: Inputs | None) -> NDArray[np.float32] | None:
    """(horizon - 1 or more, others) the features that are not predicted, as `future` says they are at each step that is
    fed back; None where all are predicted. Raises InputError.
    """
    names, feedback = manifest.future_covariates, horizon - 1
    if not names:
        if future is not None:
            raise InputError(Fault("future", "the model predicts all of its features"))
        return None
    if future is None and feedback:
        what = f"the model does not predict {', '.join(names)}; say what they are at {feedback} steps"
        raise InputError(Fault("future", what))
    if future is None:
        return np.zeros((0, len(names)), np.float32)
    told = to_array(future, [manifest.feature(name) for name in names], "future")
    if len(told) < feedback:
        what = f"{len(told)} steps of {', '.join(names)}; a horizon of {horizon} needs {feedback}"
        raise InputError(Fault("future", what))
    return told
