"""Every head with every cell and every scaling as a graph; categories and labels against a plain softmax.

Each network is exported, which proves it and runs `onward.model.checks`, and is proven again over 200 steps: the graph
agrees with the network to 1e-5, alone and in a batch, even and ragged, in single steps and in a single call.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.model.repository import open_bundle
from onward.model.runner import Outputs, StepModel
from onward.training.config import Model
from onward.training.export.export_bundle import prove
from onward.training.export.graph import contract
from onward.training.network.network import Network, Signature
from tests.helpers import numpy_networks
from tests.helpers.numpy_networks import Floats, draw, signature
from tests.helpers.recorded_bundles import category, stepped_outputs

OFFSET = 1_700_000_000.0
CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")

NUMBERS = signature(
    (
        Feature(name="x", nullable=True),
        Feature(name="hour", role="known", lead=1, nullable=True),
        Feature(name="y"),
        category("kind", 3, nullable=True),
        Feature(name="place", role="static"),
    ),
    "y",
    "x",
)


def proven(network: Network, tmp_path: Path, offset: float = 0.0) -> StepModel:
    """Exports and proves the network; returns the model of the opened bundle. offset: of all numbers."""
    numpy_networks.export(network, tmp_path, offset=offset)
    model = open_bundle(tmp_path / "tiny" / "1")
    assert model.manifest.exact is (network.config.cell in {"lstm", "gru"})
    assert model.manifest.features == network.signature.features
    sample = draw(network.signature.features, 7, 200, seed=2, offset=offset)
    assert prove(network, contract(network), model, sample) <= 1e-5
    return model


@pytest.mark.parametrize("scaling", ["fixed", "causal", "mean"])
@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
@pytest.mark.parametrize("cell", CELLS)
def test_numbers_export(cell: str, head: str, scaling: str, tmp_path: Path) -> None:
    """Networks of two targets, a nullable one among them, with known, static and categorical features export."""
    proven(numpy_networks.network(NUMBERS, cell=cell, units=3, head=head, scaling=scaling), tmp_path)


@pytest.mark.parametrize("changes", [(), ("y", "x"), ("x",)])
@pytest.mark.parametrize("scaling", ["fixed", "causal"])
@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_numbers_in_double_precision_export(head: str, scaling: str, changes: tuple[str, ...], tmp_path: Path) -> None:
    """An offset of 1.7e9 changes no state of a layer and no surprise, and the prediction by the offset alone."""
    described = replace(NUMBERS, differenced=changes)
    if scaling == "causal":
        network = numpy_networks.network(described, cell="gru", units=3, head=head, scaling=scaling, offset=OFFSET)
        proven(network, tmp_path, OFFSET)
        return
    results = []
    for name, offset in (("plain", 0.0), ("double", OFFSET)):
        network = numpy_networks.network(described, cell="lstm", units=3, head=head, scaling=scaling, offset=offset)
        model = proven(network, tmp_path / name, offset)
        sample = draw(described.features, 1, 200, seed=3, offset=OFFSET)
        if not offset:
            sample = (sample - [0.0 if f.kind == "category" else OFFSET for f in described.features]).astype(np.float32)
        outputs, _ = model.run_row(sample[0], model.layout.initial(1))
        results.append(outputs)
    plain, double = results
    for name in double.dtype.names or ():
        assert double.dtype[name].base == np.float64
        moves = name in {"point", "mean", "median", "quantiles"}
        np.testing.assert_allclose(double[name] - OFFSET * moves, plain[name], rtol=1e-5, atol=2e-5)


MIXED = (Feature(name="x", nullable=True), category("word", 9), category("kind", 3, nullable=True), Feature(name="y"))

TOKENS: dict[str, tuple[Signature, dict[str, Any]]] = {
    "plain": (signature((category("word", 9),), "word"), {"top": 4}),
    "tied": (signature((category("word", 9),), "word"), {"tied": True, "embedding": 4}),
    "tied by a projection": (signature((category("word", 9),), "word"), {"tied": True, "embedding": 6, "top": 9}),
    "nullable and unknown": (signature((category("word", 9, nullable=True, unknown=True),), "word"), {"top": 10}),
    "tied, nullable and unknown": (
        signature((category("word", 9, nullable=True, unknown=True),), "word"),
        {"tied": True, "embedding": 4, "top": 5},
    ),
    "mixed": (signature(MIXED, "word"), {"tied": True, "embedding": 5, "top": 1, "scaling": "causal"}),
}


LABELS: dict[str, tuple[Signature, dict[str, Any]]] = {
    "of each step": (signature((Feature(name="x"),), "who", classes=("a", "b", "c")), {}),
    "of a sequence": (
        signature(MIXED, "who", classes=(3, 5, 7, 9), per_sequence=True),
        {"scaling": "causal", "top": 2},
    ),
}


@pytest.mark.parametrize(("head", "cell"), [("categorical", "gru"), ("label", "lstm"), ("label", "rnn_relu")])
def test_deep_category_heads_export(head: str, cell: str, tmp_path: Path) -> None:
    """Stacks with residual connections and layer normalisation export."""
    model_signature = signature((category("word", 9),), "word")
    if head == "label":
        model_signature = signature((Feature(name="x"), category("word", 9)), "who", classes=("a", "b", "c"))
    more: dict[str, Any] = {"layers": 2, "residual": True, "layer_norm": True}
    proven(numpy_networks.network(model_signature, cell=cell, units=4, head=head, **more), tmp_path)


def log_probabilities(network: Network, row: NDArray[np.float32]) -> Floats:
    """Returns (1 + time, categories) before the first step and after each step, from the weights alone."""
    layer = numpy_networks.prepare(network, row)
    inputs = [part for part in (layer.dense, layer.embedded) if part.size]
    hidden = numpy_networks.hidden(network, np.concatenate(inputs, axis=1))
    hidden = np.concatenate([np.zeros_like(hidden[:1]), hidden])
    weights = {name: value.double().numpy() for name, value in network.state_dict().items()}
    if "head.projection.weight" in weights:
        hidden = hidden @ weights["head.projection.weight"].T + weights["head.projection.bias"]
    count = len(weights["head.bias"])
    if network.config.tied:
        table = [feature.name for feature in network.signature.features if feature.kind == "category"].index("word")
        matrix = weights[f"input_layer.embeddings.{table}.weight"][:count]
    else:
        matrix = weights["head.own"]
    logits = hidden @ matrix.T + weights["head.bias"]
    result: Floats = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return result


def ranked(outputs: Outputs, expected: Floats, top: int) -> None:
    """Asserts that categories are ranked by probability; no two probabilities are as close as rounding."""
    order = np.argsort(-expected, axis=1)[:, :top]
    assert np.abs(np.diff(np.sort(expected, axis=1), axis=1)).min() > 1e-5
    assert np.array_equal(outputs["top"], order)
    np.testing.assert_allclose(outputs["log_probability"], np.take_along_axis(expected, order, 1), atol=2e-6)


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("cell", CELLS)
def test_tokens_export_and_are_those_of_a_plain_softmax(cell: str, kind: str, tmp_path: Path) -> None:
    """Ranked categories, their probabilities, and each category's surprise equal those of a plain softmax.

    The surprise of the first category is that of the marginal prediction; a missing category has a surprise of 0.
    """
    model_signature, options = TOKENS[kind]
    counts = np.arange(1.0, model_signature.category_count + 1).tolist()
    network = numpy_networks.network(model_signature, cell=cell, units=4, head="categorical", counts=counts, **options)
    model = proven(network, tmp_path)
    row = draw(model_signature.features, 1, 60, seed=12)[0]
    outputs, expected = stepped_outputs(model, row), log_probabilities(network, row)
    ranked(outputs, expected[1:], min(options.get("top", 20), model_signature.category_count))
    actual = row[:, model_signature.target_columns[0]]
    missing = np.isnan(actual)
    assert bool(missing.any()) is model_signature.features[model_signature.target_columns[0]].nullable
    nll = -expected[np.arange(60), np.where(missing, 0, actual).astype(int)]
    np.testing.assert_allclose(outputs["surprise"], np.where(missing, 0, nll), atol=3e-6)
    assert np.array_equal(outputs["surprise"][missing], np.zeros(missing.sum()))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("cell", CELLS)
def test_labels_export_and_are_those_of_a_plain_softmax(cell: str, kind: str, tmp_path: Path) -> None:
    """The surprise is the divergence between the class probabilities after a step and those before it."""
    model_signature, options = LABELS[kind]
    counts = np.arange(2.0, len(model_signature.classes) + 2).tolist()
    network = numpy_networks.network(model_signature, cell=cell, units=4, head="label", counts=counts, **options)
    model = proven(network, tmp_path)
    row = draw(model_signature.features, 1, 60, seed=13)[0]
    outputs, expected = stepped_outputs(model, row), log_probabilities(network, row)
    ranked(outputs, expected[1:], min(options.get("top", 20), len(model_signature.classes)))
    divergence = (np.exp(expected[1:]) * (expected[1:] - expected[:-1])).sum(axis=1)
    assert (divergence >= 0).all()
    assert divergence.max() > 1e-3
    np.testing.assert_allclose(outputs["surprise"], divergence, atol=3e-6)


@pytest.mark.parametrize("scaling", ["fixed", "causal", "mean"])
def test_the_surprise_of_numbers_is_their_likelihood(scaling: str) -> None:
    """The surprise is that of the present values under the previous prediction, at first under the training part's."""
    network = numpy_networks.network(NUMBERS, cell="gru", units=4, head="gaussian", scaling=scaling)
    model = numpy_networks.export(network)
    row = draw(NUMBERS.features, 1, 60, seed=14)[0]
    row[:2, 0] = np.nan
    row[30, 2] *= 1000
    outputs = stepped_outputs(model, row)
    mean = np.concatenate([[[numpy_networks.MEAN] * 2], outputs["mean"][:-1].astype(np.float64)])
    std = np.concatenate([[[numpy_networks.STD] * 2], outputs["std"][:-1].astype(np.float64)])
    actual = row[:, [2, 0]].astype(np.float64)
    nll = 0.5 * ((actual - mean) / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)
    assert np.isnan(nll).sum() > 2
    np.testing.assert_allclose(outputs["surprise"], np.nansum(nll, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_a_step_without_targets_has_no_surprise(head: str) -> None:
    """The surprise is exactly 0 for every head, while the prediction continues."""
    model_signature = signature((Feature(name="x", nullable=True), Feature(name="z", nullable=True)), "x", "z")
    network = numpy_networks.network(model_signature, cell="lstm", units=4, head=head, scaling="causal")
    row = draw(model_signature.features, 1, 20, seed=15)[0]
    row[:3] = row[10:13] = np.nan
    outputs = stepped_outputs(numpy_networks.export(network), row)
    assert outputs["surprise"][[0, 1, 2, 10, 11, 12]].tolist() == [0.0] * 6
    assert np.count_nonzero(outputs["surprise"]) == np.count_nonzero(~np.isnan(row).all(axis=1))
    assert len(np.unique(outputs[model_output(head)][10:13, 0])) == 3


def model_output(head: str) -> str:
    return {"point": "point", "gaussian": "mean", "student_t": "mean", "quantiles": "median"}[head]


def test_the_first_prediction_is_the_training_share() -> None:
    """An untrained network predicts each category's share of the training part, with 1 added to each count."""
    model_signature = signature((category("word", 4),), "word")
    model = Model.model_validate({"cell": "gru", "units": 4, "head": "categorical"})
    network = Network(
        model, model_signature, numpy_networks.statistics(model_signature), torch.tensor([5.0, 0.0, 2.0, 9.0])
    )
    first = network.head.marginal(None)
    shares = np.array([6, 1, 3, 10]) / 20
    assert first["top"].tolist() == [3, 0, 2, 1]
    np.testing.assert_allclose(first["log_probability"].numpy(), np.log(shares[[3, 0, 2, 1]]), atol=1e-6)
