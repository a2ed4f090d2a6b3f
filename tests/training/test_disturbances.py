"""The recovery of a session with causal scaling after an absurd value and after a level shift, through the graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.model.runner import StepModel
from onward.training.config import Cell, Model, Train
from onward.training.data.datasets import Dataset, Series
from onward.training.data.training_statistics import compute
from onward.training.evaluation import rollout
from onward.training.export import export_bundle
from onward.training.fit import training_loop
from onward.training.network.network import Network, Signature

STEPS, AT, RECOVERED = 3000, 2500, 20
"""The steps of the series, that of the disturbance, and how many steps later the error is undisturbed again."""


def wave(seed: int) -> NDArray[np.float64]:
    """Returns a season with an autoregression around it, (STEPS,), with a deviation of about 1."""
    rng, values = np.random.default_rng(seed), np.zeros(STEPS)
    for step in range(1, STEPS):
        values[step] = 0.7 * values[step - 1] + 0.3 * rng.standard_normal()
    return 100 + values + np.sin(np.arange(STEPS) * 2 * np.pi / 24)


def trained(cell: Cell, seed: int, values: NDArray[np.float64], folder: Path, **options: float) -> StepModel:
    torch.manual_seed(seed)
    column = values.astype(np.float32)[:, np.newaxis]
    series, feature = Series("wave", column, 1800, 2100), Feature(name="x")
    model = Model.model_validate({"cell": cell, "units": 16, "scaling": "causal", "head": "point"} | options)
    network = Network(model, Signature((feature,), ("x",)), compute(Dataset((series,), "", (feature,))))
    settings = Train(epochs=12, window=50, batch=16, learning_rate=0.02, schedule="cosine", seed=seed)
    training_loop.fit(network, [series], settings, quiet=True)
    sample = np.stack([column[start : start + export_bundle.PROOF_STEPS] for start in range(0, 1400, 200)])
    return export_bundle.export(network, bundle=folder / "wave/1", sample=sample)


def errors(model: StepModel, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the absolute error at each step, (STEPS - 1,)."""
    outputs, _ = rollout.session(model, values.astype(np.float32)[:, np.newaxis])
    return np.abs(outputs["point"][:-1, 0] - values.astype(np.float32)[1:])


@pytest.mark.parametrize("options", [{}, {"half_life": 0.0}], ids=["default", "never forgets"])
@pytest.mark.parametrize(("cell", "seed"), [("gru", 0), ("lstm", 1)])
def test_the_error_recovers(cell: Cell, seed: int, options: dict[str, float], tmp_path: Path) -> None:
    """Twenty steps after a value of 1e9 deviations, and after a shift of twenty, the error is within 1.5 of before."""
    values = wave(seed)
    model = trained(cell, seed, values, tmp_path, **options)
    undisturbed = errors(model, values)
    spike, shift = values.copy(), values.copy()
    spike[AT] += 1e9
    shift[AT:] += 20
    for disturbed in (spike, shift):
        found = errors(model, disturbed)
        for start in (AT + RECOVERED, AT + 100):
            part = slice(start, start + 100)
            assert found[part].mean() < 1.5 * undisturbed[part].mean()
