"""The mean and deviation of a session's values so far, by which its numbers are scaled.

Owns the recursion, which is written once over `onward.training.network.ops` and runs in double precision. Both moments
are updated by differences from the mean (Welford 1962; weighted: West 1979), so that nothing cancels where values are
far from zero. Older values are forgotten exponentially: the gain of a new value is 1 / count, and the count does not
grow beyond the `memory` of the configured half-life.

No single value carries the statistics away: a value beyond `BEYOND` deviations counts as if it were at that bound.
This is Huber's psi function (Huber 1964), which Gelper, Fried and Croux (2010) use for exponential smoothing. Bounded
updates alone would follow a level shift too slowly. Therefore, when `RUN` values in a row are that far away, the
statistics begin anew at the mean of these values, and keep the deviation unless these values differ by more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from onward.training.network.ops import Ops, Recursive

BEYOND = 10.0
"""The number of deviations beyond which a value is an outlier."""

RUN = 3
"""The number of outliers in a row with which the statistics begin anew."""

GUESS = 0.5
"""The deviation at a session's first value, as a share of that value's magnitude, unless the training part's is less.

It counts as one observation, so its share fades with the number of values.
"""

FLOOR = 1e-6
"""The least deviation, as a share of the training part's, so that a session of zeros can be scaled too."""

NEVER = 2.0**53
"""The memory of statistics that never forget: the largest count of values that is exact."""


def memory(half_life: float) -> float:
    """Returns the number of values of which a mean is taken: older ones lose half of their weight in half_life steps.

    half_life: in steps; 0 to forget nothing.
    """
    return 1.0 / (1.0 - 2.0 ** (-1.0 / half_life)) if half_life else NEVER


@dataclass(frozen=True, slots=True)
class RunningStatistics:
    """The recursion of one model: which statistics it carries, and how it forgets."""

    kind: Literal["causal", "mean"]
    """causal: mean and deviation of the values. mean: 1 plus the mean of their magnitudes is the deviation."""
    memory: float
    nullable: bool
    """True if values may be missing (NaN); a missing value changes nothing."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the values that a session carries for each feature, all in double precision.

        `run` is the number of outliers since the last other value, and `run_mean` their mean.
        """
        return ("count", "mean", "run", "run_mean", *(("variance",) if self.kind == "causal" else ()))

    def initial(self, mean: Tensor, std: Tensor) -> Tensor:
        """Returns the state (parts, features) before any value, from the training part's moments in doubles."""
        zero = torch.zeros_like(mean)
        if self.kind == "mean":
            return torch.stack([zero, mean.abs(), zero, zero])
        return torch.stack([zero, mean, zero, zero, std * std])

    def constants(self, mean: Tensor, std: Tensor) -> Tensor:
        """Returns the constants (3, features) of `update`.

        They are the training part's variance, the least variance, and the variance at a first value by its square.
        """
        variance = std * std
        guess = variance / (variance + mean * mean)
        return torch.stack([variance, variance * (FLOOR * FLOOR), guess.clamp(max=GUESS * GUESS)])

    def update(self, ops: Recursive, x: Any, constants: Sequence[Any], state: Sequence[Any]) -> list[Any]:
        """Returns the state after a step's value x, or its magnitude where the kind is `mean`."""
        count, mean, run, run_mean, *variance = state
        has_begun, run_next = ops.above(count, 0.5), run + 1.0
        limit = self._deviation(ops, constants, mean, *variance) * BEYOND / run_next
        limit = ops.choose(has_begun, limit, math.inf)
        change = x - mean
        bounded = ops.greater(ops.least(change, limit), -limit)
        run_after = ops.choose(ops.same(bounded, change), 0.0, run_next)
        run_mean_after = run_mean + (x - run_mean) / run_next
        begins_anew = ops.above(run_after, RUN - 0.5)
        weight = ops.choose(ops.above(run_after, 1.5), 0.0, 1.0)  # of a run only the first value counts at first
        count_after = ops.least(count + weight, self.memory)
        gain = weight / count_after
        after = [
            ops.choose(begins_anew, min(RUN, self.memory), count_after),
            ops.choose(begins_anew, run_mean_after, mean + bounded * gain),
            ops.choose(begins_anew, 0.0, run_after),
            run_mean_after,
        ]
        if variance:
            spread = (1.0 - gain) * (variance[0] + bounded * bounded * gain)
            spread = ops.choose(has_begun, spread, constants[2] * x * x)
            apart = x - run_mean_after
            after.append(ops.choose(begins_anew, ops.greater(spread, apart * apart), spread))
        return ops.unless_missing(x, after, state) if self.nullable else after

    def _deviation(self, ops: Recursive, constants: Sequence[Any], mean: Any, variance: Any = None) -> Any:
        """Returns the deviation by which outliers are found: the training part's where all values were equal so far."""
        if variance is None:
            return mean + 1.0
        of_training, least, _ = constants
        return ops.sqrt(ops.choose(ops.above(variance, least), variance, of_training))

    def scale(self, ops: Ops, least: Any, state: Sequence[Any]) -> tuple[Any, Any]:
        """Returns the mean and deviation by which a step's numbers are scaled, from the state after the step."""
        _, mean, _, _, *variance = state
        if not variance:
            return mean * 0.0, mean + 1.0
        return mean, ops.sqrt(variance[0] + least)
