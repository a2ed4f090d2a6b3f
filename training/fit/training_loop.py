"""Truncated backpropagation through time with carried state.

Owns how a network is fitted to series. Knows nothing of files' places, of ONNX or of reports.

What lies side by side, and for how long, is `onward.training.data.sampling`'s. Each window of a stream starts from the
state in which its last window ended, as serving does, while the gradient stops at the window's edge (Williams and Peng
1990). All that is random in an epoch comes from the seed, the epoch's number and the process' rank, so that a run which
goes on from the end of any epoch ends as if it had never stopped.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onward.training.config import Train
from onward.training.data import sampling
from onward.training.data.datasets import Series
from onward.training.data.sampling import Groups, Stream, Window
from onward.training.data.training_examples import Example, example
from onward.training.errors import TrainingError
from onward.training.fit import devices, optimisation
from onward.training.fit.checkpoint import Checkpoint
from onward.training.fit.devices import Place
from onward.training.fit.progress import Progress
from onward.training.network.network import Network, State

ROWS, CHUNK = 64, 512
"""Series and steps that are validated in one call."""


@dataclass(slots=True)
class History:
    """What each epoch was: mean losses, the gradient's norms before clipping; and whose weights were kept (from 0)."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    gradient_mean: list[float] = field(default_factory=list)
    gradient_largest: list[float] = field(default_factory=list)
    best: int = 0
    steps: int = 0
    """Of the optimiser, over all epochs."""


Watch = Callable[[History], None]


def fit(
    network: Network,
    series: Sequence[Series],
    settings: Train,
    *,
    quiet: bool | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> History:
    """Fits the network in place and leaves it on the CPU, with the weights of the best validation loss.

    `quiet` None shows a progress bar on terminals only. With a checkpoint every epoch's end is written to it; `resume`
    goes on from there, or from the beginning where there is none. Started as one of several processes it fits together
    with them. `watch` is given the history after each epoch; what it raises ends the run. Raises TrainingError where
    the loss stops being a number, or the device or the checkpoint is of no use.
    """
    with devices.place(settings) as place:
        try:
            return _Run(network.to(place.device), series, settings, place, checkpoint).run(
                quiet=quiet, resume=resume, watch=watch
            )
        finally:
            network.cpu()


class Objective(nn.Module):
    """The network and its loss as one call, which can be compiled and shared among processes."""

    def __init__(self, network: Network, settings: Train) -> None:
        super().__init__()
        self.network, self.low = network, settings.precision == "bfloat16"

    def forward(self, inputs: Tensor, answers: Tensor, weights: Tensor, state: State) -> tuple[Tensor, State]:
        """The sum of the losses by their weights, each step's the mean over its targets; and the state after.

        The readout and the loss are in float32.
        """
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.low):
            hidden, state = self.network(inputs, state)
        return (self.network.head.loss(hidden.float(), answers) * weights).mean(dim=-1).sum(), state


