"""How likely categories are drawn, worked out by hand, and that draws follow it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.sampling.samplers import SamplingParameters, probabilities

SCORES = np.log([0.4, 0.3, 0.2, 0.1])
NONE = np.zeros(4, np.bool_)


def again(*places: int) -> NDArray[np.bool_]:
    return np.isin(np.arange(4), places)


@pytest.mark.parametrize(
    ("taste", "before", "expected"),
    [
        (SamplingParameters(), (), [0.4, 0.3, 0.2, 0.1]),
        (SamplingParameters(temperature=0.5), (), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (SamplingParameters(temperature=0.0), (), [1, 0, 0, 0]),
        (SamplingParameters(temperature=1e-300), (), [1, 0, 0, 0]),
        (SamplingParameters(top_k=2), (), [4 / 7, 3 / 7, 0, 0]),
        (SamplingParameters(top_k=9), (), [0.4, 0.3, 0.2, 0.1]),
        (SamplingParameters(top_p=0.4), (), [1, 0, 0, 0]),
        (SamplingParameters(top_p=0.41), (), [4 / 7, 3 / 7, 0, 0]),
        (SamplingParameters(top_p=0.95), (), [0.4, 0.3, 0.2, 0.1]),
        (SamplingParameters(top_p=1.0), (), [0.4, 0.3, 0.2, 0.1]),
        (SamplingParameters(top_k=2, top_p=0.5), (), [1, 0, 0, 0]),  # of the two, the first is 4/7
        (SamplingParameters(temperature=0.5, top_p=0.5), (), [1, 0, 0, 0]),  # the nucleus is that of what is drawn from
        (SamplingParameters(penalty=2.0), (0,), [0.16 / 0.76, 0.3 / 0.76, 0.2 / 0.76, 0.1 / 0.76]),
        (SamplingParameters(temperature=0.0, penalty=2.0), (0,), [0, 1, 0, 0]),
        (SamplingParameters(penalty=2.0, top_k=1), (0, 1), [0, 0, 1, 0]),
        (SamplingParameters(penalty=2.0), (), [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_probabilities_are_those_worked_out_by_hand(
    taste: SamplingParameters, before: tuple[int, ...], expected: list[float]
) -> None:
    """First the penalty, then the temperature, then the likeliest few, then the nucleus; and one in all."""
    found = probabilities(SCORES, again(*before), taste)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found.sum() == pytest.approx(1)


def test_the_order_of_categories_does_not_matter() -> None:
    """Each keeps its own probability, wherever it stands; among equals the first is taken."""
    turned = np.array([2, 0, 3, 1])
    taste = SamplingParameters(temperature=0.7, top_k=3, top_p=0.9, penalty=1.3)
    straight = probabilities(SCORES, again(1), taste)
    assert probabilities(SCORES[turned], again(1)[turned], taste) == pytest.approx(straight[turned])
    assert probabilities(np.log([0.25] * 4), NONE, SamplingParameters(top_k=1)).tolist() == [1, 0, 0, 0]
