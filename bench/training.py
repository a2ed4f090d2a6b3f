"""Benchmarks of the training loop: its speed beside a bare loop, its memory, and tasks that need memory.

    make bench-training

Prints the steps a second of `onward.training.fit.training_loop.fit` and of a bare torch loop over the same network,
data and windows, in alternating rounds, without the validation that both share; the peak memory of a process that
runs either loop; and whether two tasks that need memory are solved: the adding problem (Hochreiter and Schmidhuber
1997) and copying over a delay (Arjovsky, Shah and Bengio 2016).
"""

import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from onward.model.manifest import Feature
from onward.training.config import Cell, Model, Train
from onward.training.data import sampling
from onward.training.data.datasets import Series
from onward.training.data.training_examples import Example, make_example
from onward.training.fit import optimisation, training_loop
from onward.training.fit.checkpoint import Checkpoint
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network, Signature
from onward.training.network.ops import TorchOps

ROUNDS, EPOCHS = 7, 4
SETTINGS = Train(epochs=EPOCHS, window=64, batch=32, patience=EPOCHS)
LENGTH, DELAY, SHOWN = 100, 20, 7
MOST = 2500
"""Maximum number of steps for a task. With 3,200, the plain rnn_tanh has also learnt to copy."""


class Watch:
    """A stopwatch that does not count the time in `training_loop.validate`."""

    def __init__(self) -> None:
        self._validate, self._out = training_loop.validate, 0.0
        training_loop.validate = self._validated
        self._began = time.perf_counter()

    def _validated(
        self, network: Network, examples: Sequence[Example], warm_up: int = training_loop.VALIDATION_WARM_UP
    ) -> float:
        began = time.perf_counter()
        loss = self._validate(network, examples, warm_up)
        self._out += time.perf_counter() - began
        return loss

    def stop(self) -> float:
        training_loop.validate = self._validate
        return time.perf_counter() - self._began - self._out


def wave(steps: int = 60_000) -> Series:
    rng, time_axis = np.random.default_rng(0), np.arange(steps)
    values = np.sin(time_axis / 7) + 0.5 * np.sin(time_axis / 31) + 0.1 * rng.standard_normal(steps)
    return Series("wave", values.astype(np.float32)[:, None], int(steps * 0.7), int(steps * 0.85))


def lstm(units: int) -> Network:
    torch.manual_seed(0)
    return Network(Model(cell="lstm", units=units), Signature((Feature(name="x"),), ("x",)), unscaled(1))


def unscaled(features: int) -> TrainingStatistics:
    return TrainingStatistics(torch.zeros(features), torch.ones(features))


