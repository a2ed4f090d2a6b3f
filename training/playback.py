"""A series played to a bundle as one session, by the runner that serves, and rolled forward from there.

Owns how a series is read. Knows nothing of scores or of torch.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from model.runner import Outputs, StepModel
from model.state import State
from training import predictive
from training.scores import Array

CHUNK = 256
"""Steps a call."""


def session(model: StepModel, values: NDArray[np.float32], origins: Iterable[int] = ()) -> tuple[Outputs, State]:
    """(time,) outputs of one session over values (time, features), and its states (origins,) after those steps."""
    stops = {int(origin) + 1 for origin in origins}
    edges = sorted({0, len(values), *range(0, len(values), CHUNK), *stops})
    state, parts, states = model.layout.initial(1), [], [model.layout.initial(0)]
    for start, stop in pairwise(edges):
        outputs, state = model.run_row(values[start:stop], state)
        parts.append(outputs)
        if stop in stops:
            states.append(state)
    return np.concatenate(parts), np.concatenate(states)


def rolls(model: StepModel) -> bool:
    """Whether it can be rolled forward in a backtest: all that is not predicted is known in advance."""
    manifest = model.manifest
    unknown = [name for name in manifest.future if manifest.feature(name).role == "observed"]
    return not unknown and manifest.forecasts and not manifest.head.ranks


def roll(model: StepModel, state: State, future: NDArray[np.float32]) -> Array:
    """(rows, horizon, targets) forecasts from states (rows,): each prediction is fed back as the next input.

    future: (rows, horizon, features), of which all but the targets are read.
    """
    rows, horizon = future.shape[:2]
    head = model.manifest.head
    said = np.zeros((rows, horizon, len(head.targets)))
    if not rows:
        return said
    places = [model.features.index(target) for target in head.targets]
    outputs, ones = model.last_prediction(state), np.ones(rows, np.int32)
    for step in range(horizon):
        if step:
            inputs = future[:, step - 1 : step].copy()
            inputs[:, 0, places] = model.fed_back(outputs)
            following, state = model.run(inputs, ones, state)
            outputs = following[:, 0]
        said[:, step] = predictive.centre(head, outputs)
    return said
