"""Compares half-lives of causal scaling: `python -m bench.half_life [seeds]`. Needs the `train` extra.

A small network is trained for each series, half-life and seed. Printed is its error on the test part, in units of the
error of the last value, and its mean surprise there; both are means over the seeds. The series are generated, except
for the weekly carbon dioxide of `examples/co2`.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.training.config import Model, Train
from onward.training.data.datasets import Dataset, Series
from onward.training.data.training_statistics import compute
from onward.training.fit import training_loop
from onward.training.network.network import Network, Signature
from onward.training.network.ops import TorchOps

HALF_LIVES = (0, 25, 50, 100, 200, 500, 1000, 2000)
"""The half-lives in steps; 0 is no forgetting."""

STEPS = 3000

Values = NDArray[np.float64]


def wave(rng: np.random.Generator) -> Values:
    """An autoregression of second order with unit deviation, and a season of 24 steps."""
    noise, values = rng.standard_normal(STEPS) * 0.48, np.zeros(STEPS)
    for t in range(2, STEPS):
        values[t] = 1.2 * values[t - 1] - 0.6 * values[t - 2] + noise[t]
    return values + np.sin(np.arange(STEPS) * 2 * np.pi / 24)


def piecewise(rng: np.random.Generator, mean_steps: float, draw: Callable[[], float]) -> Values:
    """A piecewise constant series whose values are drawn, and change after so many steps in the mean."""
    value, values = draw(), np.zeros(STEPS)
    for t in range(STEPS):
        value = draw() if rng.random() < 1 / mean_steps else value
        values[t] = value
    return values


def co2() -> Values:
    with (Path(__file__).parents[1] / "examples/co2/co2.csv").open() as file:
        return np.array([float(row["co2"] or "nan") for row in csv.DictReader(file)])


SERIES: dict[str, Callable[[np.random.Generator], Values]] = {
    "steady": lambda rng: 100 + wave(rng),
    "drift": lambda rng: wave(rng) + np.cumsum(rng.standard_normal(STEPS)) * 0.2,
    "trend": lambda rng: wave(rng) + np.arange(STEPS) * 0.02,
    "level shifts of 20": lambda rng: wave(rng) + piecewise(rng, 300, lambda: 20 * rng.standard_normal()),
    "two levels": lambda rng: wave(rng) + piecewise(rng, 60, lambda: 25.0 * rng.integers(2)),
    "changing variance": lambda rng: wave(rng) * np.exp(np.cumsum(rng.standard_normal(STEPS)) * 0.05),
    "one value in 20": lambda rng: np.exp(rng.standard_normal(STEPS)) * (rng.random(STEPS) < 0.05),
    "spikes": lambda rng: wave(rng) + (rng.random(STEPS) < 0.003) * rng.choice([-1e3, 1e3], STEPS),
    "heavy tails": lambda rng: wave(rng) + rng.standard_t(2, STEPS) * 0.3,
    "co2": lambda _: co2(),
    "co2, differenced": lambda _: co2(),
}


def measure(name: str, half_life: float, seed: int) -> tuple[float, float]:
    """Returns the median absolute error in units of the last value's, and the mean surprise in nats."""
    values = SERIES[name](np.random.default_rng(seed)).astype(np.float32)[:, np.newaxis]
    series = Series(name, values, int(len(values) * 0.7), int(len(values) * 0.85))
    feature = Feature(name="x", nullable=bool(np.isnan(values).any()))
    signature = Signature((feature,), ("x",), differenced=("x",) if "differenced" in name else ())
    torch.manual_seed(seed)
    options = {"half_life": float(half_life)} if "half_life" in Model.model_fields else {}
    model = Model.model_validate({"cell": "gru", "units": 16, "scaling": "causal", "head": "student_t"} | options)
    network = Network(model, signature, compute(Dataset((series,), "", (feature,))))
    settings = Train(epochs=30, window=50, batch=16, learning_rate=0.01, patience=8, schedule="cosine")
    training_loop.fit(network, [series], settings, quiet=True)
    network.eval()
    with torch.no_grad():
        prepared = network.prepare(torch.from_numpy(values)[:, None])
        hidden, _ = network(prepared.inputs, network.initial(1))
        ops, scale = TorchOps(), prepared.target_scale
        assert scale is not None
        around = network.head.predict(ops, network.head.read_out(ops, hidden), scale)
        level = torch.zeros_like(scale.mean) if scale.level is None else scale.level
        actual_targets = torch.from_numpy(values)[1:, None] - level[:-1]
        scores = network.head.surprise(ops, {key: value[:-1] for key, value in around.items()}, around, actual_targets)[
            series.test_from - 1 :, 0, 0
        ]
        centre = (around["mean"] + level)[series.test_from - 1 : -1, 0, 0].numpy()
    actual = values[series.test_from :, 0]
    present = ~np.isnan(actual)
    naive = np.abs(np.diff(values[:, 0]))[series.test_from - 1 :]
    error = np.abs(actual - centre)[present].mean() / np.nanmean(naive)
    return float(error), float(scores.numpy()[present].mean())


def main(seeds: int = 2, names: str = "") -> None:
    torch.set_num_threads(1)
    print("series", *(half_life or "never" for half_life in HALF_LIVES), sep=" | ")
    for name in names.split(",") if names else SERIES:
        cells = []
        for half_life in HALF_LIVES:
            errors, surprises = zip(*(measure(name, half_life, seed) for seed in range(seeds)), strict=True)
            cells.append(f"{np.mean(errors):.3f} {np.mean(surprises):.2f}")
        print(name, *cells, sep=" | ", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2, *sys.argv[2:3])
