"""A learning rate by a range test: which rates are tried, which is chosen, and that nothing else changes."""

import math

import numpy as np
import pytest
import torch

from onward.training.config import Train
from onward.training.data.datasets import Series
from onward.training.fit import rate_range, training_loop
from tests.helpers.random_bundles import make_network


def test_a_share_of_the_rate_of_the_lowest_loss_is_chosen() -> None:
    """The loss falls up to a rate and rises beyond it; the moving mean lags by a few steps."""
    rates = rate_range.rates()
    assert len(rates) == 100
    assert [rates[0], rates[-1]] == pytest.approx([1e-5, 1.0])
    losses = [abs(math.log(rate / 1e-2)) for rate in rates]
    assert 1e-3 <= rate_range.choose(losses) <= 3e-3
    assert rate_range.choose([]) == 1e-5


def test_the_test_ends_with_its_steps_or_a_high_loss() -> None:
    """Noise does not end it; a loss that is far above the first one does."""
    noisy = [1.0 + 0.3 * (-1) ** step for step in range(99)]
    assert not any(rate_range.is_over(noisy[:count]) for count in range(100))
    assert rate_range.is_over([*noisy, 1.0])
    assert rate_range.is_over([*noisy[:30], 30.0])


def series() -> Series:
    return Series("s", (10 + 2 * np.sin(np.arange(400) / 5))[:, None].astype(np.float32), 280, 340)


def fitted(**keys: object) -> tuple[training_loop.History, dict[str, torch.Tensor]]:
    network = make_network(cell="gru", layers=2)
    settings = Train.model_validate({"epochs": 3, "window": 20, "batch": 4, "averaging": 0.5} | keys)
    history = training_loop.fit(network, [series()], settings, quiet=True)
    return history, network.state_dict()


def test_a_run_with_the_chosen_rate_is_the_run_with_that_rate() -> None:
    """The test leaves the weights, the optimiser and the randomness of the epochs as they were."""
    history, weights = fitted(learning_rate="auto")
    assert 1e-4 < history.learning_rate < 0.1
    again, same = fitted(learning_rate=history.learning_rate)
    assert again == history
    for name, value in weights.items():
        assert torch.equal(same[name], value), name


def test_a_repeated_fit_takes_the_rate_of_the_first() -> None:
    """A refit has no range test of its own."""
    history, _ = fitted(learning_rate="auto")
    history.learning_rate, history.best = 0.0123, 1
    network = make_network(cell="gru", layers=2)
    settings = Train(epochs=3, window=20, batch=4, learning_rate="auto")
    assert training_loop.fit(network, [series()], settings, quiet=True, repeated=history).learning_rate == 0.0123
