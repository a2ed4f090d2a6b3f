"""The surprises of a session: their summary, and the part of them that anomalies compare.

The summary is their number, their mean, and an exponentially weighted mean.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model import distribution, transforms
from onward.model.manifest import Head
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


def comparable(head: Head, actual: NDArray[Any], surprise: NDArray[Any]) -> NDArray[Any]:
    """Returns the surprises (...) of the actual values (..., targets) as anomalies compare them with one another.

    A density in the units of the data falls as a level rises whose logarithm is predicted, whatever the value is. The
    density of the transformed value does not.
    """
    if not head.transforms or head.score != "negative_log_likelihood":
        return surprise
    transformed = distribution.to_transformed_units(head, actual.astype(np.float64))
    steepness = transforms.log_derivative(transforms.NUMPY, head.transforms, transformed)
    return np.asarray(surprise - steepness.sum(axis=-1), np.float32)


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
