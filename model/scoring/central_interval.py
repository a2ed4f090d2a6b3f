"""The central interval of a head that predicts numbers: its centre, its scale and its bounds.

Arrays are (..., targets) in the data's units; predictions are named by output. Of transformed targets, errors and
widths in scales are those in transformed units. Knows nothing of sessions.
"""

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model import distribution
from onward.model.distribution import Named
from onward.model.manifest import Head
from onward.model.runner import Outputs

Floats = NDArray[np.float64]

LEVELS = (0.1, 0.9)
"""The levels of an interval's bounds; a head without these two levels uses its outermost ones."""
_NORMAL = NormalDist().inv_cdf(LEVELS[1])
_LEAST = float(np.finfo(np.float32).tiny)


class CentralInterval:
    """The central interval of one head's predictions."""

    def __init__(self, head: Head) -> None:
        self._head, self._kind, self._centre = head, head.kind, head.outputs[0]
        self._bounds = (0, len(head.levels) - 1)
        self._df, self._t = np.zeros(0), np.zeros(0)
        self.level: float | None = None
        """The nominal coverage of the interval; None if the head has no distribution."""
        if distribution.has_distribution(head):
            low, high = LEVELS
            if self._kind == "quantiles":
                if set(LEVELS) <= set(head.levels):
                    self._bounds = (head.levels.index(low), head.levels.index(high))
                low, high = (head.levels[index] for index in self._bounds)
            self.level = round(high - low, 9)

    def centre(self, predictions: Named) -> NDArray[Any]:
        """Returns the predictions' centre, which a rollout feeds back."""
        return predictions[self._centre]

    def reach(self, predictions: Named) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns the distances of the lower and the upper bound from the centre, in double precision.

        Only for heads with a level.
        """
        if self._kind == "quantiles":
            low, high = (predictions["quantiles"][..., index].astype(np.float64) for index in self._bounds)
            return self.centre(predictions) - low, high - self.centre(predictions)
        spread = distribution.location_and_scale(self._head)[1]
        half = (
            predictions[spread].astype(np.float64) * _NORMAL
            if self._kind == "gaussian"
            else predictions[spread] * self._student_t_quantile(predictions["df"])
        )
        if not self._head.transforms:
            return half, half
        centre, (low, high) = self.centre(predictions), self._around(predictions, half)
        return centre - low, high - centre

    def reach_of_row(self, predictions: Outputs) -> tuple[list[float], list[float]]:
        """Returns what `reach` does for one row (1,), as lists (targets,)."""
        if self._kind == "gaussian" and not self._head.transforms:  # at less cost than numpy
            half = [deviation * _NORMAL for deviation in predictions["std"][0].tolist()]
            return half, half
        below, above = self.reach(predictions)
        return below[0].tolist(), above[0].tolist()

    def errors_in_scales(self, predictions: Named, errors: Floats) -> Floats:
        """Returns the absolute errors of predictions, in scales; errors: actual values less the centre."""
        if self._head.transforms:
            actual = distribution.to_transformed_units(self._head, self.centre(predictions) + errors)
            errors = actual - distribution.location(self._head, predictions)
        return np.abs(errors) / self.scale(predictions)

    def bounds(self, predictions: Named, widths: Floats) -> tuple[Floats, Floats]:
        """Returns the bounds of intervals of so many scales to either side; infinite ones of infinitely many."""
        low, high = self._around(predictions, widths * self.scale(predictions))
        return np.where(np.isinf(widths), -np.inf, low), np.where(np.isinf(widths), np.inf, high)

    def _around(self, predictions: Named, half: Floats) -> tuple[Floats, Floats]:
        """Returns the bounds of intervals whose half width is given in transformed units."""
        centre = distribution.location(self._head, predictions)
        low, high = distribution.to_data_units(self._head, np.stack((centre - half, centre + half)))
        return low, high

    def scale(self, predictions: Named) -> Floats:
        """Returns the unit of errors, above 0: deviation or scale, half the interval of quantiles, or 1 for points."""
        match self._kind if self.level is not None else "point":
            case "gaussian" | "student_t":
                spread = predictions[distribution.location_and_scale(self._head)[1]]
            case "quantiles":
                low, high = (predictions["quantiles"][..., index] for index in self._bounds)
                if self._head.transforms:
                    low, high = (
                        distribution.to_transformed_units(self._head, bound.astype(np.float64)) for bound in (low, high)
                    )
                spread = (high - low) / 2
            case _:
                spread = np.ones_like(self.centre(predictions))
        return np.maximum(spread, _LEAST, dtype=np.float64)

    def _student_t_quantile(self, df: NDArray[np.float32 | np.float64]) -> Floats:
        """Returns the quantiles of Student's t; cached for the last degrees of freedom, which rarely change."""
        first = df.reshape(-1, df.shape[-1])[0]
        if not np.array_equal(first, self._df):
            self._df, self._t = first.copy(), distribution.student_t_quantile(LEVELS[1], first.astype(np.float64))
        if (df == self._df).all():
            return self._t
        return distribution.student_t_quantile(LEVELS[1], df.astype(np.float64))
