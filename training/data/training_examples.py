"""A series as tensors: what the network reads, what its predictions are held to, and which of them count.

Owns the shift from inputs to answers: a prediction is held to the next step, a label to its own. Nothing else in the
training knows which.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onward.training.data.datasets import Series
from onward.training.network.network import Network


@dataclass(frozen=True, slots=True)
class Example:
    """Of one series: (time, ...) each."""

    inputs: Tensor
    """(time, read) as the network reads them."""
    answers: Tensor
    """(time, targets) in scaled units, or places."""
    weights: Tensor
    """(time, targets) 0 where there is nothing to be held to: beyond the end, or where a value is missing."""
    trained: int
    """The steps, from the first on, whose predictions are trained."""
    validated: tuple[int, int]
    """The steps [from, to) whose predictions are validated."""


def example(network: Network, series: Series, device: torch.device | str = "cpu") -> Example:
    signature = network.signature
    raw = torch.from_numpy(series.values).to(device)[:, None]
    prepared = network.prepare(raw)
    if series.labels is not None:
        ahead, answers = 0, torch.from_numpy(series.labels).to(device)[:, None].float()
        weights = torch.ones_like(answers)
        if signature.per_sequence:
            weights[:-1] = 0
    else:
        ahead, following = 1, raw[1:, 0, signature.places]
        weights = (~following.isnan()).float()
        answers = following.nan_to_num(0.0)
        if prepared.unit is not None:
            mean, std = (_over_time(moment, raw) for moment in (prepared.unit.mean, prepared.unit.std))
            level = 0.0 if prepared.unit.level is None else prepared.unit.level[:-1, 0]
            answers = (answers - level - mean[:-1]) / std[:-1]
        beyond = torch.zeros_like(raw[:1, 0, signature.places])
        answers, weights = torch.cat((answers * weights, beyond)), torch.cat((weights, beyond))
    return Example(
        prepared.inputs[:, 0],
        answers,
        weights,
        max(0, series.validation_from - ahead),
        (max(0, series.validation_from - ahead), max(0, series.test_from - ahead)),
    )


def _over_time(moment: Tensor, raw: Tensor) -> Tensor:
    """(time, targets) of moments (targets,) or (time, 1, targets)."""
    return moment.expand(len(raw), -1) if moment.ndim == 1 else moment[:, 0]
