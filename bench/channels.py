"""Compares channels with targets that are read jointly: `python -m bench.channels [seeds]`. Needs the `train` extra.

The table is generated: seven noisy columns with common seasons, whose noise is correlated, at different levels and
scales. A network is trained with each setting, in the same epochs and the same number of optimiser steps. Printed are
its mean squared errors on the test part, in units of each column's variance there, one step ahead and over 24 steps;
both are means over the columns and the seeds. The optimum one step ahead is the variance of what no past determines.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from onward.model.runner import StepModel
from onward.training import config, run
from onward.training.data.datasets import Dataset
from onward.training.evaluation import held_out, probabilistic_metrics, rollout

COLUMNS, HORIZON = 7, 24
TABLES = {"1,500 rows": (1500, False), "6,000 rows": (6000, False), "6,000 rows, a leading column": (6000, True)}
"""The rows of a table, and whether its first column leads the others by one step."""
UNITS = (16, 48)

Values = NDArray[np.float64]

CONFIG = """
[data]
path = "wide.csv"
targets = [{targets}]
channels = "{channels}"
horizon = 2
[model]
cell = "gru"
units = {units}
[train]
seed = {seed}
epochs = 30
patience = 30
window = 48
batch = 8
learning_rate = 5e-3
schedule = "cosine"
"""


class Table(NamedTuple):
    """A generated table."""

    values: Values  # (rows, columns)
    noise: Values  # (rows, columns): the part of each value that no past determines


def generate(rows: int, *, leading: bool, seed: int) -> Table:
    """Returns daily and weekly seasons at phases and strengths of each column, and autoregressive, correlated noise."""
    rng = np.random.default_rng(seed)
    common = 0.6 * np.eye(COLUMNS) + 0.4
    noise = rng.standard_normal((rows, COLUMNS)) @ np.linalg.cholesky(common).T * 0.4
    disturbance = np.zeros((rows, COLUMNS))
    for step in range(1, rows):
        disturbance[step] = 0.8 * disturbance[step - 1] + noise[step]
        if leading:
            disturbance[step, 1:] += 0.4 * disturbance[step - 1, :1]
    hours, phases = np.arange(rows)[:, np.newaxis], rng.uniform(0, 0.5, COLUMNS)
    day = np.sin(2 * np.pi * hours / 24 + phases) * rng.uniform(0.7, 1.3, COLUMNS)
    week = np.sin(2 * np.pi * hours / 168 + phases) * rng.uniform(0.3, 0.7, COLUMNS)
    scale = np.geomspace(0.1, 1000, COLUMNS)
    return Table((10 + day + week + disturbance) * scale, noise * scale)


def forecast_errors(model: StepModel, dataset: Dataset) -> tuple[Values, Values]:
    """Returns by column the mean squared error one step ahead, and over `HORIZON` steps."""
    series = dataset.series[0]
    origins = np.arange(held_out.first_scored(series) - 1, len(series.values) - HORIZON, 3)
    outputs, states = rollout.session(model, series.values, origins)
    actual = series.values[held_out.first_scored(series) :].astype(np.float64)
    predicted = probabilistic_metrics.centre(model.manifest.head, outputs[held_out.first_scored(series) - 1 : -1])
    future = series.values[origins[:, np.newaxis] + np.arange(1, HORIZON + 1)]
    forecasts = rollout.roll_out(model, states, future)
    return ((predicted - actual) ** 2).mean(axis=0), ((forecasts - future) ** 2).mean(axis=(0, 1))


def measure(table: Table, channels: str, units: int, seed: int) -> tuple[float, float, float, float]:
    """Returns both errors and the optimum of the first, in units of the variance, and the seconds of the fit."""
    names = [f"x{column}" for column in range(COLUMNS)]
    with tempfile.TemporaryDirectory() as folder:
        pl.DataFrame(table.values, schema=names, orient="row").write_csv(Path(folder) / "wide.csv")
        file, targets = Path(folder) / "wide.toml", ", ".join(f'"{name}"' for name in names)
        file.write_text(CONFIG.format(targets=targets, channels=channels, units=units, seed=seed))
        settings = config.read(file)
        start = time.process_time()
        fitted = run.fit(settings, quiet=True)
        seconds = time.process_time() - start
        _, model = run.publish(settings, fitted)
        next_step, several = forecast_errors(model, fitted.dataset)
    test = fitted.dataset.series[0].test_from
    variance = table.values[test:].var(axis=0)
    best = (table.noise[test:] ** 2).mean(axis=0)
    return (
        float((next_step / variance).mean()),
        float((several / variance).mean()),
        float((best / variance).mean()),
        seconds,
    )


def main(seeds: int = 3) -> None:
    torch.set_num_threads(1)
    print("table", "units", "channels", "one step", "optimum", f"{HORIZON} steps", "seconds", sep=" | ")
    for name, (rows, leading) in TABLES.items():
        tables = [generate(rows, leading=leading, seed=seed) for seed in range(seeds)]
        for units in UNITS:
            for channels in ("joint", "independent"):
                runs = [measure(table, channels, units, seed) for seed, table in enumerate(tables)]
                next_step, several, best, seconds = np.mean(runs, axis=0)
                figures = [f"{next_step:.3f}", f"{best:.3f}", f"{several:.3f}", f"{seconds:.0f}"]
                print(name, units, channels, *figures, sep=" | ", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