@dataclass(frozen=True, slots=True)
class Stepper:
    """One optimiser step after another."""

    network: Network
    objective: nn.Module
    optimiser: torch.optim.Optimizer
    settings: Train
    place: Place

    def epoch(
        self, examples: Sequence[Example], groups: Groups, rates: Iterator[float]
    ) -> Iterator[tuple[float, float, float]]:
        """Trains on each group's windows in turn: the sum of the losses, the gradient's norm, the steps scored."""
        self.network.train()
        for group in groups:
            shares = sampling.windows(
                examples, group, sampling.span(self.settings), rank=self.place.rank, world=self.place.world
            )
            state: State | None = None
            for window in shares:
                if state is None:
                    state = self.network.initial(window.inputs.shape[1])
                loss, norm, state = self.step(window, state, next(rates))
                yield loss, norm, window.scored

    def step(self, window: Window, state: State, rate: float) -> tuple[float, float, State]:
        """Descends by the mean loss over the steps scored in all processes. Raises FloatingPointError."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        carried = tuple(tensor.detach() for tensor in state)
        if not window.scored:  # nothing to learn from: the state goes on, as after a burn-in
            with torch.no_grad():
                return 0.0, 0.0, self.network(window.inputs, carried)[1]
        total, after = self.objective(window.inputs, window.answers, window.weights, carried)
        self.optimiser.zero_grad()
        # the processes' gradients are averaged, and their sum is wanted
        (total * (self.place.world / window.scored)).backward()
        length = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        loss, norm = torch.stack((self.place.total(total), length)).tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss / window.scored}")
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        self.optimiser.step()
        return loss, norm, after


def stepper(network: Network, settings: Train, place: Place) -> Stepper:
    objective = place.shared(Objective(network, settings))
    if settings.compile:
        objective.compile()
    return Stepper(network, objective, optimisation.adamw(network, settings), settings, place)


class _Run:
    """A fit under way: the network, the optimiser and the history, which together are the checkpoint."""

    def __init__(
        self, network: Network, series: Sequence[Series], settings: Train, place: Place, checkpoint: Checkpoint | None
    ) -> None:
        self.network, self.settings, self.place = network, settings, place
        self.checkpoint = checkpoint
        self.examples = [example(network, one, place.device) for one in series]
        for part, spans in (
            ("training", [(0, one.trained) for one in self.examples]),
            ("validation", [one.validated for one in self.examples]),
        ):
            if not any(one.weights[slice(*span)].any() for one, span in zip(self.examples, spans, strict=True)):
                raise TrainingError(f"no step of the {part} part has anything to be held to: no next step, or no value")
        self.groups = sampling.sampler([one.trained for one in self.examples], settings)
        self.stepper = stepper(network, settings, place)
        self.history, self.best = History(), copy.deepcopy(network.state_dict())

    def run(self, *, quiet: bool | None, resume: bool, watch: Watch | None) -> History:
        if resume:
            self._resume()
        history, settings = self.history, self.settings
        disable = quiet if self.place.first else True
        with Progress(settings.epochs, history.steps, disable=disable) as progress:
            while len(history.train) < settings.epochs and self._stale() < settings.patience:
                self._epoch(progress)
                if history.best == len(history.train) - 1:
                    self.best = copy.deepcopy(self.network.state_dict())
                if self.checkpoint and self.place.first:
                    self.checkpoint.write(self._state())
                if watch is not None:
                    watch(history)
        self.network.load_state_dict(self.best)
        return history

    def _stale(self) -> int:
        return len(self.history.train) - 1 - self.history.best if self.history.train else 0

    def _epoch(self, progress: Progress) -> None:
        history, settings, epoch = self.history, self.settings, len(self.history.train)
        seeds = np.random.SeedSequence((settings.seed, epoch, self.place.rank))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        groups = self.groups(np.random.default_rng((settings.seed, epoch)))
        steps = sampling.optimiser_steps(groups, settings)
        rates = list(optimisation.rates(settings, before=history.steps, steps=steps, validation=history.validation))
        progress.epoch(epoch, steps)
        total, count, norms, done = 0.0, 0.0, [], 0
        try:
            for loss, norm, scored in self.stepper.epoch(self.examples, groups, iter(rates)):
                total, count, done = total + loss, count + scored, done + 1
                if scored:  # a window that is only read has no gradient
                    norms.append(norm)
                progress.step(total / count if count else math.nan, norm)
        except FloatingPointError as error:
            at = history.steps + done + 1
            raise TrainingError(self._diverged(f"step {at}", str(error), rates[done])) from error
        validation = self.place.agreed(lambda: validate(self.network, self.examples))
        history.steps += steps
        if not math.isfinite(validation):
            raise TrainingError(
                self._diverged(f"step {history.steps}", f"the validation loss is {validation}", rates[-1])
            )
        history.train.append(total / count)
        history.validation.append(validation)
        history.gradient_mean.append(sum(norms) / len(norms))
        history.gradient_largest.append(max(norms))
        if validation < history.validation[history.best]:
            history.best = epoch
        progress.validated(validation)

    def _diverged(self, where: str, what: str, rate: float) -> str:
        epochs = len(self.history.train)
        kept = "there is no checkpoint"
        if self.checkpoint and epochs:
            kept = f"the last good checkpoint is {self.checkpoint.file}, of epoch {epochs}"
        advice = f"try a learning_rate below {self.settings.learning_rate} or a smaller clip"
        return f"epoch {epochs + 1}, {where}: {what}, at a learning rate of {rate:.4g}; {kept}; {advice}"

    def _state(self) -> dict[str, object]:
        return {
            "history": asdict(self.history),
            "weights": self.network.state_dict(),
            "best": self.best,
            "optimiser": self.stepper.optimiser.state_dict(),
        }

    def _resume(self) -> None:
        assert self.checkpoint is not None
        content = self.place.agreed_bytes(self.checkpoint.read() if self.place.first else None)
        if content is None:
            return
        state = self.checkpoint.state(content)
        self.history = History(**state["history"])
        self.network.load_state_dict(state["weights"])
        self.stepper.optimiser.load_state_dict(state["optimiser"])
        self.best = {name: tensor.to(self.place.device) for name, tensor in state["best"].items()}


def restore(network: Network, state: dict[str, Any]) -> History:
    """Gives the network the best weights of a checkpoint's state; returns the history that led to them."""
    network.load_state_dict(state["best"])
    return History(**state["history"])


@torch.no_grad()
def validate(network: Network, examples: Sequence[Example]) -> float:
    """The mean loss over each series' validation steps, the state carried from the series' own beginning."""
    network.eval()
    streams = [
        Stream(place, 0, one.validated[1], one.validated[0])
        for place, one in enumerate(examples)
        if one.validated[1] > one.validated[0]
    ]
    losses, scored = [], []
    for group in sampling.grouped(streams, ROWS):
        state = None
        for window in sampling.windows(examples, group, CHUNK):
            hidden, state = network(window.inputs, state or network.initial(window.inputs.shape[1]))
            if window.scored:
                loss = network.head.loss(hidden, window.answers) * window.weights
                losses.append(float(loss.mean(dim=-1).sum(dtype=torch.float64)))
                scored.append(window.scored)
    return math.fsum(losses) / math.fsum(scored)
