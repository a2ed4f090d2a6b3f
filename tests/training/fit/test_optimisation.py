"""The optimiser's decay and the learning rate of every step."""

import math

import pytest
import torch

from onward.training.config import Train
from onward.training.fit import optimisation
from tests.helpers.random_bundles import make_network


def rates(validation: list[float] | None = None, *, before: int = 0, steps: int = 4, **keys: object) -> list[float]:
    settings = Train.model_validate({"learning_rate": 0.8, "epochs": 4} | keys)
    return list(
        optimisation.learning_rates(
            settings, epoch=len(validation or []), steps_before=before, steps=steps, validation=validation or []
        )
    )


def test_matrices_decay_and_biases_do_not() -> None:
    """A step without a gradient shrinks weights by rate times decay, and no bias; without decay nothing moves."""
    for decay in (0.5, 0.0):
        network = make_network(cell="gru", layers=2)
        before = {name: value.detach().clone() for name, value in network.named_parameters()}
        optimiser = optimisation.adamw(network, Train(learning_rate=0.1, weight_decay=decay))
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        for name, value in network.named_parameters():
            share = 1.0 if "bias" in name else 1 - 0.1 * decay
            torch.testing.assert_close(value.detach(), before[name] * share)


def test_without_decay_it_is_adam() -> None:
    """The first step has the learning rate's size in every weight (Kingma and Ba 2015, section 2.1)."""
    network = make_network()
    before = torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])
    optimiser = optimisation.adamw(network, Train(learning_rate=0.01))
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimiser.step()
    after = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    torch.testing.assert_close(before - after, torch.full_like(before, 0.01))


def test_the_average_of_the_weights_follows_them() -> None:
    """A step moves the average by 1 less the decay, which begins low, towards the weights; 0 means no average."""
    network, settings = make_network(), Train(averaging=0.5)
    average, expected = optimisation.weight_average(network, settings), 0.0
    assert average is not None
    assert optimisation.weight_average(network, Train()) is None
    for step in range(12):
        for parameter in network.parameters():
            parameter.data.fill_(float(step))
        average.update_parameters(network)
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * step
        for parameter in average.module.parameters():
            torch.testing.assert_close(parameter.data, torch.full_like(parameter, expected))


def test_a_constant_rate_is_constant() -> None:
    """The rate is the configured one, to the last bit, in every epoch."""
    assert rates([3.0, 4.0, 5.0], before=12) == [0.8] * 4


def test_the_rate_warms_up_linearly_over_epochs() -> None:
    """The rate rises from a first small share to the full rate at step `warmup`, counted over epochs."""
    expected = [0.8 * share / 6 for share in range(1, 7)] + [0.8] * 2
    assert rates(warmup=6) + rates([1.0], before=4, warmup=6) == pytest.approx(expected)


def test_the_cosine_falls_over_the_whole_run() -> None:
    """The rate is half a cosine, from the full rate at the first step to almost 0 at the last step of all epochs."""
    run = [rate for epoch in range(4) for rate in rates([1.0] * epoch, before=4 * epoch, schedule="cosine")]
    assert run == pytest.approx([0.4 * (1 + math.cos(math.pi * step / 16)) for step in range(16)])
    assert run == sorted(run, reverse=True)
    warm = [rate for epoch in range(4) for rate in rates([1.0] * epoch, before=4 * epoch, schedule="cosine", warmup=4)]
    assert warm[3:] == run[3:]
    assert warm[:3] == pytest.approx([run[i] * (i + 1) / 4 for i in range(3)])


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        ([], 0.8),
        ([5, 4, 3, 2, 1], 0.8),
        ([5, 6], 0.8),
        ([5, 6, 5], 0.4),  # two epochs without improvement
        ([5, 6, 4, 6, 6], 0.4),  # an improvement resets the count
        ([5, 6, 6, 6], 0.4),
        ([5, 6, 6, 6, 6], 0.2),
        ([5, 6, 6, 4, 3], 0.4),  # the rate does not rise again
    ],
)
def test_the_plateau_halves(validation: list[float], expected: float) -> None:
    """Every third of `patience` epochs without a better validation loss halves the rate for good."""
    assert rates(validation, schedule="plateau", patience=6) == [expected] * 4
    assert rates(validation, patience=6) == [0.8] * 4
