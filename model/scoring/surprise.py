"""The summary of a session's surprises: their number, their mean, and an exponentially weighted mean."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from onward.model.runner import Outputs, StepModel

_RECENT_WEIGHT = 0.1
"""The weight of the newest surprise in the exponentially weighted mean."""

SurpriseMeans = tuple[int, float, float]
"""The number of surprises, their mean, and their exponentially weighted mean."""
NO_SURPRISES: SurpriseMeans = (0, 0.0, 0.0)


def surprises(model: StepModel, outputs: Outputs) -> list[float]:
    """Returns the surprises (steps,) of outputs (steps,); empty if the model has none."""
    name = model.manifest.head.surprise
    return [] if name is None else outputs[name].tolist()


def update_means(before: SurpriseMeans, values: Iterable[float]) -> SurpriseMeans:
    """Returns the means after further surprises, which are added one after another."""
    count, mean, recent = before
    for surprise in values:
        count += 1
        mean += (surprise - mean) / count
        recent = surprise if count == 1 else recent + _RECENT_WEIGHT * (surprise - recent)
    return count, mean, recent


def update_columns(
    counts: NDArray[np.uint64], means: NDArray[np.float64], recents: NDArray[np.float64], values: NDArray[np.float32]
) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns what `update_means` does for one more surprise of each row, all (rows,), with the same bits."""
    counts, surprise = counts + np.uint64(1), values.astype(np.float64)
    means = means + (surprise - means) / counts
    return counts, means, np.where(counts == 1, surprise, recents + _RECENT_WEIGHT * (surprise - recents))
