"""The probabilities with which categories are drawn, against values worked out by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.sampling.samplers import SamplingParameters, probabilities

SCORES = np.log([0.4, 0.3, 0.2, 0.1])
NONE = np.zeros(4, np.bool_)


def repeated(*indices: int) -> NDArray[np.bool_]:
    return np.isin(np.arange(4), indices)


@pytest.mark.parametrize(
    ("parameters", "before", "expected"),
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
        (SamplingParameters(top_k=2, top_p=0.5), (), [1, 0, 0, 0]),  # the first of the two has 4/7
        (
            SamplingParameters(temperature=0.5, top_p=0.5),
            (),
            [1, 0, 0, 0],
        ),  # the nucleus is that of the distribution after the temperature
        (SamplingParameters(penalty=2.0), (0,), [0.16 / 0.76, 0.3 / 0.76, 0.2 / 0.76, 0.1 / 0.76]),
        (SamplingParameters(temperature=0.0, penalty=2.0), (0,), [0, 1, 0, 0]),
        (SamplingParameters(penalty=2.0, top_k=1), (0, 1), [0, 0, 1, 0]),
        (SamplingParameters(penalty=2.0), (), [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_probabilities_are_those_worked_out_by_hand(
    parameters: SamplingParameters, before: tuple[int, ...], expected: list[float]
) -> None:
    """The penalty is applied first, then the temperature, top-k and top-p; the probabilities add up to one."""
    found = probabilities(SCORES, repeated(*before), parameters)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found.sum() == pytest.approx(1)


def test_the_order_of_categories_does_not_matter() -> None:
    """A category has the same probability at any index; among equally likely categories the first is taken."""
    order = np.array([2, 0, 3, 1])
    parameters = SamplingParameters(temperature=0.7, top_k=3, top_p=0.9, penalty=1.3)
    in_order = probabilities(SCORES, repeated(1), parameters)
    assert probabilities(SCORES[order], repeated(1)[order], parameters) == pytest.approx(in_order[order])
    assert probabilities(np.log([0.25] * 4), NONE, SamplingParameters(top_k=1)).tolist() == [1, 0, 0, 0]
