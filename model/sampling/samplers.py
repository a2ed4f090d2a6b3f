"""Samplers: random draws of the targets, from the distribution of numbers or from the ranking of categories.

Owns seeds, the random generators made of them, and the parameters of draws of categories. Categories that are not in
the model's ranking, and the index that stands for any unknown value, are never drawn: the rest share their probability.
"""

from collections.abc import Set as AbstractSet
from secrets import randbits
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model import distribution
from onward.model.distribution import Array
from onward.model.inputs import InputArray
from onward.model.listed_rankings import ranking_size
from onward.model.manifest import RANKED
from onward.model.runner import Outputs, StepModel
from onward.model.sampling.rollout import RolloutUnsupportedError
from onward.model.sampling.rollout_inputs import Sampler


class SamplingParameters(NamedTuple):
    """The parameters of draws, which change the model's distribution.

    temperature: divides log-probabilities, or scales the deviation of numbers; at 0 the likeliest category is drawn.
    top_k: draws among that many likeliest categories. top_p: draws among the fewest likeliest categories whose
    probabilities add up to it, the nucleus (Holtzman et al. 2020, "The curious case of neural text degeneration").
    penalty: multiplies the log-probabilities of earlier categories (Keskar et al. 2019, "CTRL", section 4.1, for scores
    that are never positive).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    penalty: float = 1.0


UNCHANGED = SamplingParameters()


def new_seed() -> int:
    """Returns a random seed of 63 bits."""
    return randbits(63)


def path_generator(seed: int, path: int = 0) -> np.random.Generator:
    """Returns the random generator of path number `path`, which is independent of the other paths."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(path,)))


def make_sampler(
    model: StepModel,
    rng: np.random.Generator,
    parameters: SamplingParameters = UNCHANGED,
    previous: AbstractSet[int] = frozenset(),
) -> Sampler:
    """Returns a sampler that draws from the model's distribution. Point heads have none: it returns their prediction.

    previous: the indices of earlier categories, read at each draw. The caller checks that drawn numbers are finite.
    Raises RolloutUnsupportedError if the model's ranking may contain nothing that can be drawn.
    """
    manifest = model.manifest
    head, dtype = manifest.head, model.input_dtype
    if head.ranks_categories:
        if ranking_size(model) == 1 and manifest.category_count > len(manifest.categories):
            raise RolloutUnsupportedError(manifest.name, "it ranks one category, which may stand for any unknown value")
        return lambda outputs: np.array([[draw_category(model, outputs, rng, parameters, previous)]], dtype)
    if not distribution.has_distribution(head):
        return model.feedback

    def draw_numbers(outputs: Outputs) -> InputArray:
        with np.errstate(over="ignore"):
            return distribution.draw(head, outputs, rng, parameters.temperature).astype(dtype)

    return draw_numbers


def draw_category(
    model: StepModel,
    outputs: Outputs,
    rng: np.random.Generator,
    parameters: SamplingParameters = UNCHANGED,
    previous: AbstractSet[int] = frozenset(),
) -> int:
    """Returns the index of a category, drawn from outputs (1,) with one number of the generator.

    previous: the indices of earlier categories.
    """
    indices = outputs[RANKED[0]][0]
    drawable = indices < len(model.manifest.categories)
    indices, scores = indices[drawable], outputs[RANKED[1]][0][drawable].astype(np.float64)
    if parameters == UNCHANGED:
        likely = np.exp(scores)
    else:
        repeated = np.array([index in previous for index in indices.tolist()], np.bool_)
        likely = probabilities(scores, repeated, parameters)
    cumulative = np.cumsum(likely)
    return int(indices[np.searchsorted(cumulative[:-1], rng.random() * cumulative[-1], side="right")])


def probabilities(scores: NDArray[np.float64], repeated: NDArray[np.bool_], parameters: SamplingParameters) -> Array:
    """Returns probabilities (categories,) from log-probabilities; they add up to 1.

    The penalty of `repeated` categories is applied first, then the temperature, then `top_k`, then `top_p`.
    """
    scores = np.where(repeated, scores * parameters.penalty, scores)
    order = np.argsort(-scores, kind="stable")
    if parameters.temperature == 0:
        return np.asarray(np.arange(len(scores)) == order[0], np.float64)
    with np.errstate(over="ignore"):
        falling = np.exp((scores - scores.max()) / parameters.temperature)[order]
    falling[len(falling) if parameters.top_k is None else parameters.top_k :] = 0.0
    falling /= falling.sum()
    if parameters.top_p is not None:
        falling[1 + np.count_nonzero(np.cumsum(falling) < parameters.top_p) :] = 0.0
        falling /= falling.sum()
    result = np.empty(len(scores))
    result[order] = falling
    return result
