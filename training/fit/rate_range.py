"""The learning rate of `learning_rate = "auto"`, by a range test (Smith 2017, section 3.3).

Owns the rates that are tried and the choice among them. From the initial weights the rate rises geometrically from step
to step, until the loss rises too; the rate of the lowest smoothed loss is as high as the network bears, and a share of
it is chosen. The weights of the test are thrown away.
"""

from collections.abc import Iterator, Sequence

LOWEST, HIGHEST, STEPS = 1e-5, 1.0, 100
"""The first and the last rate, and the number of optimiser steps."""
SHARE = 0.1
"""The chosen rate as a share of that of the lowest loss."""
SMOOTHING = 0.9
"""The weight of the losses before, in the moving mean of losses."""
DIVERGED = 1.0
"""The distance of the smoothed loss above its first value, in nats or scaled units, at which the test ends."""


def rates() -> list[float]:
    """Returns the rate of each step of the test."""
    return [LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)) for step in range(STEPS)]


def choose(losses: Sequence[float]) -> float:
    """Returns the learning rate by the losses of the first steps of the test; without any, the lowest rate."""
    if not losses:
        return LOWEST
    smoothed = list(_smoothed(losses))
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    return rates()[lowest] * SHARE


def is_over(losses: Sequence[float]) -> bool:
    """Returns whether no higher rate needs to be tried."""
    if not losses or len(losses) >= STEPS:
        return bool(losses)
    *_, smoothed = _smoothed(losses)
    return smoothed > losses[0] + DIVERGED


def _smoothed(losses: Sequence[float]) -> Iterator[float]:
    mean = 0.0
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        yield mean / (1 - SMOOTHING**count)
