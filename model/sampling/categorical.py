"""One of the categories that a model tells: how likely each is to be drawn, and the draw.

Pure: log-probabilities and a generator in, a place out. What a model does not tell, and the place that stands for any
other category, is never drawn: the rest share its probability.
"""

from collections.abc import Set as AbstractSet
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.distribution import Array
from onward.model.manifest import RANKED
from onward.model.runner import Outputs, StepModel


class Taste(NamedTuple):
    """How likely categories are drawn, beside what the model says.

    temperature: divides log-probabilities, at 0 the likeliest is drawn. top_k: of so many likeliest. top_p: of the
    fewest likeliest that are as probable together, the nucleus (Holtzman et al. 2020, "The curious case of neural text
    degeneration"). penalty: the log-probability of what came before is multiplied by it (Keskar et al. 2019, "CTRL",
    section 4.1, for scores that are never positive).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    penalty: float = 1.0


PLAIN = Taste()


def told(model: StepModel) -> int:
    """How many places the model tells."""
    return int(np.prod(model.output_dtype[RANKED[0]].shape))


def drawn(
    model: StepModel,
    outputs: Outputs,
    rng: np.random.Generator,
    taste: Taste = PLAIN,
    before: AbstractSet[int] = frozenset(),
) -> int:
    """A place, by outputs (1,). before: the places that came before. Takes one number of the generator."""
    places = outputs[RANKED[0]][0]
    listed = places < len(model.manifest.categories)
    places, scores = places[listed], outputs[RANKED[1]][0][listed].astype(np.float64)
    if taste == PLAIN:
        likely = np.exp(scores)
    else:
        likely = probabilities(scores, np.array([place in before for place in places.tolist()], np.bool_), taste)
    reach = np.cumsum(likely)
    return int(places[np.searchsorted(reach[:-1], rng.random() * reach[-1], side="right")])


def probabilities(scores: NDArray[np.float64], again: NDArray[np.bool_], taste: Taste) -> Array:
    """(places,) of log-probabilities, where `again` marks those that came before: first the penalty, then the
    temperature, then `top_k`, then `top_p`; they add up to 1.
    """
    scores = np.where(again, scores * taste.penalty, scores)
    order = np.argsort(-scores, kind="stable")
    if taste.temperature == 0:
        return np.asarray(np.arange(len(scores)) == order[0], np.float64)
    with np.errstate(over="ignore"):
        heated = np.exp((scores - scores.max()) / taste.temperature)[order]
    heated[len(heated) if taste.top_k is None else taste.top_k :] = 0.0
    heated /= heated.sum()
    if taste.top_p is not None:
        heated[1 + np.count_nonzero(np.cumsum(heated) < taste.top_p) :] = 0.0
        heated /= heated.sum()
    likely = np.empty(len(scores))
    likely[order] = heated
    return likely
