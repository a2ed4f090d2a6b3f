"""The training loop: truncated backpropagation through time with carried state.

Owns how a network is fitted to series. Knows nothing of data files, of ONNX or of reports.

`onward.training.data.sampling` decides which steps are batched together, and for how long. Each window of a stream
starts from the state in which the stream's last window ended, as in serving, while the gradient stops at the window's
edge (Williams and Peng 1990). All randomness of an epoch comes from the seed, the epoch's number and the process' rank,
so that a run resumed after any epoch ends with the weights that it would have had without the interruption.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from onward.training.config import Train
from onward.training.data import sampling
from onward.training.data.datasets import Series
from onward.training.data.sampling import Groups, Stream, Window
from onward.training.data.training_examples import Example, make_example
from onward.training.errors import TrainingError
from onward.training.fit import devices, optimisation, rate_range
from onward.training.fit.checkpoint import Checkpoint
from onward.training.fit.devices import Process
from onward.training.fit.optimisation import AdamW, Optimiser
from onward.training.fit.progress import Progress
from onward.training.network.network import Network, State

VALIDATION_BATCH, VALIDATION_WINDOW = 64, 512
"""Series and steps that are validated in one call."""

VALIDATION_WARM_UP = 256
"""The least number of steps before a segment of a series that warm up the state for its validation."""


@dataclass(slots=True)
class History:
    """The mean losses of each epoch, and the mean and largest norm of its gradients before clipping.

    There are no validation losses where no step validates.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    gradient_mean: list[float] = field(default_factory=list)
    gradient_largest: list[float] = field(default_factory=list)
    best: int = 0
    """The epoch, counted from 0, with the lowest validation loss; the last one where no step validates."""
    steps: int = 0
    """Optimiser steps over all epochs."""
    learning_rate: float = 0.0
    """The rate that the schedule multiplies: that of the settings, or of the range test."""

    @property
    def epochs_since_best(self) -> int:
        return max(0, len(self.train) - 1 - self.best)


EpochCallback = Callable[[History], bool | None]
"""Receives the history after each epoch; the training ends if it returns true."""


def fit(
    network: Network,
    series: Sequence[Series],
    settings: Train,
    *,
    quiet: bool | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    on_epoch_end: EpochCallback | None = None,
    repeated: History | None = None,
) -> History:
    """Fits the network in place and leaves it on the CPU, with the weights of the lowest validation loss.

    Where no step validates, the weights are those after the last epoch. `repeated` is the history of a fit to a part of
    these series: this one then takes as many epochs as that one's best, at the learning rates of that one's epochs.

    `quiet` None shows a progress bar on terminals only. With a checkpoint the state after every epoch is written to it;
    `resume` goes on from there, or starts from the beginning if there is none. Started as one of several processes the
    call trains together with them. `on_epoch_end` receives the history after each epoch; the training ends if it
    returns true, and an exception that it raises ends the run. Raises TrainingError where the loss is not finite, or
    the device or the checkpoint cannot be used.
    """
    with devices.process_group(settings) as process:
        try:
            run = _Run(network.to(process.device), series, settings, process, checkpoint, repeated)
            if resume:
                run.resume()
            run.settle_learning_rate()
            history = run.history
            disable = quiet if process.first else True
            with Progress(run.epochs, history.steps, disable=disable) as progress:
                while len(history.train) < run.epochs and history.epochs_since_best < settings.patience:
                    run.train_epoch(progress)
                    if checkpoint and process.first:
                        checkpoint.write(run.state())
                    if on_epoch_end is not None and on_epoch_end(history):
                        break
            network.load_state_dict(run.best_weights)
            return history
        finally:
            network.cpu()


