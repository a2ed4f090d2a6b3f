"""The optimiser and its learning-rate schedule.

The rate of a step is a function of the settings, the step's number and the validation losses before it. Only the
optimiser has a state that a checkpoint must store.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.swa_utils import AveragedModel

from onward.training.config import Train

Weights = list[Tensor] | tuple[Tensor, ...]


class Optimiser(Protocol):
    """The part of an optimiser that the training loop needs."""

    def zero_grad(self) -> None:
        """Forgets the gradients."""

    def step(self, rate: float) -> None:
        """Descends along the gradients at that learning rate."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class AdamW:
    """AdamW (Loshchilov and Hutter 2019) with decay of matrices, and none of biases and other vectors.

    The update is torch's own fused function. Its class `torch.optim.AdamW` would import torch's compiler, which takes
    four seconds of the processor's time in each command.
    """

    def __init__(self, network: nn.Module, settings: Train) -> None:
        parameters = list(network.parameters())
        self._groups = [
            (settings.weight_decay, [weight for weight in parameters if weight.ndim >= 2]),
            (0.0, [weight for weight in parameters if weight.ndim < 2]),
        ]
        self._moments: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {
            weight: (torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros((), device=weight.device))
            for weight in parameters
        }

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for weight in self._moments:
            weight.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Descends along the gradients at that learning rate; a weight without a gradient stays as it is."""
        for decay, group in self._groups:
            weights: list[Tensor] = [weight for weight in group if weight.grad is not None]
            if not weights:
                continue
            first, second, counts = zip(*(self._moments[weight] for weight in weights), strict=True)
            adamw(
                weights,
                [weight.grad for weight in weights if weight.grad is not None],
                list(first),
                list(second),
                [],
                list(counts),
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=rate,
                weight_decay=decay,
                eps=1e-8,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns the moments of each weight, in the order of the network's parameters."""
        return {"moments": list(self._moments.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        with torch.no_grad():
            for moments, stored in zip(self._moments.values(), state["moments"], strict=True):
                for tensor, value in zip(moments, stored, strict=True):
                    tensor.copy_(value)


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
    assert scheduled != "auto"  # it was replaced by the rate of a range test
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
