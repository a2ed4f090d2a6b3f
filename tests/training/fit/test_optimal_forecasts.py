"""What training reaches on data whose best forecast is known."""

from functools import cache
from statistics import NormalDist

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onward.training.config import Model, Train
from onward.training.data.datasets import Series
from onward.training.fit import training_loop
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network
from onward.training.network.ops import TorchOps
from tests.helpers.random_bundles import signature

pytestmark = pytest.mark.slow

SIGMA, STEPS, HELD = 0.5, 8000, 2000

Told = dict[str, NDArray[np.float32]]


def autoregression() -> NDArray[np.float32]:
    """AR(2), stationary, with a period: x_t = 1.2 x_{t-1} - 0.6 x_{t-2} + noise, around 100."""
    noise = np.random.default_rng(2).standard_normal(STEPS) * SIGMA
    values = np.zeros(STEPS)
    for t in range(2, STEPS):
        values[t] = 1.2 * values[t - 1] - 0.6 * values[t - 2] + noise[t]
    return (values + 100).astype(np.float32)[:, None]


@cache
def trained(head: str) -> tuple[Told, NDArray[np.float32]]:
    """What a small network with this head tells of each held-out step, and the truth: (held, ...), (held,)."""
    values = autoregression()
    one = Series("ar2", values, STEPS - HELD - 1000, STEPS - HELD)
    train = torch.from_numpy(one.train)
    torch.manual_seed(0)
    levels = (0.1, 0.5, 0.9)
    model = Model.model_validate({"cell": "gru", "units": 8, "head": head, "loss": "mse", "quantiles": levels})
    network = Network(model, signature(), TrainingStatistics(train.mean(dim=0), train.std(dim=0)))
    told = Train(epochs=25, window=50, batch=16, learning_rate=0.01, patience=25)
    training_loop.fit(network, [one], told, quiet=True)
    network.eval()
    with torch.no_grad():
        prepared = network.prepare(torch.from_numpy(values)[:-1, None])
        hidden, _ = network(prepared.inputs, network.initial(1))
        said_of = network.head.predict(TorchOps(), network.head.read_out(TorchOps(), hidden), prepared.target_scale)
    return {name: value[-HELD:, 0, 0].numpy() for name, value in said_of.items()}, values[-HELD:, 0]


@pytest.mark.parametrize(("head", "centre"), [("point", "point"), ("gaussian", "mean"), ("student_t", "mean"),
                                              ("quantiles", "median")])  # fmt: skip
def test_an_autoregression_of_two_steps_is_learnt(head: str, centre: str) -> None:
    """The one-step error of every head comes within 5% of the noise's deviation, the least that any model can reach."""
    told, actual = trained(head)
    error = float(np.sqrt(((told[centre] - actual) ** 2).mean()))
    assert error == pytest.approx(SIGMA, rel=0.05)


@pytest.mark.parametrize("head", ["gaussian", "student_t", "quantiles"])
def test_intervals_of_80_percent_cover_80_percent(head: str) -> None:
    """On held-out stationary data, between 76 and 84 percent lie inside, and the tails are alike."""
    told, actual = trained(head)
    if head == "quantiles":
        low, high = told["quantiles"][:, 0], told["quantiles"][:, 2]
    else:
        reach = NormalDist().inv_cdf(0.9) * told["std"] if head == "gaussian" else student(told)
        low, high = told["mean"] - reach, told["mean"] + reach
    assert 0.76 <= float(((low <= actual) & (actual <= high)).mean()) <= 0.84
    assert 0.07 <= float((actual < low).mean()) <= 0.13
    assert 0.07 <= float((actual > high).mean()) <= 0.13


def student(told: Told) -> NDArray[np.float32]:
    """The 90% quantile of Student's t above its location, by simulation: independent of any formula of ours."""
    df = float(told["df"][0])
    rng = np.random.default_rng(0)
    draws = rng.standard_normal(400_000) / np.sqrt(rng.chisquare(df, 400_000) / df)
    return (np.quantile(draws, 0.9) * told["scale"]).astype(np.float32)
