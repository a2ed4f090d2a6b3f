"""The formulas of errors and scores equal numbers computed by hand, and independent integrals."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from onward.training.evaluation import baselines, point_metrics
from onward.training.evaluation.point_metrics import Array


def array(*values: float) -> Array:
    return np.array(values, np.float64)


def test_errors_of_points_equal_those_computed_by_hand() -> None:
    """MASE and sMAPE have the right denominators, and 0/0 counts as no error."""
    errors = point_metrics.points(array(1, 0, -2), array(4, 0, 2), array(2, 1, 4))
    assert errors == pytest.approx(
        {"mae": 7 / 3, "rmse": math.sqrt(25 / 3), "mase": (3 / 2 + 0 + 4 / 4) / 3, "smape": (2 * 3 / 5 + 0 + 2) / 3}
    )
    assert "mase" not in point_metrics.points(array(1), array(2), None)


def test_the_scale_of_mase_is_the_naive_error_of_the_training_part() -> None:
    """The scale is the seasonal naive error with a period and that of the last value without; a short part has none."""
    train = np.array([[1, 10], [2, 10], [4, 30], [8, 30]], np.float64)
    assert point_metrics.naive_scale(train, None).tolist() == pytest.approx([7 / 3, 20 / 3])
    assert point_metrics.naive_scale(train, 2).tolist() == pytest.approx([(3 + 6) / 2, 20])
    assert np.isnan(point_metrics.naive_scale(train, 4)).all()


def test_the_quantile_loss_is_asymmetric_by_its_level() -> None:
    """A quantile that is too low costs the level, and one that is too high costs 1 - level."""
    assert point_metrics.quantile_loss(array(1, 1), array(3, 0), 0.9).tolist() == pytest.approx([1.8, 0.1])


def test_the_weighted_quantile_loss_by_hand() -> None:
    """The loss is twice the quantile loss over the sum of |actual|, averaged over levels; undefined if the sum is 0."""
    actual = array(3, -1)
    quantiles = {0.5: array(1, 0), 0.9: array(4, 1)}
    # at 0.5: 0.5 * 2 + 0.5 * 1 = 1.5; at 0.9: 0.1 * 1 + 0.1 * 2 = 0.3
    assert point_metrics.weighted_quantile_loss(quantiles, actual) == pytest.approx((2 * 1.5 / 4 + 2 * 0.3 / 4) / 2)
    assert point_metrics.weighted_quantile_loss(quantiles, array(0, 0)) is None


@pytest.mark.parametrize("actual", [-4.0, 0.3, 2.0, 9.0])
def test_the_crps_of_a_normal_is_its_integral(actual: float) -> None:
    """The closed form is the integral of (F(x) - 1[x >= y])^2, for any mean and deviation."""
    mean, std = 1.5, 2.0
    x = np.linspace(-40, 40, 400_001)
    cdf = np.array([0.5 * math.erfc((mean - point) / std / math.sqrt(2)) for point in x])
    integral = float(np.trapezoid((cdf - (x >= actual)) ** 2, x))
    assert point_metrics.crps_normal(array(mean), array(std), array(actual))[0] == pytest.approx(integral, abs=2e-4)


def test_the_crps_of_a_normal_at_its_mean() -> None:
    """The CRPS at the mean is (sqrt(2) - 1) / sqrt(pi) deviations (Gneiting and Raftery 2007, equation 21, at 0)."""
    found = point_metrics.crps_normal(array(7), array(3), array(7))[0]
    assert found == pytest.approx(3 * (math.sqrt(2) - 1) / math.sqrt(math.pi), rel=1e-12)


def cauchy_like(x: Array) -> Array:
    """The distribution function of Student's t with 2 degrees of freedom, in closed form."""
    return np.asarray(0.5 + x / (2 * np.sqrt(2 + x * x)), np.float64)


@pytest.mark.parametrize("actual", [-6.0, 0.0, 1.3])
def test_the_crps_of_students_t_is_its_integral(actual: float) -> None:
    """The closed form, with location and scale, equals the integral with the distribution function for df = 2."""
    mean, scale = 0.5, 1.5
    x = np.sinh(np.linspace(-14, 14, 800_001))
    integral = float(np.trapezoid((cauchy_like((x - mean) / scale) - (x >= actual)) ** 2, x))
    found = point_metrics.crps_student_t(array(mean), array(scale), array(2), array(actual))[0]
    assert found == pytest.approx(integral, abs=1e-3)


def test_the_crps_of_students_t_approaches_that_of_a_normal() -> None:
    """Student's t with many degrees of freedom approaches the normal distribution."""
    actual, mean, scale = array(-3, 0, 0.5, 4), np.ones(4), np.full(4, 2.0)
    t = point_metrics.crps_student_t(mean, scale, np.full(4, 1e6), actual)
    assert t == pytest.approx(point_metrics.crps_normal(mean, scale, actual), rel=1e-4)


def test_many_quantiles_give_the_crps() -> None:
    """The mean quantile loss approaches the closed form as levels are added."""
    levels = [(i + 0.5) / 400 for i in range(400)]
    quantiles = {level: np.full(3, NormalDist().inv_cdf(level)) for level in levels}
    actual = array(-2, 0.1, 3)
    exact = point_metrics.crps_normal(np.zeros(3), np.ones(3), actual)
    assert point_metrics.crps_quantiles(quantiles, actual) == pytest.approx(exact, rel=5e-3)


def test_naive_forecasts_by_hand() -> None:
    """Naive forecasts use only values up to their origin: one or two seasons before, and the line from the start."""
    values = np.array([[2.0], [4.0], [3.0], [8.0], [7.0], [99.0], [98.0]])
    forecasts = baselines.forecasts(values, np.array([2, 4]), 3, 2, np.array([5.5]))
    assert {name: forecast[..., 0].tolist() for name, forecast in forecasts.items()} == {
        "last_value": [[3, 3, 3], [7, 7, 7]],
        "seasonal_naive": [[4, 3, 4], [8, 7, 8]],
        "drift": [[3.5, 4, 4.5], [8.25, 9.5, 10.75]],
        "mean": [[5.5] * 3] * 2,
    }
    assert "seasonal_naive" not in baselines.forecasts(values, np.array([2]), 1, None, np.array([5.5]))
