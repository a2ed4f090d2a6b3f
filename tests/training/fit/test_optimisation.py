"""The optimiser's decay and the learning rate of every step."""

import copy
import math
import subprocess
import sys

import pytest
import torch

from onward.training.config import Train
from onward.training.fit import optimisation
from tests.helpers.random_bundles import make_network
from tests.helpers.reference_loop import ROOT


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
        optimiser = optimisation.AdamW(network, Train(weight_decay=decay))
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step(0.1)
        for name, value in network.named_parameters():
            share = 1.0 if "bias" in name else 1 - 0.1 * decay
            torch.testing.assert_close(value.detach(), before[name] * share)


def test_without_decay_it_is_adam() -> None:
    """The first step has the learning rate's size in every weight (Kingma and Ba 2015, section 2.1)."""
    network = make_network()
    before = torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])
    optimiser = optimisation.AdamW(network, Train())
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimiser.step(0.01)
    after = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    torch.testing.assert_close(before - after, torch.full_like(before, 0.01))


def test_it_is_torchs_adamw() -> None:
    """Ten steps at changing rates, of which one is after a resume, give the weights of `torch.optim.AdamW`."""
    network, settings = make_network(cell="gru", layers=2), Train(weight_decay=0.1)
    reference = copy.deepcopy(network)
    optimiser = optimisation.AdamW(network, settings)
    parameters = list(reference.parameters())
    groups = [
        {"params": [weight for weight in parameters if weight.ndim >= 2], "weight_decay": 0.1},
        {"params": [weight for weight in parameters if weight.ndim < 2], "weight_decay": 0.0},
    ]
    expected = torch.optim.AdamW(groups)
    for step in range(10):
        if step == 5:
            state = copy.deepcopy(optimiser.state_dict())
            optimiser = optimisation.AdamW(network, settings)
            optimiser.load_state_dict(state)
        for own, expected_weight in zip(network.parameters(), parameters, strict=True):
            own.grad = torch.randn_like(own)
            expected_weight.grad = own.grad.clone()
        for group in expected.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimiser.step(0.01 / (1 + step))
        expected.step()
        optimiser.zero_grad()
    for own, expected_weight in zip(network.parameters(), parameters, strict=True):
        torch.testing.assert_close(own, expected_weight)
        assert own.grad is None


def test_a_fit_does_without_torchs_compiler() -> None:
    """A whole fit does not import `torch._dynamo`, whose import takes longer than many fits."""
    code = (
        "import sys, numpy as np\n"
        "from onward.training.config import Train\n"
        "from onward.training.data.datasets import Series\n"
        "from onward.training.fit import training_loop\n"
        "from tests.helpers.random_bundles import make_network\n"
        "network = make_network()\n"
        "values = np.random.default_rng(0).standard_normal((50, len(network.signature.features))).astype(np.float32)\n"
        "settings = Train(epochs=2, window=10, averaging=0.9)\n"
        "training_loop.fit(network, [Series('x', values, 30, 40)], settings, quiet=True)\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


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
