"""The optimiser and its learning rate.

The rate of a step is a function of the settings, the step's place and the validation losses before it. Nothing here
has state of its own to be kept or restored, but the optimiser.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from onward.training.config import Train


def adamw(network: nn.Module, settings: Train) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); biases and other vectors do not decay, matrices do."""
    parameters = list(network.parameters())
    return torch.optim.AdamW(
        [
            {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        fused=True,
    )


def rates(settings: Train, *, before: int, steps: int, validation: Sequence[float]) -> Iterator[float]:
    """The learning rate of each of an epoch's `steps`.

    before: optimiser steps before this epoch; validation: the loss of each epoch before it. Warm-up multiplies the
    schedule: it rises linearly over the first `warmup` steps. `cosine` falls to nothing at the last of all epochs
    (Loshchilov and Hutter 2017, without restarts); `plateau` halves.
    """
    scheduled = settings.learning_rate
    if settings.schedule == "plateau":
        scheduled *= 0.5 ** halvings(validation, max(1, settings.patience // 3))
    for step in range(steps):
        rate = scheduled
        if settings.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * (len(validation) + step / steps) / settings.epochs)) / 2
        if before + step + 1 < settings.warmup:
            rate *= (before + step + 1) / settings.warmup
        yield rate


def halvings(validation: Sequence[float], stale: int) -> int:
    """How often `stale` epochs in a row, counted anew after each halving, brought no better validation loss."""
    best, waited, count = math.inf, 0, 0
    for loss in validation:
        if loss < best:
            best, waited = loss, 0
        else:
            waited += 1
        if waited == stale:
            waited, count = 0, count + 1
    return count
