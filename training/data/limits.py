"""The limits of numbers: values far from those of the training part are refused, in training and in service.

Owns how limits are found and which rows of a table they refuse. `onward.model.inputs` refuses such inputs in service.
"""

import numpy as np

from onward.model.inputs import InputArray
from onward.model.manifest import Feature
from onward.model.tables.extremes import robust_deviation
from onward.model.tables.table import Table

FARTHEST = 0.1
"""The share of the training part, farthest from its median, that does not count for the deviation."""


def find(values: InputArray, deviations: float) -> tuple[float, float] | None:
    """Returns the limits by the values (rows,) of the training part, NaN where one is missing.

    They are so many deviations from the median. The deviation is that of a normal distribution with the same distances
    from the median, without the farthest tenth, so that the values which are to be refused hardly widen the limits.
    Returns None for a column that is constant.
    """
    present = values[~np.isnan(values)].astype(np.float64)
    median = float(np.median(present))
    distances = np.sort(np.abs(present - median))
    deviation = robust_deviation(distances, max(1, int((1 - FARTHEST) * len(distances))))
    return (median - deviations * deviation, median + deviations * deviation) if deviation else None


def require(table: Table, feature: Feature, column: InputArray) -> None:
    """Raises DataError, which counts the rows, if values of the column (rows,) are beyond the limits of its feature."""
    if feature.limits is None:
        return
    low, high = feature.limits
    beyond = (column < low) | (column > high)
    if beyond.any():
        raise table.error_at_all(
            beyond,
            feature.name,
            f"is beyond the limits of this column, {low:.6g} to {high:.6g}, which data.refuse_beyond sets",
            "correct the value, name it in data.missing_values if it stands for a missing one, or widen the limits",
            quoted=False,
        )


def described(features: list[Feature]) -> str:
    """Returns the limits of all features in words."""
    return ", ".join(
        f"{feature.name} {feature.limits[0]:.6g} to {feature.limits[1]:.6g}"
        for feature in features
        if feature.limits is not None
    )
