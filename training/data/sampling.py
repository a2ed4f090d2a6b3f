"""Sampling: which steps are trained on together, as streams with carried state or as random windows with a burn-in.

Owns how series are cut, grouped and batched. Knows nothing of networks. In both ways every trained step is scored
exactly once an epoch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
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
    """The steps [start, stop) of one series."""

    series: int
    start: int
    stop: int
    burn_in: int = 0
    """The number of first steps that warm up the state and are not scored."""

    @property
    def steps(self) -> int:
        return self.stop - self.start


class Window(NamedTuple):
    """The batch of one optimiser step."""

    inputs: Tensor  # (time, batch, read)
    targets: Tensor  # (time, batch, targets)
    mask: Tensor  # (time, batch, targets): 0 where the prediction is not scored
    scored_steps: float
    """Scored steps of the whole window, those of other processes included; a step may be scored in part."""


Groups = list[list[Stream]]
"""Streams that are trained on side by side. A group's state starts from zero."""


def make_sampler(lengths: Sequence[int], settings: Train) -> Callable[[np.random.Generator], Groups]:
    """Returns a function from an epoch's random generator to that epoch's groups, in order."""
    if settings.sampling == "windows":
        return lambda rng: _random_windows(lengths, settings, rng)
    groups = group_by_length(cut_streams(lengths, settings.batch), settings.batch)
    return lambda rng: [groups[i] for i in rng.permutation(len(groups))]


def steps_per_window(settings: Train) -> int:
    """Returns the largest number of time steps in one optimiser step."""
    return settings.window + (settings.burn_in if settings.sampling == "windows" else 0)


def optimiser_steps(groups: Groups, settings: Train) -> int:
    """Returns the number of optimiser steps that an epoch of these groups takes."""
    return sum(window_count(group_steps(group), steps_per_window(settings)) for group in groups)


def window_count(steps: int, size: int) -> int:
    """Returns the number of windows of at most `size` steps."""
    return math.ceil(steps / size)


def cut_streams(lengths: Sequence[int], batch: int) -> list[Stream]:
    """Cuts series into `batch` streams, or into one stream each where there are more series.

    The longest stream is as short as possible, and the streams of a series are equally long, to within one step.
    """
    pieces = [min(1, length) for length in lengths]
    longest = [(-float(length), number) for number, length in enumerate(lengths)]
    heapify(longest)
    for _ in range(batch - sum(pieces)):
        negative_steps, number = longest[0]
        if negative_steps >= -1:  # each stream has a single step
            break
        pieces[number] += 1
        heapreplace(longest, (-lengths[number] / pieces[number], number))
    return [
        Stream(number, start, stop)
        for number, (length, count) in enumerate(zip(lengths, pieces, strict=True))
        if count
        for start, stop in pairwise(even_cuts(length, count))
    ]


def even_cuts(steps: int, count: int) -> list[int]:
    """Returns the edges of `count` parts of `steps` steps; the parts are equally long, to within one step."""
    return [steps * part // count for part in range(count + 1)]


def group_by_length(streams: Sequence[Stream], batch: int) -> Groups:
    """Groups streams of similar length, at most `batch` together, so that there is little padding.

    The groups are equally large, to within one stream: a small group would have noisier gradients than the others.
    """
    by_length = sorted(streams, key=lambda stream: (-stream.steps, stream.series, stream.start))
    cuts = even_cuts(len(by_length), math.ceil(len(by_length) / batch))
    return [by_length[start:stop] for start, stop in pairwise(cuts)]


def group_steps(group: Sequence[Stream]) -> int:
    """Returns the length of the group's longest stream."""
    return max(stream.steps for stream in group)


def _random_windows(lengths: Sequence[int], settings: Train, rng: np.random.Generator) -> Groups:
    """Cuts each series at every `window` steps from a random first cut on, and shuffles the pieces into batches.

    A piece begins up to `burn_in` steps early, to warm up its state. A piece at its series' own beginning needs no
    warm-up: that is where sessions begin.
    """
    pieces = []
    for series, usable in enumerate(lengths):
        if not usable:
            continue
        first = int(rng.integers(1, settings.window + 1)) if usable > settings.window else usable
        cuts = [0, *range(first, usable, settings.window), usable]
        for start, stop in pairwise(cuts):
            burn_in = min(start, settings.burn_in)
            pieces.append(Stream(series, start - burn_in, stop, burn_in))
    order = [pieces[i] for i in rng.permutation(len(pieces))]
    cuts = even_cuts(len(order), math.ceil(len(order) / settings.batch))
    return [order[start:stop] for start, stop in pairwise(cuts)]


def windows(
    examples: Sequence[Example], group: Sequence[Stream], size: int, *, rank: int = 0, world: int = 1
) -> Iterator[Window]:
    """Yields a group's windows of at most `size` steps in time order, or the share of process `rank` of `world`.

    The windows are equally long, to within one step, so that none is a short rest.

    Each process gets every `world`-th stream, and all see the same number of windows. A process to which no stream
    falls gets one with a mask of zeros, so that it takes part in every optimiser step.
    """
    longest = group_steps(group)
    mask = _padded([_scored_mask(examples[stream.series].mask, stream) for stream in group], longest)
    scored_steps = mask.mean(dim=-1).sum(dim=-1).tolist()
    local_streams, local_mask = list(group[rank::world]), mask[:, rank::world]
    if not local_streams:
        local_streams, local_mask = [group[0]], torch.zeros_like(mask[:, :1])
    inputs, targets = (
        _padded(
            [getattr(examples[stream.series], name)[stream.start : stream.stop] for stream in local_streams], longest
        )
        for name in ("inputs", "targets")
    )
    for start, stop in pairwise(even_cuts(longest, window_count(longest, size))):
        part = slice(start, stop)
        yield Window(inputs[part], targets[part], local_mask[part], math.fsum(scored_steps[part]))


def _scored_mask(mask: Tensor, stream: Stream) -> Tensor:
    scored = mask[stream.start : stream.stop].clone()
    scored[: stream.burn_in] = 0
    return scored


def _padded(rows: Sequence[Tensor], steps: int) -> Tensor:
    """Returns (steps, batch, ...) with zeros after each row's end."""
    batch = pad_sequence(list(rows))
    return pad(batch, (0, 0, 0, 0, 0, steps - len(batch)))
