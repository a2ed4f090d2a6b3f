"""The central interval of a head that predicts numbers: its centre, its scale and its bounds.

Arrays are (..., targets) in the data's units; predictions are named by output. Knows nothing of sessions.
"""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model import distribution
from onward.model.manifest import Head
from onward.model.runner import Outputs

Named = Mapping[str, NDArray[Any]]
"""A prediction's arrays by output."""
Floats = NDArray[np.float64]

LEVELS = (0.1, 0.9)
"""The levels of an interval's bounds; a head without these two levels uses its outermost ones."""
_NORMAL = NormalDist().inv_cdf(LEVELS[1])
_LEAST = float(np.finfo(np.float32).tiny)


class CentralInterval:
    """The central interval of one head's predictions."""

    def __init__(self, head: Head) -> None:
        self._kind, self._centre = head.kind, head.outputs[0]
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

    def centre(self, predictions: Named | Outputs) -> NDArray[Any]:
        """Returns the predictions' centre, which a rollout feeds back."""
        return predictions[self._centre]

    def reach(self, predictions: Named | Outputs) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns the distances of the lower and the upper bound from the centre, in double precision.

        Only for heads with a level.
        """
        if self._kind == "quantiles":
            low, high = (predictions["quantiles"][..., index].astype(np.float64) for index in self._bounds)
            return self.centre(predictions) - low, high - self.centre(predictions)
        half = (
            predictions["std"].astype(np.float64) * _NORMAL
            if self._kind == "gaussian"
            else predictions["scale"] * self._student_t_quantile(predictions["df"])
        )
        return half, half

    def reach_of_row(self, predictions: Outputs) -> tuple[list[float], list[float]]:
        """Returns what `reach` does for one row (1,), as lists (targets,)."""
        if self._kind == "gaussian":  # at less cost than numpy
            half = [deviation * _NORMAL for deviation in predictions["std"][0].tolist()]
            return half, half
        below, above = self.reach(predictions)
        return below[0].tolist(), above[0].tolist()

    def scale(self, predictions: Named | Outputs) -> Floats:
        """Returns the unit of errors, above 0: deviation or scale, half the interval of quantiles, or 1 for points."""
        match self._kind if self.level is not None else "point":
            case "gaussian":
                spread = predictions["std"]
            case "student_t":
                spread = predictions["scale"]
            case "quantiles":
                low, high = (predictions["quantiles"][..., index] for index in self._bounds)
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
