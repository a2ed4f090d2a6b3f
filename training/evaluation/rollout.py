"""Runs a series through a bundle as a single session, with the runner that serves, and rolls out forecasts from there.

Owns how a series is divided into calls. Knows nothing of metrics or of torch.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from onward.model.inputs import InputArray
from onward.model.runner import Outputs, StepModel
from onward.model.state import State
from onward.training.evaluation import probabilistic_metrics
from onward.training.evaluation.point_metrics import Array

CHUNK = 256
"""The most steps of a call."""


def session(model: StepModel, values: InputArray, origins: Iterable[int] = ()) -> tuple[Outputs, State]:
    """Returns (time,) outputs of a session over values (time, features), and its states (origins,) at the origins."""
    stops = {int(origin) + 1 for origin in origins}
    edges = sorted({0, len(values), *range(0, len(values), CHUNK), *stops})
    state, parts, states = model.layout.initial(1), [], [model.layout.initial(0)]
    for start, stop in pairwise(edges):
        outputs, state = model.run_row(values[start:stop], state)
        parts.append(outputs)
        if stop in stops:
            states.append(state)
    return np.concatenate(parts), np.concatenate(states)


def can_roll_out(model: StepModel) -> bool:
    """True if a backtest can feed predictions back: every feature is predicted or known in advance."""
    manifest = model.manifest
    unknown = [name for name in manifest.future_covariates if manifest.feature(name).role == "observed"]
    return not unknown and manifest.can_forecast and not manifest.head.ranks_categories


def roll_out(model: StepModel, state: State, future: InputArray) -> Array:
    """Returns (rows, horizon, targets) forecasts from states (rows,), with each prediction fed back as the next input.

    future: (rows, horizon, features); every feature except the targets is read from it.
    """
    rows, horizon = future.shape[:2]
    head = model.manifest.head
    forecasts = np.zeros((rows, horizon, len(head.targets)))
    if not rows:
        return forecasts
    targets = [model.features.index(target) for target in head.targets]
    outputs, ones = model.last_prediction(state), np.ones(rows, np.int32)
    for step in range(horizon):
        if step:
            inputs = future[:, step - 1 : step].copy()
            inputs[:, 0, targets] = model.feedback(outputs)
            following, state = model.run(inputs, ones, state)
            outputs = following[:, 0]
        forecasts[:, step] = probabilistic_metrics.centre(head, outputs)
    return forecasts
