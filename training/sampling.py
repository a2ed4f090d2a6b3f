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

from training.config import Train


@dataclass(frozen=True, slots=True)
class Stream:
    """Steps [start, stop) of one series; each predicts the step after it, so `stop` itself must exist."""

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

    inputs: Tensor  # (time, batch, features)
    following: Tensor  # (time, batch, features): the inputs one step on
    real: Tensor  # (time, batch): 1 where the prediction is scored
    scored: int
    """Scored steps of the whole window, those of other processes included."""


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
    usable = [length - 1 for length in lengths]  # the last step has no next one to be compared with
    size = max(usable)
    while sum(math.ceil(length / max(1, size - 1)) for length in usable) <= batch and size > 1:
        size = max(1, min(size - 1, int(size * 0.98)))
    return [
        Stream(number, start, min(start + size, length))
        for number, length in enumerate(usable)
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
    for series, length in enumerate(lengths):
        usable = length - 1
        first = int(rng.integers(1, settings.window + 1)) if usable > settings.window else usable
        cuts = [0, *range(first, usable, settings.window), usable]
        for start, stop in pairwise(cuts):
            warm = min(start, settings.burn_in)
            pieces.append(Stream(series, start - warm, stop, warm))
    order = [pieces[i] for i in rng.permutation(len(pieces))]
    return [order[i : i + settings.batch] for i in range(0, len(order), settings.batch)]


def windows(
    scaled: Sequence[Tensor], group: Sequence[Stream], size: int, *, rank: int = 0, world: int = 1
) -> Iterator[Window]:
    """A group's windows of `size` steps in time order, or the share in them of process `rank` of `world`.

    The processes get every `world`-th stream each and all see the same number of windows; one that no stream falls to
    gets one to read that is not scored, so that it takes part in every step.
    """
    longest = group_steps(group)
    time = np.arange(longest)[:, None]
    real = (time >= [stream.burn_in for stream in group]) & (time < [stream.steps for stream in group])
    mine = list(group[rank::world])
    own = real[:, rank::world]
    if not mine:
        mine, own = [group[0]], np.zeros((longest, 1), bool)
    rows = [scaled[stream.series][stream.start : stream.stop + 1] for stream in mine]
    values = pad_sequence(rows)
    values = pad(values, (0, 0, 0, 0, 0, longest + 1 - len(values)))
    mask = torch.from_numpy(own).to(values.device, values.dtype)
    for start in range(0, longest, size):
        stop = min(start + size, longest)
        yield Window(
            values[start:stop], values[start + 1 : stop + 1], mask[start:stop], int(np.count_nonzero(real[start:stop]))
        )
