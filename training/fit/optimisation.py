"""The optimiser and its learning-rate schedule.

The rate of a step is a function of the settings, the step's number and the validation losses before it. Only the
optimiser has a state that a checkpoint must store.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from onward.training.config import Train

Weights = list[Tensor] | tuple[Tensor, ...]


def adamw(network: nn.Module, settings: Train) -> torch.optim.AdamW:
    """Returns AdamW (Loshchilov and Hutter 2019) with decay of matrices, and none of biases and other vectors."""
    parameters = list(network.parameters())
    return torch.optim.AdamW(
        [
            {"params": [weight for weight in parameters if weight.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [weight for weight in parameters if weight.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        fused=True,
    )


def weight_average(network: nn.Module, settings: Train) -> AveragedModel | None:
    """Returns the exponential moving average of the weights, or None where the settings name none.

    After n optimiser steps the decay is at most (1 + n) / (10 + n), so that the initial weights are soon forgotten
    (Polyak and Juditsky 1992; the ramp is TensorFlow's).
    """
    if not settings.averaging:
        return None

    def update(average: Weights, current: Weights, count: Tensor | int) -> None:
        steps = int(count)
        decay = min(settings.averaging, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(average, current, 1 - decay)

    return AveragedModel(network, multi_avg_fn=update)


def learning_rates(
    settings: Train, *, epoch: int, steps_before: int, steps: int, validation: Sequence[float]
) -> Iterator[float]:
    """Yields the learning rate of each of an epoch's `steps`.

    epoch: its number, from 0; steps_before: optimiser steps before it; validation: the loss of each epoch before it.
    Warm-up multiplies the schedule: it rises linearly over the first `warmup` steps. `cosine` falls to zero at the last
    of all epochs (Loshchilov and Hutter 2017, without restarts); `plateau` halves.
    """
    scheduled = settings.learning_rate
    if settings.schedule == "plateau":
        scheduled *= 0.5 ** plateau_count(validation, max(1, settings.patience // 3))
    for step in range(steps):
        rate = scheduled
        if settings.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * (epoch + step / steps) / settings.epochs)) / 2
        if steps_before + step + 1 < settings.warmup:
            rate *= (steps_before + step + 1) / settings.warmup
        yield rate


def plateau_count(validation: Sequence[float], length: int) -> int:
    """Returns how many times `length` epochs in a row did not improve the validation loss.

    The epochs are counted anew after each such plateau.
    """
    best, stale, plateaus = math.inf, 0, 0
    for loss in validation:
        if loss < best:
            best, stale = loss, 0
        else:
            stale += 1
        if stale == length:
            stale, plateaus = 0, plateaus + 1
    return plateaus
