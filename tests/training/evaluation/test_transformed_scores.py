"""Scores of distributions of transformed targets."""

import numpy as np
import pytest

from onward.model.manifest import Head
from onward.model.transforms import Transform
from onward.training.evaluation import probabilistic_metrics

DRAWS = 400_000


def test_the_crps_of_a_transformed_target_is_that_of_draws() -> None:
    """The CRPS is E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, equation 21)."""
    outputs = ("mean", "location", "scale")
    head = Head(kind="gaussian", outputs=outputs, targets=("x", "y"), transforms=(Transform(kind="log"), None))
    predicted = np.zeros(1, [(name, np.float32, 2) for name in outputs])
    predicted["location"], predicted["scale"] = [1, -2], [0.5, 2]
    z = np.random.default_rng(0).standard_normal((2, DRAWS))
    (first, again), (plain, plain_again) = np.exp(1 + 0.5 * z), -2 + 2 * z
    for actual in (1.0, 4.0):
        found = probabilistic_metrics.crps(head, predicted, np.array([[actual, actual]]))[0]
        for column, draws, more_draws in ((0, first, again), (1, plain, plain_again)):
            expected = np.abs(draws - actual).mean() - np.abs(draws - more_draws).mean() / 2
            assert found[column] == pytest.approx(expected, rel=0.01)
