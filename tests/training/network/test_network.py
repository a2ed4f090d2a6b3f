"""The network: its initialisation, and its mathematics against numpy in float64."""

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch

from onward.training.config import Cell, Model
from onward.training.data.datasets import Series
from onward.training.data.training_examples import make_example
from onward.training.network.heads import LOG_BOUND
from onward.training.network.input_layer import TargetScale, TrainingStatistics
from onward.training.network.network import Network
from onward.training.network.ops import TorchOps
from tests.helpers.numpy_cells import nll, run
from tests.helpers.random_bundles import make_network, readout, signature
from tests.helpers.recorded_bundles import FEATURES, draw

CELLS: tuple[Cell, ...] = get_args(Cell)
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


def fresh(cell: Cell, *, layers: int = 2, units: int = 16) -> Network:
    torch.manual_seed(0)
    model, scaling = Model(cell=cell, layers=layers, units=units), TrainingStatistics(torch.zeros(2), torch.ones(2))
    return Network(model, signature(("x", "y")), scaling)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_recurrent_gates_are_orthogonal(cell: Cell) -> None:
    """Every gate's recurrent matrix is orthogonal, W W^T = I, gate by gate and not as one tall matrix."""
    network = fresh(cell)
    for layer in range(2):
        gates = torch.split(network.get_parameter(f"layers.{layer}.weight_hh_l0").detach(), 16)
        assert len(gates) == GATES[cell]
        for gate in gates:
            torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)
        for first, second in pairwise(gates):
            assert not torch.allclose(first, second)


def test_relu_cells_start_as_the_identity() -> None:
    """IRNN: the recurrent matrix is exactly I, and the first layer's input weights are small (deviation 0.001)."""
    network = fresh("rnn_relu", units=400)
    for layer in range(2):
        assert torch.equal(network.get_parameter(f"layers.{layer}.weight_hh_l0"), torch.eye(400))
    assert float(network.get_parameter("layers.0.weight_ih_l0").detach().std()) == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("cell", CELLS)
def test_biases(cell: Cell) -> None:
    """The forget gate's bias is 1, once: torch adds bias_ih and bias_hh, so 1 in each would be 2. All others are 0."""
    network = fresh(cell)
    for layer in range(2):
        total = network.get_parameter(f"layers.{layer}.bias_ih_l0") + network.get_parameter(
            f"layers.{layer}.bias_hh_l0"
        )
        gates = torch.split(total.detach(), 16)
        for index, gate in enumerate(gates):
            assert gate.tolist() == [1.0 if (cell, index) == ("lstm", 1) else 0.0] * 16
    assert readout(network).bias.tolist() == [0.0] * 4


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_input_weights_are_glorot_by_gate(cell: Cell) -> None:
    """Input weights are uniform within sqrt(6 / (in + out)) of each gate, not of all gates stacked."""
    network = fresh(cell, units=200)
    for layer, inputs in enumerate((2, 200)):
        bound = math.sqrt(6 / (inputs + 200))
        for gate in torch.split(network.get_parameter(f"layers.{layer}.weight_ih_l0").detach(), 200):
            assert float(gate.abs().max()) == pytest.approx(bound, rel=0.02)
            assert float(gate.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("head", ["point", "gaussian"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_network_is_the_papers_cell(cell: Cell, head: str) -> None:
    """Over 50 steps the predictions and states equal those of the equations in numpy and float64."""
    network = make_network(cell=cell, layers=2, head=head, features=FEATURES, targets=("z", "x"))
    row = draw(1, 50, 3)[0]
    with torch.no_grad():
        hidden, state = network(network.prepare(torch.from_numpy(row)[:, None]).inputs, network.initial(1))
        readouts = network.head.read_out(TorchOps(), hidden)
    expected, expected_state = run(network, row)
    mean, std = (
        value[[2, 0]].numpy() for value in (network.input_layer.statistics.mean, network.input_layer.statistics.std)
    )
    centre = readouts[0][:, 0].numpy() * std + mean
    np.testing.assert_allclose(centre, expected["point" if head == "point" else "mean"], rtol=1e-5)
    if head == "gaussian":
        np.testing.assert_allclose(np.exp(readouts[1][:, 0].numpy()) * std, expected["std"], rtol=1e-5)
    for name, tensor in zip(("h", "c"), state, strict=False):
        for layer, part in enumerate(tensor[:, 0]):
            np.testing.assert_allclose(part.numpy(), expected_state[f"{name}_{layer}"], atol=1e-5)


def test_the_loss_is_the_heads_formula() -> None:
    """The loss is the closed-form negative log-likelihood or the absolute error, of the targets alone."""
    raw = np.array([[0, 0, 0], [10 + 2, 20 + 5 * 3, 30 - 2 * 4]], np.float32)  # scaled: 1, 5, -2
    numbers = torch.tensor([0.5, -1.0, 0.3, -0.7])  # of z and x: the locations, then the log-deviations
    losses = []
    for head in ("gaussian", "point"):
        network = make_network(head=head, features=FEATURES, targets=("z", "x"))
        with torch.no_grad():
            readout(network).weight.zero_()
            readout(network).bias.copy_(numbers[: len(readout(network).bias)])
            targets = make_example(network, Series("s", raw, 2, 2)).targets[:1]
            losses.append(network.head.loss(torch.zeros(1, 8), targets)[0])
    expected = nll(np.array([-2.0, 1.0]), np.array([0.5, -1.0]), np.exp([0.3, -0.7]))
    np.testing.assert_allclose(losses[0].numpy(), expected, rtol=1e-6)
    assert losses[1].tolist() == [2.5, 2.0]


def test_the_deviation_is_bounded() -> None:
    """The deviation stays within exp(-7) and exp(7) of the target's own for any readout."""
    network = make_network()
    with torch.no_grad():
        for bias, bound in ((-1e3, -LOG_BOUND), (1e3, LOG_BOUND)):
            readout(network).bias[1] = bias
            hidden, _ = network(torch.zeros(3, 1, 1), network.initial(1))
            scale = TargetScale(torch.zeros(1), torch.ones(1), torch.zeros(1))
            prediction = network.head.predict(TorchOps(), network.head.read_out(TorchOps(), hidden), scale)
            assert prediction["log_std"].flatten().tolist() == [bound] * 3


def test_a_constant_feature_is_not_divided_by_zero() -> None:
    """The deviation of a feature that never varies is taken as 1."""
    scaling = TrainingStatistics(torch.tensor([5.0, 1.0]), torch.tensor([0.0, 2.0]))
    network = Network(Model(), signature(("x", "y")), scaling)
    read = network.prepare(torch.tensor([[[5.0, 3.0]], [[6.0, -1.0]]])).inputs
    assert read[:, 0].tolist() == [[0.0, 1.0], [1.0, -1.0]]


def test_the_initial_state_is_zero() -> None:
    """A session starts from zeros: (h, c) for LSTM, (h,) for the others, each (layers, batch, units)."""
    for cell in CELLS:
        state = make_network(cell=cell, layers=3).initial(5)
        assert [tuple(tensor.shape) for tensor in state] == [(3, 5, 8)] * (2 if cell == "lstm" else 1)
        assert not any(bool(tensor.any()) for tensor in state)
