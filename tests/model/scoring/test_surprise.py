"""Statistics of surprise, against numpy."""

import numpy as np
import pytest

from onward.model.scoring.surprise import update_means


def test_the_mean_and_the_exponentially_weighted_mean() -> None:
    """Both means are independent of the chunks; the weighted mean gives the last input a weight of 0.1."""
    values = np.random.default_rng(0).normal(size=50).tolist()
    whole = update_means((0, 0.0, 0.0), values)
    assert update_means(update_means(update_means((0, 0.0, 0.0), values[:20]), values[20:21]), values[21:]) == whole
    count, mean, recent = whole
    assert count == 50
    assert mean == pytest.approx(np.mean(values))
    weights = np.array([0.9**49] + [0.1 * 0.9 ** (49 - i) for i in range(1, 50)])
    assert recent == pytest.approx(weights @ values)
