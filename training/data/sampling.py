"""Which steps are trained on together: streams with carried state, or random windows with a burn-in.

Owns how series are cut, grouped and laid side by side. Knows nothing of networks. Either way every step with its
successor is scored exactly once an epoch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from onward.training.config import Train
from onward.training.data.training_examples import Example


@dataclass(frozen=True, slots=True)
class Stream:
    """Steps [start, stop) of one series."""

    series: int
    start: int
    stop: int
    burn_in: int = 0
    """The first steps, that warm the state and are not scored."""

    @property
    def steps(self) -> int:
        return self.stop - self.start


class Window(NamedTuple):
    """What one optimiser step reads."""

    inputs: Tensor  # (time, batch, read)
    answers: Tensor  # (time, batch, targets)
    weights: Tensor  # (time, batch, targets): 0 where the prediction is not scored
    scored: float
    """Scored steps of the whole window, those of other processes included; a step may be scored in part."""


Groups = list[list[Stream]]


def sampler(lengths: Sequence[int], settings: Train) -> Callable[[np.random.Generator], Groups]:
    """What gives each epoch's groups, in order, from a generator of its own. A group's state begins anew."""
    if settings.sampling == "windows":
        return lambda rng: _random_windows(lengths, settings, rng)
    groups = grouped(cut(lengths, settings.batch), settings.batch)
    return lambda rng: [groups[i] for i in rng.permutation(len(groups))]


def span(settings: Train) -> int:
    """Steps that one optimiser step reads at most."""
    return settings.window + (settings.burn_in if settings.sampling == "windows" else 0)


def optimiser_steps(groups: Groups, settings: Train) -> int:
    return sum(math.ceil(group_steps(group) / span(settings)) for group in groups)


def cut(lengths: Sequence[int], batch: int) -> list[Stream]:
    """Series of these lengths as streams: about `batch` of equal length, or one each where there are more series."""
    size = max(lengths)
    while sum(math.ceil(length / max(1, size - 1)) for length in lengths) <= batch and size > 1:
        size = max(1, min(size - 1, int(size * 0.98)))
    return [
        Stream(number, start, min(start + size, length))
        for number, length in enumerate(lengths)
        for start in range(0, length, size)
    ]


def grouped(streams: Sequence[Stream], batch: int) -> Groups:
    """Streams of like length together, at most `batch` at a time, so that little is padding."""
    by_length = sorted(streams, key=lambda stream: (-stream.steps, stream.series, stream.start))
    return [by_length[i : i + batch] for i in range(0, len(by_length), batch)]


def group_steps(group: Sequence[Stream]) -> int:
    return max(stream.steps for stream in group)


def _random_windows(lengths: Sequence[int], settings: Train, rng: np.random.Generator) -> Groups:
    """Each series cut at every `window` steps from a random first cut on, the pieces shuffled into batches.

    A piece begins up to `burn_in` steps early, to warm its state. One at its series' own beginning needs no warming:
    that is where sessions begin.
    """
    pieces = []
    for series, usable in enumerate(lengths):
        if not usable:
            continue
        first = int(rng.integers(1, settings.window + 1)) if usable > settings.window else usable
        cuts = [0, *range(first, usable, settings.window), usable]
        for start, stop in pairwise(cuts):
            warm = min(start, settings.burn_in)
            pieces.append(Stream(series, start - warm, stop, warm))
    order = [pieces[i] for i in rng.permutation(len(pieces))]
    return [order[i : i + settings.batch] for i in range(0, len(order), settings.batch)]


def windows(
    examples: Sequence[Example], group: Sequence[Stream], size: int, *, rank: int = 0, world: int = 1
) -> Iterator[Window]:
    """A group's windows of `size` steps in time order, or the share in them of process `rank` of `world`.

    The processes get every `world`-th stream each and all see the same number of windows; one that no stream falls to
    gets one to read that is not scored, so that it takes part in every step.
    """
    longest = group_steps(group)
    weights = _padded([_scored(examples[stream.series].weights, stream) for stream in group], longest)
    of_all = weights.mean(dim=-1).sum(dim=-1).tolist()
    mine, own = list(group[rank::world]), weights[:, rank::world]
    if not mine:
        mine, own = [group[0]], torch.zeros_like(weights[:, :1])
    inputs, answers = (
        _padded([getattr(examples[stream.series], name)[stream.start : stream.stop] for stream in mine], longest)
        for name in ("inputs", "answers")
    )
    for start in range(0, longest, size):
        part = slice(start, min(start + size, longest))
        yield Window(inputs[part], answers[part], own[part], math.fsum(of_all[part]))


def _scored(weights: Tensor, stream: Stream) -> Tensor:
    own = weights[stream.start : stream.stop].clone()
    own[: stream.burn_in] = 0
    return own


def _padded(rows: Sequence[Tensor], steps: int) -> Tensor:
    """(steps, batch, ...) with zeros after each row's end."""
    together = pad_sequence(list(rows))
    return pad(together, (0, 0, 0, 0, 0, steps - len(together)))