def train_onward(units: int, series: Series) -> int:
    """Trains as `onward train` does, with checkpoints. Returns the number of optimiser steps."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint.pt", {})
        return training_loop.fit(lstm(units), [series], SETTINGS, quiet=True, checkpoint=checkpoint).steps


def train_bare(units: int, series: Series) -> int:
    """Trains with the least code: precut streams, Adam, clipping, validation once an epoch. Returns the steps."""
    network, scaled = lstm(units), torch.from_numpy(series.values)
    streams = sampling.cut_streams([series.validation_from - 1], SETTINGS.batch)
    size = min(stream.steps for stream in streams)
    data = torch.stack([scaled[stream.start : stream.start + size + 1] for stream in streams], dim=1)
    validated = [make_example(network, series)]
    optimiser, steps = torch.optim.AdamW(network.parameters(), lr=float(SETTINGS.learning_rate), weight_decay=0.0), 0
    for _ in range(EPOCHS):
        network.train()
        state = network.initial(len(streams))
        for start in range(0, size, SETTINGS.window):
            stop = min(start + SETTINGS.window, size)
            hidden, state = network(data[start:stop], tuple(tensor.detach() for tensor in state))
            loss = network.head.loss(hidden, data[start + 1 : stop + 1]).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), SETTINGS.clip)
            optimiser.step()
            steps += 1
        training_loop.validate(network, validated)
    return steps


def speed(units: int, series: Series) -> None:
    rates: dict[str, list[float]] = {"onward": [], "bare": []}
    for turn in range(ROUNDS + 1):
        for name, run in (("onward", train_onward), ("bare", train_bare))[:: 1 if turn % 2 else -1]:
            watch = Watch()
            steps = run(units, series)
            took = watch.stop()
            if turn:  # the first round warms up
                rates[name].append(steps / took)
    ratio = statistics.median(
        onward / reference for onward, reference in zip(rates["onward"], rates["bare"], strict=True)
    )
    rates_text = "   ".join(f"{name} {statistics.median(rate):7.1f} steps/s" for name, rate in rates.items())
    print(f"  lstm of {units:3} units   {rates_text}   ratio {ratio:.2f} (goal 0.95)", flush=True)


def peak_kib() -> int:
    """The peak memory of this process. On Linux, getrusage returns that of its parent if it is larger."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak(name: str) -> None:
    """Prints the peak memory in MiB of a new process that trains."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.training", name], capture_output=True, text=True, check=True
    ).stdout
    print(f"  {name:9} {int(done) / 1024:6.0f} MiB", flush=True)


def adding(rng: np.random.Generator, batch: int = 50) -> tuple[Tensor, Tensor]:
    """Inputs: numbers, two of which are marked, one in each half. Target: the sum of these two, (1, batch, 1)."""
    values = rng.uniform(0, 1, (LENGTH, batch)).astype(np.float32)
    marks, rows = np.zeros_like(values), np.arange(batch)
    for low in (0, LENGTH // 2):
        marks[rng.integers(low, low + LENGTH // 2, batch), rows] = 1
    inputs = torch.from_numpy(np.stack((values, marks), axis=-1))
    return inputs, torch.from_numpy((values * marks).sum(axis=0)[None, :, None])


def copying(rng: np.random.Generator, batch: int = 50) -> tuple[Tensor, Tensor]:
    """Inputs: bits, a delay and a cue. Target: the bits in order, (shown, batch, 1)."""
    bits = rng.choice([-1.0, 1.0], (SHOWN, batch)).astype(np.float32)
    inputs = np.zeros((2 * SHOWN + DELAY, batch, 2), np.float32)
    inputs[:SHOWN, :, 0] = bits
    inputs[SHOWN + DELAY, :, 1] = 1
    return torch.from_numpy(inputs), torch.from_numpy(bits[..., None])


def summed(predictions: Tensor, actual: Tensor) -> bool:
    return float((predictions - actual).square().mean()) < 0.01


def copied(predictions: Tensor, actual: Tensor) -> bool:
    return float((predictions.sign() == actual).float().mean()) > 0.99


def answered(network: Network, inputs: Tensor, steps: int) -> Tensor:
    """Predictions for the last steps: (steps, batch, 1)."""
    hidden, _ = network(inputs, network.initial(inputs.shape[1]))
    predictions: Tensor = network.head.read_out(TorchOps(), hidden[-steps:])[0]
    return predictions


def solve(
    label: str, cell: Cell, make: Callable[..., tuple[Tensor, Tensor]], solved: Callable[..., bool], *, plain: bool
) -> None:
    """Trains a network until it solves a task, and prints the result. plain: use torch's own initialisation."""
    torch.manual_seed(0)
    signature = Signature((Feature(name="value"), Feature(name="mark")), ("value",))
    network = Network(Model(cell=cell, units=64, head="point"), signature, unscaled(2))
    if plain:
        for layer in network.layers:
            cast("nn.RNNBase", layer).reset_parameters()
    settings = Train(learning_rate=4e-3 if cell != "rnn_tanh" else 1e-3, warmup=100)
    optimiser, rng = optimisation.AdamW(network, settings), np.random.default_rng(0)
    test = make(np.random.default_rng(1), batch=1000)
    began, steps, done = time.perf_counter(), 0, False
    while not done and steps < MOST:
        for rate in optimisation.learning_rates(settings, epoch=0, steps_before=steps, steps=50, validation=[]):
            inputs, actual = make(rng)
            loss = (answered(network, inputs, len(actual)) - actual).square().mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step(rate)
        steps += 50
        with torch.no_grad():
            predictions = answered(network, test[0], len(test[1]))
        done = solved(predictions, test[1])
    error = math.sqrt(float((predictions - test[1]).square().mean()))
    start = "torch's initial" if plain else "Onward's initial"
    outcome = "solved" if done else "NOT solved"
    took = f"{steps} steps, {time.perf_counter() - began:.0f} s"
    print(f"  {label:22} {cell:9} {start:18} {outcome:10} (RMSE {error:.3f}; {took})", flush=True)


def main() -> None:
    torch.set_num_threads(1)  # with several threads, one that is delayed by other work delays the others
    if len(sys.argv) > 1:
        series = wave()
        if sys.argv[1] != "data only":
            {"onward": train_onward, "bare": train_bare}[sys.argv[1]](64, series)
        print(peak_kib())
        return
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"speed: a series of 60,000 steps, window {SETTINGS.window}, batch {SETTINGS.batch}, medians of {ROUNDS} rounds"
    )
    for units in (16, 64):
        speed(units, wave())
    print("peak memory of a process, torch itself included")
    for name in ("data only", "bare", "onward"):
        peak(name)
    print(f"tasks that need memory, in {MOST} steps at most")
    for task, make, solved in (
        (f"adding, length {LENGTH}", adding, summed),
        (f"copying, delay {DELAY}", copying, copied),
    ):
        solve(task, "lstm", make, solved, plain=False)
        solve(task, "gru", make, solved, plain=False)
        solve(task, "rnn_tanh", make, solved, plain=True)


if __name__ == "__main__":
    main()