class Objective(nn.Module):
    """The network and its loss as one module, so that both are compiled and distributed together."""

    def __init__(self, network: Network, settings: Train) -> None:
        super().__init__()
        self.network, self.use_bfloat16 = network, settings.precision == "bfloat16"

    def forward(self, inputs: Tensor, targets: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the sum of the masked losses, each step's the mean over its targets, and the state after the window.

        The readout and the loss are in float32.
        """
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            hidden, state = self.network(inputs, state)
        return (self.network.head.loss(hidden.float(), targets) * mask).mean(dim=-1).sum(), state


@dataclass(frozen=True, slots=True)
class Trainer:
    """The optimiser steps of one process, over windows of its streams."""

    network: Network
    objective: nn.Module
    optimiser: Optimiser
    settings: Train
    process: Process
    average: AveragedModel | None = None
    """The moving average of the weights, where the settings name one."""

    def epoch(
        self, examples: Sequence[Example], groups: Groups, rates: Iterator[float]
    ) -> Iterator[tuple[float, float, float]]:
        """Trains on each group's windows in turn; yields each step's sum of losses, gradient norm and scored steps."""
        self.network.train()
        size = sampling.steps_per_window(self.settings)
        scored_steps = math.fsum(float(item.mask[: item.training_steps].mean(dim=-1).sum()) for item in examples)
        mean_steps = scored_steps / sampling.optimiser_steps(groups, self.settings)
        for group in groups:
            state: State | None = None
            for window in sampling.windows(examples, group, size, rank=self.process.rank, world=self.process.world):
                if state is None:
                    state = self.network.initial(window.inputs.shape[1])
                loss, norm, state = self.step(window, state, next(rates), mean_steps)
                yield loss, norm, window.scored_steps

    def step(self, window: Window, state: State, rate: float, mean_steps: float) -> tuple[float, float, State]:
        """Descends along the gradient of the sum of losses over the scored steps of all processes, per `mean_steps`.

        mean_steps: the mean number of scored steps of a window, over the epoch. Every scored step so has the same
        weight, also in a window in which few series have steps left.

        Returns the sum of their losses, the gradient's norm before clipping, and the state after the window. Raises
        FloatingPointError if the loss or the norm is not finite.
        """
        state = tuple(tensor.detach() for tensor in state)
        if not window.scored_steps:  # there is no loss: the state is carried on, as after a burn-in
            with torch.no_grad():
                return 0.0, 0.0, self.network(window.inputs, state)[1]
        loss, state = self.objective(window.inputs, window.targets, window.mask, state)
        self.optimiser.zero_grad()
        # DistributedDataParallel averages the processes' gradients; multiplying by their number makes it the sum
        (loss * (self.process.world / mean_steps)).backward()
        total_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        loss_sum, norm = torch.stack((self.process.all_reduce_sum(loss), total_norm)).tolist()
        if not math.isfinite(loss_sum):
            raise FloatingPointError(f"the loss is {loss_sum / window.scored_steps}")
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        self.optimiser.step(rate)
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss_sum, norm, state


def make_trainer(network: Network, settings: Train, process: Process) -> Trainer:
    """Returns the trainer of a process, with the optimiser and the compilation that the settings name."""
    objective = process.data_parallel(Objective(network, settings))
    if settings.compile:
        objective.compile()
    average = optimisation.weight_average(network, settings)
    return Trainer(network, objective, AdamW(network, settings), settings, process, average)


class _Run:
    """The state of a run: network, optimiser, history and best weights, which together are the checkpoint."""

    def __init__(
        self,
        network: Network,
        series: Sequence[Series],
        settings: Train,
        process: Process,
        checkpoint: Checkpoint | None,
        repeated: History | None,
    ) -> None:
        self.network, self.settings, self.process = network, settings, process
        self.checkpoint, self.repeated = checkpoint, repeated
        self.epochs = settings.epochs if repeated is None else repeated.best + 1
        self.validates = any(item.validation_from < item.test_from for item in series)
        self.examples = [make_example(network, item, process.device) for item in series]
        parts = {"training": [(0, example.training_steps) for example in self.examples]}
        if self.validates:
            parts["validation"] = [example.validation_range for example in self.examples]
        for part, ranges in parts.items():
            masks = (example.mask[slice(*steps)] for example, steps in zip(self.examples, ranges, strict=True))
            if not any(mask.any() for mask in masks):
                raise TrainingError(f"no step of the {part} part has a target: there is no next step, or no value")
        self.sampler = sampling.make_sampler([example.training_steps for example in self.examples], settings)
        self.trainer = make_trainer(network, settings, process)
        self.history, self.best_weights = History(), copy.deepcopy(network.state_dict())

    def settle_learning_rate(self) -> None:
        """Replaces a learning rate that is `auto` by that of the history, of the repeated fit or of a range test."""
        configured = self.settings.learning_rate
        if configured != "auto":
            self.history.learning_rate = configured
        elif self.repeated is not None:
            self.history.learning_rate = self.repeated.learning_rate
        elif not self.history.learning_rate:
            self.history.learning_rate = self._test_range()
        self.settings = self.settings.model_copy(update={"learning_rate": self.history.learning_rate})

    def _test_range(self) -> float:
        """Returns the learning rate that a range test chooses, and leaves the initial weights as they were."""
        weights, losses = copy.deepcopy(self.network.state_dict()), list[float]()
        trainer = replace(self.trainer, optimiser=AdamW(self.network, self.settings), average=None)
        torch.manual_seed(self.settings.seed)
        rates = itertools.chain(rate_range.rates(), itertools.repeat(rate_range.HIGHEST))
        for epoch in itertools.count():
            groups = self.sampler(np.random.default_rng((self.settings.seed, epoch)))
            try:
                for loss, _, scored in trainer.epoch(self.examples, groups, rates):
                    if scored:  # a window without scored steps has no loss
                        losses.append(loss / scored)
                    if rate_range.is_over(losses):
                        break
            except FloatingPointError:  # the rate is too high: those before it are compared
                break
            if rate_range.is_over(losses):
                break
        self.network.load_state_dict(weights)
        return rate_range.choose(losses)

    @property
    def used_network(self) -> Network:
        """The network that is validated and exported: with the average of the weights, where there is one."""
        average = self.trainer.average
        return self.network if average is None else cast("Network", average.module)

    def train_epoch(self, progress: Progress) -> None:
        """Trains one epoch, validates, and adds both to the history. Raises TrainingError on divergence."""
        history, settings, epoch = self.history, self.settings, len(self.history.train)
        seeds = np.random.SeedSequence((settings.seed, epoch, self.process.rank))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        groups = self.sampler(np.random.default_rng((settings.seed, epoch)))
        steps = sampling.optimiser_steps(groups, settings)
        rates = list(
            optimisation.learning_rates(
                settings,
                epoch=epoch,
                steps_before=history.steps,
                steps=steps,
                validation=history.validation if self.repeated is None else self.repeated.validation[:epoch],
            )
        )
        progress.begin_epoch(epoch, steps)

        loss_sum, scored_steps, norms, done = 0.0, 0.0, list[float](), 0
        try:
            for loss, norm, scored in self.trainer.epoch(self.examples, groups, iter(rates)):
                loss_sum, scored_steps, done = loss_sum + loss, scored_steps + scored, done + 1
                if scored:  # a window without scored steps has no gradient
                    norms.append(norm)
                progress.step(loss_sum / scored_steps if scored_steps else math.nan, norm)
        except FloatingPointError as error:
            step = history.steps + done + 1
            raise TrainingError(self._divergence(f"step {step}", str(error), rates[done])) from error
        history.steps += steps
        if self.validates:
            self._validate(rates[-1])
        history.train.append(loss_sum / scored_steps)
        history.gradient_mean.append(sum(norms) / len(norms))
        history.gradient_largest.append(max(norms))
        if not self.validates or history.validation[epoch] < history.validation[history.best]:
            history.best = epoch
        if history.best == epoch:
            self.best_weights = copy.deepcopy(self.used_network.state_dict())
        progress.end_epoch(history.validation[epoch] if self.validates else None)

    def _validate(self, rate: float) -> None:
        """Adds the validation loss to the history. Raises TrainingError if it is not finite."""
        loss = self.process.broadcast_number(
            lambda: validate(self.used_network, self.examples, max(VALIDATION_WARM_UP, self.settings.window))
        )
        if not math.isfinite(loss):
            step = f"step {self.history.steps}"
            raise TrainingError(self._divergence(step, f"the validation loss is {loss}", rate))
        self.history.validation.append(loss)

    def _divergence(self, step: str, problem: str, rate: float) -> str:
        epochs = len(self.history.train)
        last_good = "there is no checkpoint"
        if self.checkpoint and epochs:
            last_good = f"the last good checkpoint is {self.checkpoint.file}, of epoch {epochs}"
        advice = f"try a learning_rate below {self.settings.learning_rate} or a smaller clip"
        return f"epoch {epochs + 1}, {step}: {problem}, at a learning rate of {rate:.4g}; {last_good}; {advice}"

    def state(self) -> dict[str, object]:
        """Returns the state that a checkpoint stores."""
        return {
            "history": asdict(self.history),
            "weights": self.network.state_dict(),
            "best": self.best_weights,
            "optimiser": self.trainer.optimiser.state_dict(),
            "average": None if self.trainer.average is None else self.trainer.average.state_dict(),
        }

    def resume(self) -> None:
        """Restores the state in the checkpoint, which the first process reads, where there is one."""
        assert self.checkpoint is not None
        content = self.process.broadcast_bytes(self.checkpoint.read() if self.process.first else None)
        if content is None:
            return
        state = self.checkpoint.state(content)
        self.history = History(**state["history"])
        self.network.load_state_dict(state["weights"])
        self.trainer.optimiser.load_state_dict(state["optimiser"])
        if self.trainer.average is not None:
            self.trainer.average.load_state_dict(state["average"])
        self.best_weights = {name: tensor.to(self.process.device) for name, tensor in state["best"].items()}


def restore(network: Network, state: dict[str, Any]) -> History:
    """Loads the best weights of a checkpoint's state into the network; returns the history that led to them."""
    network.load_state_dict(state["best"])
    return History(**state["history"])


@torch.no_grad()
def validate(network: Network, examples: Sequence[Example], warm_up: int = VALIDATION_WARM_UP) -> float:
    """Returns the mean loss over each series' validation steps.

    A long validation part is cut into segments that are validated side by side. The state of a segment is warmed up
    over the `warm_up` steps before it, or from the series' beginning where that is nearer, or where a label belongs to
    the whole series.
    """
    network.eval()
    losses, scored_steps = [], []
    ranges = [example.validation_range for example in examples]
    streams = validation_streams(ranges, None if network.signature.per_sequence else warm_up)
    for group in sampling.group_by_length(streams, VALIDATION_BATCH):
        state = None
        for window in sampling.windows(examples, group, VALIDATION_WINDOW):
            hidden, state = network(window.inputs, state or network.initial(window.inputs.shape[1]))
            if window.scored_steps:
                loss = network.head.loss(hidden, window.targets) * window.mask
                losses.append(float(loss.mean(dim=-1).sum(dtype=torch.float64)))
                scored_steps.append(window.scored_steps)
    return math.fsum(losses) / math.fsum(scored_steps)


def validation_streams(ranges: Sequence[tuple[int, int]], warm_up: int | None) -> list[Stream]:
    """Cuts the validated steps [from, to) of each series into segments with a warm-up; None: from the beginning.

    A segment is at least as long as its warm-up, so that the warm-up costs no more than the validation itself.
    """
    if warm_up is None:
        return [Stream(index, 0, stop, burn_in=start) for index, (start, stop) in enumerate(ranges) if stop > start]
    size = max(warm_up, math.ceil(sum(stop - start for start, stop in ranges) / VALIDATION_BATCH))
    streams = []
    for index, (start, stop) in enumerate(ranges):
        cuts = sampling.even_cuts(stop - start, max(1, math.ceil((stop - start) / size)))
        for begin, end in pairwise(start + cut for cut in cuts):
            burn_in = min(begin, warm_up)
            streams.append(Stream(index, begin - burn_in, end, burn_in))
    return [stream for stream in streams if stream.steps > stream.burn_in]
