"""Targets as channels: one network with the same weights for each target, and a state and a scale of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from onward.model.manifest import Feature
from onward.model.repository import open_bundle
from onward.model.runner import StepModel
from onward.model.transforms import Transform
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network, Signature
from tests.helpers import numpy_networks
from tests.helpers.numpy_networks import draw, signature
from tests.helpers.recorded_bundles import category
from tests.training.export import test_transforms as transformed

HEADS = ("point", "gaussian", "student_t", "quantiles")


def contract_states(network: Network) -> None:
    """Makes the recurrent weights a contraction, so that no rounding grows over the steps."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "weight_hh" in name:
                parameter.mul_(0.5)


@pytest.mark.parametrize("scaling", ["fixed", "causal", "mean"])
@pytest.mark.parametrize("head", HEADS)
def test_channels_export_with_every_head_and_scaling(head: str, scaling: str, tmp_path: Path) -> None:
    """Missing values, covariates and categories are read; cells, transforms, differences and precisions take turns."""
    number = HEADS.index(head) + len(scaling)
    log, cells = Transform(kind="log"), ("gru", "lstm", "rnn_tanh", "rnn_relu")
    for index, kinds in enumerate(((None, None), (log, None, log))):
        differenced, double = bool((number + index) % 2), bool((number + index) % 3 == 0)
        described = replace(transformed.declare(*kinds, differenced=differenced), independent=True)
        cell, layers = cells[(number + index) % 4], 1 + index
        network = transformed.make(described, head=head, scaling=scaling, cell=cell, layers=layers, double=double)
        contract_states(network)
        model = transformed.proven(network, tmp_path / str(index), double=double)
        parts = {part.name: part.size for part in model.manifest.state[0].parts}
        assert parts["h_0"] == network.config.units * len(kinds)


WIDE = signature(tuple(Feature(name=f"x{index}") for index in range(9)), *(f"x{index}" for index in range(9)))


@pytest.mark.parametrize(("cell", "head"), [("lstm", "gaussian"), ("gru", "quantiles")])
def test_a_large_batch_of_many_channels_is_exact(cell: str, head: str) -> None:
    """A row's bits are those of the row alone, where a layer has 360 rows instead of 9."""
    network = numpy_networks.network(replace(WIDE, independent=True), cell=cell, units=33, head=head)
    model, rows = numpy_networks.export(network), draw(WIDE.features, 40, 3, seed=3)
    outputs, states = model.run(rows, np.full(40, 3, np.int32), model.layout.initial(40))
    for index, row in enumerate(rows):
        alone, state = model.run_row(row, model.layout.initial(1))
        assert alone.tobytes() == outputs[index].tobytes()
        assert state.tobytes() == states[index : index + 1].tobytes()


FEATURES = (
    Feature(name="a", nullable=True),
    category("kind", 3),
    Feature(name="b"),
    Feature(name="c", nullable=True),
)
MOMENTS = ((10.0, 0.0, 9.0, 11.0), (2.0, 1.0, 1.0, 4.0), (0.1, 0.0, -0.1, 0.0), (3.0, 1.0, 2.0, 5.0))


def single(network: Network, target: str) -> StepModel:
    """Returns the model of one target alone, which has the weights of the channels and the statistics of the target.

    Every target has a mask among channels, if any may be missing.
    """
    names = [feature.name for feature in FEATURES]
    columns = [names.index(target), names.index("kind")]
    features = FEATURES[columns[0]].model_copy(update={"nullable": True}), FEATURES[columns[1]]
    differenced = (target,) if target in network.signature.differenced else ()
    statistics = TrainingStatistics(*(torch.tensor(moment)[columns] for moment in MOMENTS))
    alone = Network(network.config, Signature(features, (target,), differenced=differenced), statistics)
    weights = {name: value for name, value in network.state_dict().items() if "statistics" not in name}
    alone.load_state_dict(alone.state_dict() | weights)
    return numpy_networks.export(alone)


@pytest.mark.parametrize("scaling", ["fixed", "causal"])
@pytest.mark.parametrize("head", HEADS)
def test_a_channel_is_the_network_of_its_target_alone(head: str, scaling: str) -> None:
    """The prediction of a target is that of a model of it alone, and the surprise is the sum of such models'."""
    differenced = ("c",) if head in {"gaussian", "quantiles"} else ()
    described = signature(FEATURES, "c", "a", "b", differenced=differenced, independent=True)
    network = numpy_networks.network(described, cell="lstm", units=4, head=head, scaling=scaling)
    network.input_layer.statistics = TrainingStatistics(*(torch.tensor(moment) for moment in MOMENTS))
    model, row = numpy_networks.export(network), draw(FEATURES, 1, 50, seed=4)[0]
    outputs, _ = model.run_row(row, model.layout.initial(1))
    surprise = np.zeros(50)
    for index, target in enumerate(described.targets):
        alone = single(network, target)
        column = [feature.name for feature in FEATURES].index(target)
        expected, _ = alone.run_row(row[:, [column, 1]], alone.layout.initial(1))
        surprise += expected["surprise"]
        for name in model.manifest.head.outputs:
            np.testing.assert_allclose(outputs[name][:, index], expected[name][:, 0], rtol=2e-5, atol=2e-5)
    assert np.ptp(surprise) > 0
    np.testing.assert_allclose(outputs["surprise"], surprise, rtol=1e-4, atol=1e-4)


def test_a_single_target_is_no_channel(tmp_path: Path) -> None:
    """The graph of one target is the same with both settings."""
    graphs = []
    for independent in (False, True):
        described = signature((Feature(name="x"), Feature(name="plan", role="known")), "x", independent=independent)
        numpy_networks.export(numpy_networks.network(described, units=3), tmp_path / str(independent))
        graphs.append((tmp_path / str(independent) / "tiny/1/model.onnx").read_bytes())
        open_bundle(tmp_path / str(independent) / "tiny/1")
    assert graphs[0] == graphs[1]
