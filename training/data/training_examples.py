"""Training examples: a series as tensors of inputs, targets and mask.

Owns the shift from inputs to targets: the target of a prediction is the next step's value, that of a label is the
step's own. No other module of the training depends on which it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onward.training.data.datasets import Series
from onward.training.network.network import Network


@dataclass(frozen=True, slots=True)
class Example:
    """A series as tensors (time, ...)."""

    inputs: Tensor
    """The prepared inputs of the network, (time, read)."""
    targets: Tensor
    """The targets in scaled units, or category indices: (time, targets)."""
    mask: Tensor
    """The weight of each target, (time, targets): 0 beyond the end of the series, and where a value is missing."""
    training_steps: int
    """The number of steps, from the first on, whose predictions are trained."""
    validation_range: tuple[int, int]
    """The steps [from, to) whose predictions are validated."""


def make_example(network: Network, series: Series, device: torch.device | str = "cpu") -> Example:
    """Returns the series as the network's input layer prepares it, on `device`."""
    signature = network.signature
    raw = torch.from_numpy(series.values).to(device)[:, None]
    prepared = network.prepare(raw)
    if series.labels is not None:
        shift, targets = 0, torch.from_numpy(series.labels).to(device)[:, None].float()
        mask = torch.ones_like(targets)
        if signature.per_sequence:
            mask[:-1] = 0
    else:
        shift, following = 1, prepared.values[1:, 0, signature.target_columns]
        mask = (~following.isnan()).float()
        targets = following.nan_to_num(0.0)
        if scale := prepared.target_scale:
            mean, std = (_over_time(value, raw) for value in (scale.mean, scale.std))
            level = 0.0 if scale.level is None else scale.level[:-1, 0]
            if scale.offset is not None:
                level = _over_time(scale.offset, raw)[:-1]
            targets = (targets - level - mean[:-1]) / std[:-1]
        beyond_end = torch.zeros_like(mask[:1])
        targets, mask = torch.cat((targets.float() * mask, beyond_end)), torch.cat((mask, beyond_end))
    training_steps, validation_end = (max(0, end - shift) for end in (series.validation_from, series.test_from))
    return Example(prepared.inputs[:, 0], targets, mask, training_steps, (training_steps, validation_end))


def _over_time(value: Tensor, raw: Tensor) -> Tensor:
    """Returns (time, targets) of a mean or deviation that is (targets,) or (time, 1, targets)."""
    return value.expand(len(raw), -1) if value.ndim == 1 else value[:, 0]
