"""Training reaches the optimal forecast on data for which it is known."""

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

SIGMA, STEPS, TEST_STEPS = 0.5, 8000, 2000

Prediction = dict[str, NDArray[np.float32]]


def autoregression() -> NDArray[np.float32]:
    """Returns a stationary AR(2) process with a period: x_t = 1.2 x_{t-1} - 0.6 x_{t-2} + noise, around 100."""
    noise = np.random.default_rng(2).standard_normal(STEPS) * SIGMA
    values = np.zeros(STEPS)
    for t in range(2, STEPS):
        values[t] = 1.2 * values[t - 1] - 0.6 * values[t - 2] + noise[t]
    return (values + 100).astype(np.float32)[:, None]


@cache
def trained(head: str) -> tuple[Prediction, NDArray[np.float32]]:
    """Returns a small network's prediction of each test step, (steps, ...), and the actual values, (steps,)."""
    values = autoregression()
    series = Series("ar2", values, STEPS - TEST_STEPS - 1000, STEPS - TEST_STEPS)
    train = torch.from_numpy(series.train)
    torch.manual_seed(0)
    levels = (0.1, 0.5, 0.9)
    model = Model.model_validate({"cell": "gru", "units": 8, "head": head, "loss": "mse", "quantiles": levels})
    network = Network(model, signature(), TrainingStatistics(train.mean(dim=0), train.std(dim=0)))
    settings = Train(epochs=25, window=50, batch=16, learning_rate=0.01, patience=25)
    training_loop.fit(network, [series], settings, quiet=True)
    network.eval()
    with torch.no_grad():
        prepared = network.prepare(torch.from_numpy(values)[:-1, None])
        hidden, _ = network(prepared.inputs, network.initial(1))
        prediction = network.head.predict(TorchOps(), network.head.read_out(TorchOps(), hidden), prepared.target_scale)
    return {name: value[-TEST_STEPS:, 0, 0].numpy() for name, value in prediction.items()}, values[-TEST_STEPS:, 0]


@pytest.mark.parametrize(("head", "centre"), [("point", "point"), ("gaussian", "mean"), ("student_t", "mean"),
                                              ("quantiles", "median")])  # fmt: skip
def test_a_second_order_autoregression_is_learnt(head: str, centre: str) -> None:
    """The one-step error of every head comes within 5% of the noise's deviation, the least that any model can reach."""
    prediction, actual = trained(head)
    error = float(np.sqrt(((prediction[centre] - actual) ** 2).mean()))
    assert error == pytest.approx(SIGMA, rel=0.05)


@pytest.mark.parametrize("head", ["gaussian", "student_t", "quantiles"])
def test_intervals_of_80_percent_cover_80_percent(head: str) -> None:
    """Between 76 and 84 percent of stationary held-out data lie inside, and both tails have between 7 and 13."""
    prediction, actual = trained(head)
    if head == "quantiles":
        low, high = prediction["quantiles"][:, 0], prediction["quantiles"][:, 2]
    else:
        reach = NormalDist().inv_cdf(0.9) * prediction["std"] if head == "gaussian" else student(prediction)
        low, high = prediction["mean"] - reach, prediction["mean"] + reach
    assert 0.76 <= float(((low <= actual) & (actual <= high)).mean()) <= 0.84
    assert 0.07 <= float((actual < low).mean()) <= 0.13
    assert 0.07 <= float((actual > high).mean()) <= 0.13


def student(prediction: Prediction) -> NDArray[np.float32]:
    """The 90% quantile of Student's t above its location, by simulation: independent of the formulas under test."""
    df = float(prediction["df"][0])
    rng = np.random.default_rng(0)
    draws = rng.standard_normal(400_000) / np.sqrt(rng.chisquare(df, 400_000) / df)
    return (np.quantile(draws, 0.9) * prediction["scale"]).astype(np.float32)
