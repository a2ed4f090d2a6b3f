"""The graph of a step has few nodes and state tensors: each takes the same time of a call, however small it is."""

from typing import Any

import pytest

from onward.model.manifest import Feature
from onward.training.export.graph import build, contract
from onward.training.network.network import Signature
from tests.helpers import numpy_networks
from tests.helpers.numpy_networks import signature
from tests.helpers.random_bundles import make_network
from tests.helpers.recorded_bundles import category

LAYERS = {"RNN", "GRU", "LSTM"}


def nodes_beside_layers(network: Any) -> int:
    nodes = build(network, contract(network)).graph.node
    assert sum(node.op_type in LAYERS for node in nodes) == network.config.layers
    return sum(node.op_type not in LAYERS for node in nodes)


@pytest.mark.parametrize(("layers", "at_most"), [(1, 24), (2, 25)])
def test_a_gaussian_lstm_of_one_feature_has_few_nodes(layers: int, at_most: int) -> None:
    """Scaling, head, score and the shift by a step take 25 nodes beside two layers, with the split of the state."""
    assert nodes_beside_layers(make_network(cell="lstm", layers=layers)) <= at_most


@pytest.mark.parametrize(("head", "at_most"), [("point", 17), ("gaussian", 24), ("student_t", 30), ("quantiles", 39)])
def test_every_head_of_numbers_has_few_nodes(head: str, at_most: int) -> None:
    """The scale of a prediction is in the readout's weights, so that most heads add few nodes of their own."""
    assert nodes_beside_layers(make_network(cell="gru", head=head)) <= at_most


@pytest.mark.parametrize(("options", "at_most"), [({"scaling": "causal"}, 76), ({"scaling": "mean"}, 65)])
def test_scaling_by_the_session_adds_few_nodes(options: dict[str, Any], at_most: int) -> None:
    """The running sums are one tensor, which one node adds up."""
    network = numpy_networks.network(signature((X,), "x"), cell="gru", units=4, head="gaussian", **options)
    assert nodes_beside_layers(network) <= at_most


X, WORD = Feature(name="x"), category("word", 9)
STATE: dict[str, tuple[Signature, dict[str, Any], list[str]]] = {
    "numbers": (signature((X,), "x"), {"head": "gaussian"}, ["state_in"]),
    "levels": (signature((X,), "x"), {"head": "quantiles"}, ["state_in"]),
    "causal scaling": (
        signature((X,), "x"),
        {"head": "gaussian", "scaling": "causal"},
        ["state_in", "statistics_in"],
    ),
    "differencing": (
        signature((X,), "x", differenced=("x",)),
        {"head": "student_t"},
        ["state_in", "previous_in", "begun_in"],
    ),
    "categories": (signature((WORD,), "word"), {"head": "categorical"}, ["state_in", "last_top_in"]),
    "labels": (signature((X,), "who", classes=("a", "b")), {"head": "label"}, ["state_in", "last_top_in"]),
}


@pytest.mark.parametrize("kind", STATE)
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_state_in_single_precision_is_one_tensor(cell: str, kind: str) -> None:
    """Only sums in double precision, indices, and the last values of differenced features have their own tensors."""
    model_signature, options, expected = STATE[kind]
    network = numpy_networks.network(model_signature, cell=cell, layers=2, units=4, **options)
    state = contract(network).state
    assert [pair.input for pair in state] == expected
    recurrent = [f"{name}_{layer}" for name in (("h", "c") if cell == "lstm" else ("h",)) for layer in (0, 1)]
    assert [part.name for part in state[0].parts][: len(recurrent)] == recurrent
