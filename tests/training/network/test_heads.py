"""The heads' losses and scores are compared with closed forms."""

import math
from typing import TypeVar

import numpy as np
import pytest
import torch

from onward.model.manifest import Feature
from onward.training.config import Model
from onward.training.network.heads import (
    Categorical,
    Gaussian,
    NumberHead,
    Point,
    Quantiles,
    StudentT,
    number_head,
)
from onward.training.network.input_layer import TargetScale
from onward.training.network.network import Network, Signature
from onward.training.network.ops import TorchOps
from tests.helpers import numpy_networks
from tests.helpers.random_bundles import Options, make_network

Kind = TypeVar("Kind", bound=NumberHead)


def plain(head: Kind) -> Kind:
    """Returns the head with an identity readout, whose hidden state is all targets' first readouts, then the second."""
    with torch.no_grad():
        head.readout.weight.copy_(torch.eye(*head.readout.weight.shape))
    return head


def density(head: NumberHead, location: float, log_scale: float) -> float:
    """Returns the integral of exp(-loss) over the real line, in scaled units."""
    line = torch.linspace(-3000, 3000, 2_400_001, dtype=torch.float64)[:, None]
    readouts = torch.tensor([location, log_scale], dtype=torch.float64).expand(len(line), 2)
    return float((-head.double().loss(readouts, line)).exp().detach().sum() * 6000 / 2_400_000)


@pytest.mark.parametrize(("location", "log_scale"), [(0.0, 0.0), (3.0, 1.5), (-2.0, -1.0)])
@pytest.mark.parametrize(
    "head", [plain(Gaussian(2, [None])), plain(StudentT(2, [None]))], ids=["gaussian", "student_t"]
)
def test_likelihoods_integrate_to_one(head: NumberHead, location: float, log_scale: float) -> None:
    """exp(-loss) is a density, for any location and scale."""
    assert density(head, location, log_scale) == pytest.approx(1.0, abs=1e-6)


