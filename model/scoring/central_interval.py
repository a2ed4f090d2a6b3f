"""What a head that predicts numbers says of where the next ones lie: a centre, a scale, and a central interval.

Arrays are (..., targets) in the data's units; what was said is by output. Knows nothing of sessions.
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
"""What was said, by output."""
Floats = NDArray[np.float64]

LEVELS = (0.1, 0.9)
"""Of the quantiles between which a prediction's interval lies; a head that has others only: its outermost."""
_NORMAL = NormalDist().inv_cdf(LEVELS[1])
_LEAST = float(np.finfo(np.float32).tiny)


class CentralInterval:
    def __init__(self, head: Head) -> None:
        self._kind, self._centre = head.kind, head.outputs[0]
        self._places = (0, len(head.levels) - 1)
        self._df, self._t = np.zeros(0), np.zeros(0)
        self.level: float | None = None
        """The share that its interval is to hold; None where it says none."""
        if distribution.has_distribution(head):
            low, high = LEVELS
            if self._kind == "quantiles":
                if set(LEVELS) <= set(head.levels):
                    self._places = (head.levels.index(low), head.levels.index(high))
                low, high = (head.levels[place] for place in self._places)
            self.level = round(high - low, 9)

    def centre(self, said: Named | Outputs) -> NDArray[Any]:
        return said[self._centre]

    def reach(self, said: Named | Outputs) -> tuple[NDArray[Any], NDArray[Any]]:
        """How far the interval reaches below the centre and above it; for heads that have a level."""
        if self._kind == "quantiles":
            low, high = (said["quantiles"][..., place] for place in self._places)
            return self.centre(said) - low, high - self.centre(said)
        half = said["std"] * _NORMAL if self._kind == "gaussian" else said["scale"] * self._student(said["df"])
        return half, half

    def scale(self, said: Named | Outputs) -> Floats:
        """The unit of errors: the deviation or scale, half the interval between quantiles, or 1 of a point. Above 0."""
        match self._kind if self.level is not None else "point":
            case "gaussian":
                spread = said["std"]
            case "student_t":
                spread = said["scale"]
            case "quantiles":
                low, high = (said["quantiles"][..., place] for place in self._places)
                spread = (high - low) / 2
            case _:
                spread = np.ones_like(self.centre(said))
        return np.maximum(spread, _LEAST, dtype=np.float64)

    def _student(self, df: NDArray[np.float32]) -> Floats:
        """The quantile of each one's degrees of freedom. They are the same at each step, and so found once."""
        first = df.reshape(-1, df.shape[-1])[0]
        if not np.array_equal(first, self._df):
            self._df, self._t = first.copy(), distribution.student_t_quantile(LEVELS[1], first.astype(np.float64))
        if (df == self._df).all():
            return self._t
        return distribution.student_t_quantile(LEVELS[1], df.astype(np.float64))
