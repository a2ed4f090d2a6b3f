"""Transforms of inputs and targets: every head and scaling as a graph, and the predictions against plain formulas."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onward.model import checks, error_units, transforms
from onward.model.errors import BundleError
from onward.model.inputs import InputArray
from onward.model.manifest import Feature
from onward.model.repository import open_bundle
from onward.model.runner import StepModel
from onward.model.transforms import NUMPY, Transform
from onward.training.config import Model
from onward.training.export import export_bundle
from onward.training.export.graph import contract
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network, Signature
from tests.helpers import numpy_networks

KINDS = {
    "log": Transform(kind="log"),
    "log1p": Transform(kind="log1p"),
    "asinh": Transform(kind="asinh"),
    "a root": Transform(kind="box_cox", exponent=0.33),
}
LOCATION, SPREAD = 0.4, 0.2


def declare(*kinds: Transform | None, differenced: bool = False) -> Signature:
    """Returns a signature of targets t0, t1, ... that have the transforms, the first of which may be missing.

    A covariate with the first transform and a category that may be missing are also read.
    """
    targets = [
        Feature(name=f"t{index}", nullable=not index, transform=kind, differenced=differenced)
        for index, kind in enumerate(kinds)
    ]
    plan = Feature(name="plan", role="known", transform=kinds[0])
    kind = Feature(name="kind", kind="category", categories=("a", "b"), nullable=True)
    names = tuple(feature.name for feature in targets)
    return Signature((*targets, plan, kind), names, differenced=names if differenced else ())


def draw(signature: Signature, rows: int, steps: int, *, seed: int, double: bool = False) -> InputArray:
    """Returns (rows, steps, features) whose transforms are normal; a tenth of nullable values is missing."""
    rng, columns = np.random.default_rng(seed), []
    for feature in signature.features:
        values = LOCATION + SPREAD * rng.standard_normal((rows, steps, 1))
        column = transforms.inverse(NUMPY, (feature.transform,), values)[..., 0]
        if feature.kind == "category":
            column = rng.integers(2, size=(rows, steps)).astype(np.float64)
        if feature.nullable:
            column[rng.random((rows, steps)) < 0.1] = np.nan
        columns.append(column)
    return np.stack(columns, axis=-1).astype(np.float64 if double else np.float32)


def make(signature: Signature, *, double: bool = False, **model: Any) -> Network:
    """Returns a network with random weights, none of which is zero."""
    numbers = torch.tensor([float(feature.kind == "number") for feature in signature.features], dtype=torch.float64)
    zeros = torch.zeros_like(numbers)
    moments = numbers * LOCATION, numbers * SPREAD + (1 - numbers), zeros, numbers * SPREAD * 1.4 + (1 - numbers)
    statistics = TrainingStatistics(*moments, dtype=torch.float64 if double else torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(Model.model_validate({"cell": "gru", "units": 4, **model}), signature, statistics)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def proven(network: Network, folder: Path, *, double: bool = False) -> StepModel:
    """Exports the network, which proves and checks it, and proves the opened bundle on other data."""
    signature = network.signature
    sample = draw(signature, 7, 24, seed=1, double=double)
    export_bundle.export(network, bundle=folder / "tiny/1", sample=sample)
    model, rows = open_bundle(folder / "tiny/1"), draw(signature, 7, 120, seed=2, double=double)
    assert export_bundle.prove(network, contract(network), model, rows) <= 1e-5
    return model


def proven_in_memory(network: Network) -> StepModel:
    """Exports the network into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return proven(network, Path(folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_every_transform_exports_with_every_head(head: str, kind: str, tmp_path: Path) -> None:
    """Targets with and without a transform export; cells, scalings, differences and precisions take turns."""
    number = sorted(KINDS).index(kind)
    scaling, cell = ("fixed", "causal", "mean")[number % 3], ("gru", "lstm", "rnn_tanh")[(number + len(head)) % 3]
    for index, targets in enumerate(((KINDS[kind],), (KINDS[kind], None), (KINDS[kind],) * 2)):
        differenced, double = bool((number + index) % 2), bool((number + index) % 3 == 0)
        network = make(declare(*targets, differenced=differenced), head=head, scaling=scaling, cell=cell, double=double)
        proven(network, tmp_path / str(index), double=double)


@pytest.mark.parametrize("scaling", ["fixed", "causal", "mean"])
@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_relative_changes_export_with_every_head_and_scaling(head: str, scaling: str, tmp_path: Path) -> None:
    for double in (False, True):
        network = make(declare(KINDS["log"], differenced=True), head=head, scaling=scaling, double=double)
        model = proven(network, tmp_path / str(double), double=double)
        assert model.input_dtype == (np.float64 if double else np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_and_the_surprise_are_those_of_the_transformed_normal_distribution(kind: str) -> None:
    """The surprise is the negative logarithm of a density in the data's units, at first of the training part's."""
    transform, network = KINDS[kind], make(declare(KINDS[kind]), head="gaussian")
    model = proven_in_memory(network)
    row = draw(network.signature, 1, 40, seed=5)[0]
    outputs, _ = model.run_row(row, model.layout.initial(1))
    location, scale = (outputs[name][:, 0].astype(np.float64) for name in ("location", "scale"))
    np.testing.assert_allclose(outputs["mean"][:, 0], transform.mean(NUMPY, location, scale), rtol=1e-6)
    location, scale = np.append(LOCATION, location[:-1]), np.append(SPREAD, scale[:-1])
    x = row[:, 0].astype(np.float64)
    above, below = (transform.forward(NUMPY, x * factor) for factor in (1 + 1e-6, 1 - 1e-6))
    slope = (above - below) / (2e-6 * x)
    deviation = (transform.forward(NUMPY, x) - location) / scale
    expected = 0.5 * deviation**2 + np.log(scale) + 0.5 * np.log(2 * np.pi) - np.log(slope)
    np.testing.assert_allclose(outputs["surprise"], np.nan_to_num(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["point", "student_t", "quantiles"])
def test_other_heads_predict_the_inverse_of_their_centre(head: str) -> None:
    """The first output is the median; quantiles are the inverse of quantiles."""
    network = make(declare(KINDS["log"], KINDS["a root"]), head=head)
    model = proven_in_memory(network)
    row = draw(network.signature, 1, 20, seed=6)
    outputs, state = model.run_row(row[0], model.layout.initial(1))
    with torch.no_grad():
        prepared = network.prepare(torch.from_numpy(row).transpose(0, 1))
        expected = numpy_networks.predict(network, prepared)
    centre = {"point": "point", "student_t": "mean", "quantiles": "median"}[head]
    kinds = network.head.transforms
    found = outputs[model.manifest.head.outputs[0]]
    np.testing.assert_allclose(transforms.forward(NUMPY, kinds, found), expected[centre][:, 0], rtol=1e-4, atol=1e-5)
    assert np.array_equal(model.feedback(outputs), found)
    assert np.array_equal(model.feedback(model.last_prediction(state)), found[-1:])
    if head == "quantiles":
        for index, levels in enumerate(np.moveaxis(outputs["quantiles"], -1, 0)):
            transformed = expected["quantiles"][:, 0, :, index]
            np.testing.assert_allclose(transforms.forward(NUMPY, kinds, levels), transformed, rtol=1e-4, atol=1e-5)


def test_random_inputs_of_the_checks_lie_in_the_domain() -> None:
    """The transforms of random inputs have the moments of those of the parity inputs, however far these are spread."""
    model = proven_in_memory(make(declare(KINDS["log"], KINDS["log1p"]), head="gaussian"))
    checks.check(model, steps=30)
    parity = model.manifest.parity
    rows = [[[0.001, -0.9, 1.0, 0], [1000.0, 99.0, 1.0, 1]]]
    spread = parity.model_copy(update={"inputs": rows, "lengths": [2]})
    model.manifest = model.manifest.model_copy(update={"parity": spread})
    drawn = checks.plausible_inputs(model, rows=20, steps=50, seed=0)
    assert np.nanmin(drawn[..., 0]) > 0
    assert drawn[..., 1].min() > -1
    logarithms = np.log(drawn[..., 0].astype(np.float64))
    assert np.nanstd(logarithms) == pytest.approx(np.log(1000), rel=0.1)


def test_a_transform_of_another_target_is_refused(tmp_path: Path) -> None:
    """The transforms of the head are those of its targets."""
    proven(make(declare(KINDS["log"]), head="gaussian"), tmp_path)
    file = tmp_path / "tiny/1/manifest.json"
    document = json.loads(file.read_text())
    document["head"]["transforms"] = [{"kind": "log1p"}]
    file.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="the head's transforms are not those of its targets"):
        open_bundle(file.parent)


@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_predictions_near_the_last_value_are_exported(head: str, tmp_path: Path) -> None:
    """Relative changes that are predicted near zero, as of a random walk, count by their deviation."""
    signature = Signature(
        (Feature(name="y", transform=KINDS["log"], differenced=True),), ("y",), differenced=("y",)
    )  # fmt: skip
    moments = (torch.tensor([value], dtype=torch.float64) for value in (7.0, 0.5, 0.001, 0.02))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(
            Model.model_validate({"cell": "gru", "units": 16, "head": head}), signature, TrainingStatistics(*moments)
        )
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(1e-3)
    changes = np.random.default_rng(0).normal(0.001, 0.02, (7, 200, 1))
    values = np.exp(7.0 + np.cumsum(changes, axis=1)).astype(np.float32)
    model = export_bundle.export(network, bundle=tmp_path / "growth" / "1", sample=values)
    outputs, state = model.run_row(values[0], model.layout.initial(1))
    by_name = {name: outputs[name] for name in outputs.dtype.names or ()}
    parts = model.layout.parts(state)
    found = error_units.units(model, by_name, {name: parts[name] for name in parts.dtype.names or ()})
    near = {name: unit for name, unit in found.items() if error_units.is_near(name)}
    assert near
    assert all((unit >= 0.02).all() for unit in near.values()), near