def test_student_t_is_students_formula() -> None:
    """The density at 3 degrees of freedom is Student's: (1 + t^2/3)^-2 * 2 / (pi sqrt 3)."""
    head = plain(StudentT(2, [None])).double()
    head.free.data.fill_(math.log(math.expm1(1.0)))
    assert float(head.df.detach()) == pytest.approx(3.0)
    t = torch.tensor([[-2.0], [0.0], [5.0]], dtype=torch.float64)
    expected = 2 / (math.pi * math.sqrt(3)) * (1 + t.numpy() ** 2 / 3) ** -2
    got = (-head.loss(torch.zeros(3, 2, dtype=torch.float64), t)).exp().detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_degrees_of_freedom_are_learnt() -> None:
    """The loss has a gradient for the degrees of freedom, though they are constants in the graph."""
    head = plain(StudentT(4, [None] * 2))
    head.loss(torch.zeros(4, 4), torch.full((4, 2), 3.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert head.free.grad is not None
    assert bool((head.free.grad != 0).all())


@pytest.mark.parametrize("levels", [(0.5,), (0.1, 0.5, 0.9), (0.01, 0.2, 0.3, 0.5, 0.99), (0.5, 0.6)])
def test_quantiles_never_cross(levels: tuple[float, ...]) -> None:
    """Quantiles rise with their levels for any readouts, and the median is one of them."""
    head, generator = Quantiles(8, [None] * 3, levels), torch.Generator().manual_seed(1)
    readouts = torch.randn(500, 3, len(levels), generator=generator) * 20
    prediction = head.predict(
        TorchOps(), readouts.unbind(-1), TargetScale(torch.zeros(3), torch.ones(3), torch.zeros(3))
    )
    assert bool((prediction["quantiles"].diff(dim=-1) > 0).all())
    assert torch.equal(prediction["quantiles"][..., levels.index(0.5)], prediction["median"])


def test_the_quantile_loss_is_least_at_the_quantile() -> None:
    """Over many draws of a known distribution, the loss of each level is least at that distribution's quantile."""
    draws = torch.from_numpy(np.random.default_rng(0).exponential(size=40_000)).float()[:, None]
    for level in (0.1, 0.5, 0.9):
        best = -math.log(1 - level)
        grid = np.linspace(best - 0.3, best + 0.3, 25)
        head = plain(Quantiles(1, [None], (0.5,)))
        head.levels = (level,)
        losses = [float(head.loss(torch.full((40_000, 1), quantile), draws).detach().mean()) for quantile in grid]
        assert grid[int(np.argmin(losses))] == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize(
    ("loss", "expected"), [("mae", [0.0, 0.5, 3.0]), ("mse", [0.0, 0.25, 9.0]), ("huber", [0.0, 0.125, 2.5])]
)
def test_point_losses(loss: str, expected: list[float]) -> None:
    """The losses are the absolute error, the squared error, and Huber's with delta 1."""
    actual = torch.tensor([[0.0], [-0.5], [3.0]])
    assert plain(Point(1, [None], loss)).loss(torch.zeros(3, 1), actual).flatten().tolist() == expected


def test_the_configuration_names_the_head() -> None:
    for name, kind in (("point", Point), ("gaussian", Gaussian), ("student_t", StudentT), ("quantiles", Quantiles)):
        assert isinstance(number_head(Model.model_validate({"head": name}), [None, None]), kind)


@pytest.mark.parametrize(
    "more",
    [
        (("weight_drop", 0.5),),
        (("dropout", 0.5),),
        (("input_dropout", 0.5),),
        (("dropout", 0.5), ("locked_dropout", True)),
    ],
    ids=str,
)
@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_is_while_training_only(more: Options, layers: int) -> None:
    """Two passes differ in training; in evaluation they equal those of a network without dropout."""
    network, without_dropout = make_network(layers=layers, more=more), make_network(layers=layers)
    inputs = torch.randn(9, 3, 1, generator=torch.Generator().manual_seed(0))
    network.train()
    torch.manual_seed(0)
    first, second = (network(inputs, network.initial(3))[0] for _ in range(2))
    assert not torch.equal(first, second)
    network.eval()
    without_dropout.eval()
    assert torch.equal(network(inputs, network.initial(3))[0], without_dropout(inputs, without_dropout.initial(3))[0])


def test_whole_categories_are_dropped_from_the_embeddings() -> None:
    """A dropped category's embedding is zero at all its steps in training, and the others are scaled up."""
    features = (Feature(name="x", kind="category", categories=tuple(range(50))),)
    model = Model(head="categorical", embedding=8, embedding_dropout=0.5)
    network = Network(model, Signature(features, ("x",)), numpy_networks.statistics(Signature(features, ("x",))))
    indices = torch.arange(50.0).repeat(4)[:, None, None]
    whole = network.input_layer.embed(TorchOps(), indices)
    network.train()
    torch.manual_seed(0)
    (dropped,) = network._drop_categories(indices, whole)
    by_category = dropped.view(4, 50, 8)
    assert torch.equal(by_category, by_category[:1].expand(4, 50, 8))
    zero = (by_category[0] == 0).all(dim=-1)
    assert 10 < int(zero.sum()) < 40
    torch.testing.assert_close(by_category[0, ~zero], 2 * whole[0][:50, 0][~zero])
    network.eval()
    assert network._drop_categories(indices, whole) is whole


def test_smoothed_labels_are_a_loss_of_training_alone() -> None:
    """A share of the target is spread evenly over all categories in training; validation has the plain likelihood."""
    model = Model(head="categorical", units=6, label_smoothing=0.1)
    head = Categorical(model, "x", torch.ones(5))
    hidden, targets = torch.randn(7, 6, generator=torch.Generator().manual_seed(0)), torch.arange(7.0)[:, None] % 5
    log_probability = (head.read_out(TorchOps(), hidden)[1]).log_softmax(dim=-1)
    true = -log_probability.gather(-1, targets.long())
    head.train()
    torch.testing.assert_close(head.loss(hidden, targets), 0.9 * true - 0.1 * log_probability.mean(-1, keepdim=True))
    head.eval()
    torch.testing.assert_close(head.loss(hidden, targets), true)


def test_a_locked_mask_is_the_same_at_each_step() -> None:
    """Locked dropout drops the same units over a window, and others in the next one."""
    network = make_network(layers=2, units=64, more=(("dropout", 0.5), ("locked_dropout", True)))
    network.train()
    torch.manual_seed(0)
    dropped = network._dropout(torch.ones(20, 3, 64), 0.5)
    assert torch.equal(dropped, dropped[:1].expand(20, 3, 64))
    assert 0.3 < float((dropped[0] == 0).float().mean()) < 0.7
    assert not torch.equal(dropped, network._dropout(torch.ones(20, 3, 64), 0.5))


def test_dropped_weights_are_the_recurrent_ones() -> None:
    """Weight drop changes no input weight: from a zero state the first step equals that of the complete network."""
    network = make_network(more=(("weight_drop", 0.9),))
    network.train()
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 1)
    dropped = network(inputs, network.initial(3))[0]
    network.eval()
    complete = network(inputs, network.initial(3))[0]
    assert torch.equal(dropped[0], complete[0])
    assert not torch.equal(dropped[1], complete[1])
