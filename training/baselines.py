"""The naive forecasts that a network must beat to be worth its cost.

Hyndman and Athanasopoulos 2021, "Forecasting: principles and practice", section 5.2. Knows nothing of models.
"""

import numpy as np
from numpy.typing import NDArray

from training.scores import Array

NAMES = {
    "last_value": "last value",
    "seasonal_naive": "seasonal naive",
    "drift": "drift",
    "mean": "mean",
}
"""What people are told for each."""


def forecasts(
    values: Array, origins: NDArray[np.intp], horizon: int, period: int | None, train_mean: Array
) -> dict[str, Array]:
    """By name, (origins, horizon, targets): what each says at an origin of the steps after it.

    values: (time, targets); origins: indices of the last step known, at least 1; train_mean: (targets,).
    last_value: the last step. seasonal_naive: the step one period before, or two where that is not known yet, and so
    on. drift: the line through the first step and the last. mean: that of the training part.
    """
    ahead = np.arange(1, horizon + 1)
    last = values[origins][:, np.newaxis]
    told = {"last_value": np.repeat(last, horizon, axis=1)}
    if period is not None:
        back = period * -(-ahead // period)
        told["seasonal_naive"] = values[origins[:, np.newaxis] + ahead - back]
    slope = (last - values[0]) / origins[:, np.newaxis, np.newaxis]
    told["drift"] = last + slope * ahead[:, np.newaxis]
    told["mean"] = np.broadcast_to(train_mean, told["last_value"].shape)
    return told
