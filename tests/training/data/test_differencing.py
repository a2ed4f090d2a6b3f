"""Differencing is compared with plain loops, and lets a model follow a trend beyond the range of its training data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.training import run
from onward.training.config import Config, Data
from onward.training.data.datasets import Series
from onward.training.data.training_examples import make_example
from onward.training.data.training_statistics import differences
from onward.training.export.export_bundle import prove
from onward.training.export.graph import contract
from onward.training.network.network import Network
from tests.helpers import numpy_networks
from tests.helpers.numpy_networks import MEAN, STD, draw, signature

FEATURES = (Feature(name="x", nullable=True), Feature(name="y"), Feature(name="known", role="known"))
DIFFERENCED: dict[str, tuple[str, ...]] = {"may be missing": ("x",), "never missing": ("y",), "both": ("x", "y")}


def make_network(differenced: tuple[str, ...], **more: Any) -> Network:
    declared = signature(FEATURES, "y", "x", differenced=differenced)
    return numpy_networks.network(declared, **{"cell": "gru", "units": 4, "head": "gaussian", **more})


def differences_and_levels(row: NDArray[np.float32], column: int) -> tuple[list[float], list[float]]:
    """Returns the differences from the last value, 0 for the first and NaN where missing; and the last values."""
    last, begun, differences, levels = MEAN, False, [], []
    for value in row[:, column].astype(np.float64):
        differences.append(np.nan if np.isnan(value) else value - last if begun else 0.0)
        if not np.isnan(value):
            last, begun = float(value), True
        levels.append(last)
    return differences, levels


@pytest.mark.parametrize("holes", ["drawn", "at the beginning"])
@pytest.mark.parametrize("differenced", DIFFERENCED.values(), ids=DIFFERENCED)
def test_differenced_inputs_scales_and_targets_equal_a_plain_loop(differenced: tuple[str, ...], holes: str) -> None:
    """The network reads the scaled difference; its prediction is relative to the last value, as are the targets."""
    network, row = make_network(differenced), draw(FEATURES, 1, 50, seed=4)[0]
    if holes == "at the beginning":
        row[:6, 0] = np.nan
    row[:, 1] += np.arange(50)  # a trend
    prepared = network.prepare(torch.from_numpy(row)[:, None])
    assert prepared.target_scale is not None
    assert prepared.target_scale.level is not None
    mean, std = (
        value.expand(50, 1, 2)[:, 0].numpy()
        for value in (prepared.target_scale.mean + prepared.target_scale.level, prepared.target_scale.std)
    )
    example = make_example(network, Series("s", row, 40, 45))
    for column, name in ((0, "x"), (1, "y")):
        target = ("y", "x").index(name)
        difference, last = differences_and_levels(row, column)
        if name not in differenced:
            difference, last = row[:, column].astype(np.float64).tolist(), [MEAN] * 50
        centre = 0.0 if name in differenced else MEAN
        scaled = np.nan_to_num((np.array(difference) - centre) / STD)
        np.testing.assert_allclose(prepared.inputs[:, 0, column], scaled, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(mean[:, target], last, rtol=1e-5)
        np.testing.assert_allclose(std[:, target], STD)
        following = (row[1:, column] - np.array(last)[:-1]) / STD
        np.testing.assert_allclose(example.targets[:-1, target], np.nan_to_num(following), rtol=1e-4, atol=1e-4)
        assert example.mask[:, target].tolist() == [*(~np.isnan(following)).astype(float), 0.0]


@pytest.mark.parametrize("scaling", ["fixed", "causal"])
@pytest.mark.parametrize("differenced", DIFFERENCED.values(), ids=DIFFERENCED)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_differencing_is_exported(cell: str, differenced: tuple[str, ...], scaling: str, tmp_path: Path) -> None:
    """The graph equals the network, its state holds the last values, and the checks pass."""
    network = make_network(differenced, cell=cell, scaling=scaling)
    model = numpy_networks.export(network, tmp_path)
    assert {"previous_in", "begun_in", "state_in.near_mean"} <= set(
        model.layout.parts(model.layout.initial(1)).dtype.names or ()
    )
    assert prove(network, contract(network), model, draw(FEATURES, 7, 200, seed=2)) <= 1e-5
    rows = draw(FEATURES, 1, 30, seed=9)[0]
    state = model.layout.initial(1)
    _, state = model.run_row(rows, state)
    expected = [
        differences_and_levels(rows, FEATURES.index(Feature(name=name, nullable=name == "x")))[1][-1]
        for name in differenced
    ]
    np.testing.assert_allclose(state["previous_in"][0], sorted(expected, key=expected.index), rtol=1e-6)


def test_a_small_difference_on_a_high_level_keeps_its_digits(tmp_path: Path) -> None:
    """Graph and network agree to 1e-5 on predictions and surprise at a level of a million deviations."""
    declared = signature((Feature(name="x"),), "x", differenced=("x",))
    for head in ("gaussian", "point", "student_t", "quantiles"):
        network = numpy_networks.network(declared, cell="lstm", units=4, head=head)
        rows = (1e6 * STD + np.cumsum(draw(declared.features, 7, 200, seed=1) - MEAN, axis=1)).astype(np.float32)
        model = numpy_networks.export(network, tmp_path / head)
        assert prove(network, contract(network), model, rows) <= 1e-5
        outputs, _ = model.run_row(rows[0], model.layout.initial(1))
        assert (
            np.abs(outputs["surprise"][1:]).max() < 200
        )  # the first value is a million deviations from the training mean


def test_differences_are_from_the_last_value_present() -> None:
    values = np.array([[np.nan, 1.0], [2.0, 4.0], [np.nan, 9.0], [7.0, np.nan], [7.5, 10.0]])
    nan = np.nan
    np.testing.assert_array_equal(differences(values), [[nan, nan], [nan, 3.0], [nan, 5.0], [5.0, nan], [0.5, 1.0]])


def test_a_trend_goes_on_beyond_what_training_saw(tmp_path: Path) -> None:
    """A random walk with a drift and a season rises, in its held-out part, above all values of the training part.

    With differencing the model still beats the last value; without it, it does not.
    """
    rng = np.random.default_rng(0)
    walk = np.cumsum(0.3 + 0.5 * np.sin(np.arange(1200) * np.pi / 4) + 0.05 * rng.standard_normal(1200))
    (tmp_path / "walk.csv").write_text("level\n" + "\n".join(f"{value:.4f}" for value in walk) + "\n")
    errors = {}
    for differenced in ((), ("level",)):
        settings = Config.model_validate(
            {
                "name": "walk",
                "data": {"path": "walk.csv", "targets": ("level",), "changes": differenced, "horizon": 1},
                "model": {"cell": "gru", "units": 12},
                "train": {"epochs": 15, "window": 40, "batch": 8, "learning_rate": 0.02},
                "output": {"repository": "models"},
            }
        ).model_copy(update={"folder": tmp_path})
        _, model = run.train(settings, quiet=True)
        metrics: Any = model.manifest.metrics
        table = metrics["targets"]["level"]
        errors[differenced] = table["model"]["mae"] / table["last_value"]["mae"]
    assert errors[("level",)] < 0.3
    assert errors[()] > 1


def test_only_observed_numbers_are_differenced() -> None:
    for key in ("categories", "known", "static"):
        with pytest.raises(ValueError, match="changes must be observed numbers: y is none"):
            Data.model_validate(
                {"path": "x.csv", "targets": ("x",), "features": ("x", "y"), key: ("y",), "changes": ("y",)}
            )
