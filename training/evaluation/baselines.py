"""The naive forecasts that a network must beat to be worth its cost.

The source is Hyndman and Athanasopoulos 2021, "Forecasting: principles and practice", section 5.2. Knows nothing of
models.
"""

import numpy as np
from numpy.typing import NDArray

from onward.training.evaluation.point_metrics import Array

NAMES = {
    "last_value": "last value",
    "seasonal_naive": "seasonal naive",
    "drift": "drift",
    "mean": "mean",
}
"""The label of each naive forecast in tables and reports."""


def forecasts(
    values: Array, origins: NDArray[np.intp], horizon: int, period: int | None, train_mean: Array
) -> dict[str, Array]:
    """Returns by name the (origins, horizon, targets) forecasts that each naive method makes from each origin.

    values: (time, targets); origins: indices of the last observed steps, each at least 1; train_mean: (targets,).
    last_value repeats the last step. seasonal_naive repeats the step one period before, or two periods before if that
    step is not observed yet, and so on. drift continues the line through the first and the last step. mean is the
    mean of the training part.
    """
    ahead = np.arange(1, horizon + 1)
    last = values[origins][:, np.newaxis]
    by_name = {"last_value": np.repeat(last, horizon, axis=1)}
    if period is not None:
        back = period * -(-ahead // period)
        by_name["seasonal_naive"] = values[origins[:, np.newaxis] + ahead - back]
    slope = (last - values[0]) / origins[:, np.newaxis, np.newaxis]
    by_name["drift"] = last + slope * ahead[:, np.newaxis]
    by_name["mean"] = np.broadcast_to(train_mean, by_name["last_value"].shape)
    return by_name
