"""What is said of the targets where it is drawn: numbers from the head's distribution, categories by chance.

Owns seeds and the generators that are made of them.
"""

from collections.abc import Set as AbstractSet
from secrets import randbits

import numpy as np
from numpy.typing import NDArray

from onward.model import distribution
from onward.model.runner import Outputs, StepModel
from onward.model.sampling import categorical
from onward.model.sampling.categorical import PLAIN, Taste
from onward.model.sampling.rollout import RolloutUnsupportedError
from onward.model.sampling.rollout_inputs import Sampler


def new_seed() -> int:
    return randbits(63)


def path_generator(seed: int, path: int = 0) -> np.random.Generator:
    """That path's own."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(path,)))


def make_sampler(
    model: StepModel, rng: np.random.Generator, taste: Taste = PLAIN, before: AbstractSet[int] = frozenset()
) -> Sampler:
    """Draws from what the model says; points say no distribution, and are said as they are.

    before: the places that came before, as they are at each draw. A number that is not finite is the caller's to find.
    Raises RolloutUnsupportedError where what is told may be nothing that can be drawn.
    """
    manifest = model.manifest
    head = manifest.head
    if head.ranks_categories:
        if categorical.told(model) == 1 and manifest.category_count > len(manifest.categories):
            raise RolloutUnsupportedError(manifest.name, "it tells one category, and that may stand for any other")
        return lambda outputs: np.array([[categorical.drawn(model, outputs, rng, taste, before)]], np.float32)
    if not distribution.has_distribution(head):
        return model.feedback

    def say(outputs: Outputs) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            return distribution.draw(head, outputs, rng, taste.temperature).astype(np.float32)

    return say
