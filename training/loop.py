"""Truncated backpropagation through time with carried state.

Owns how a network is fitted to series. Knows nothing of files, of ONNX or of reports.

The series are cut into `batch` streams that run side by side. Each window of a stream starts from the state in which
its last window ended, as serving does, while the gradient stops at the window's edge (Williams and Peng 1990).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from training.config import Train
from training.data import Series
from training.nets import Network


class TrainingError(Exception):
    """A run that cannot go on; the message says at which step and what to try."""


@dataclass(slots=True)
class History:
    """Mean loss of each epoch, and the epoch whose weights were kept (from 0)."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int = 0


def fit(network: Network, series: Sequence[Series], settings: Train, *, quiet: bool | None = None) -> History:
    """Fits the network in place and leaves it with the weights of the best validation loss.

    `quiet` None shows a progress bar on terminals only. Raises TrainingError where the loss stops being a number.
    """
    torch.manual_seed(settings.seed)
    shuffle = np.random.default_rng(settings.seed)
    scaled = [network.scaling(torch.from_numpy(one.values)) for one in series]
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    streams = cut([one.validation_from for one in series], settings.batch)
    history, best = History(), copy.deepcopy(network.state_dict())
    windows = sum(math.ceil(group_steps(group) / settings.window) for group in grouped(streams, settings.batch))
    disable = None if quiet is None else quiet
    with tqdm(total=settings.epochs * windows, unit="window", disable=disable, dynamic_ncols=True) as bar:
        for epoch in range(settings.epochs):
            groups = grouped(streams, settings.batch)
            order = [groups[i] for i in shuffle.permutation(len(groups))]
            history.train.append(_epoch(network, optimiser, scaled, order, settings, bar.update))
            history.validation.append(validate(network, scaled, series))
            if not math.isfinite(history.validation[-1]):
                raise TrainingError(
                    f"epoch {epoch + 1}: the validation loss is {history.validation[-1]}; "
                    f"try a learning_rate below {settings.learning_rate}"
                )
            if epoch == 0 or history.validation[-1] < history.validation[history.best]:
                history.best, best = epoch, copy.deepcopy(network.state_dict())
            bar.set_postfix(
                epoch=epoch + 1, train=f"{history.train[-1]:.4f}", validation=f"{history.validation[-1]:.4f}"
            )
            if epoch - history.best >= settings.patience:
                break
    network.load_state_dict(best)
    return history


@dataclass(frozen=True, slots=True)
class Stream:
    """Steps [start, stop) of one series; each predicts the step after it, so `stop` itself must exist."""

    series: int
    start: int
    stop: int


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


def grouped(streams: Sequence[Stream], batch: int) -> list[list[Stream]]:
    """Streams of like length together, at most `batch` at a time, so that little is padding."""
    by_length = sorted(streams, key=lambda stream: (stream.start - stream.stop, stream.series, stream.start))
    return [by_length[i : i + batch] for i in range(0, len(by_length), batch)]


def group_steps(group: Sequence[Stream]) -> int:
    return max(stream.stop - stream.start for stream in group)


def windows(scaled: Sequence[Tensor], group: Sequence[Stream], window: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A group's windows in time order: inputs, next inputs (time, batch, features), which are real (time, batch)."""
    longest = group_steps(group)
    for start in range(0, longest, window):
        size = min(window, longest - start)
        inputs = torch.zeros(size, len(group), scaled[0].shape[1])
        following, real = torch.zeros_like(inputs), torch.zeros(size, len(group))
        for row, stream in enumerate(group):
            first = stream.start + start
            steps = min(size, stream.stop - first)
            if steps > 0:
                inputs[:steps, row] = scaled[stream.series][first : first + steps]
                following[:steps, row] = scaled[stream.series][first + 1 : first + steps + 1]
                real[:steps, row] = 1.0
        yield inputs, following, real


def _epoch(
    network: Network,
    optimiser: torch.optim.Optimizer,
    scaled: Sequence[Tensor],
    groups: Sequence[list[Stream]],
    settings: Train,
    progress: Callable[[int], object],
) -> float:
    network.train()
    total, count = 0.0, 0.0
    for group in groups:
        state = network.initial(len(group))
        for inputs, following, real in windows(scaled, group, settings.window):
            state = tuple(tensor.detach() for tensor in state)
            said, state = network(inputs, state)
            losses = network.loss(said, following).mean(dim=-1) * real
            loss = losses.sum() / real.sum()
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} after {count:.0f} steps of this epoch; "
                    f"try a learning_rate below {settings.learning_rate} or a smaller clip"
                )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimiser.step()
            total, count = total + float(losses.detach().sum()), count + float(real.sum())
            progress(1)
    return total / count


@torch.no_grad()
def validate(network: Network, scaled: Sequence[Tensor], series: Sequence[Series]) -> float:
    """The mean loss over each series' validation steps, the state carried from the series' own beginning."""
    network.eval()
    losses: list[NDArray[np.float32]] = []
    for values, one in zip(scaled, series, strict=True):
        inputs = values[: one.test_from - 1, None]
        said, _ = network(inputs, network.initial(1))
        loss = network.loss(said, values[1 : one.test_from, None])
        losses.append(loss[one.validation_from - 1 :].mean(dim=-1).flatten().numpy())
    return float(np.concatenate(losses).mean())
