"""Rankings of listed categories only.

A model that accepts categories beyond its list (`unknown`) ranks the index that stands for all of them like one more
category. Here that index is left out of its rankings, for clients that cannot use it. The log-probabilities stay those
of the model, so that the left-out index has its share of the probability.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from onward.model.inputs import Fault, InputArray, InputError
from onward.model.manifest import RANKED
from onward.model.runner import Outputs, StepModel
from onward.model.sampling.rollout_inputs import Sampler

FIELD = "listed_only"


def ranking_size(model: StepModel, *, listed_only: bool = False) -> int:
    """Returns how many of the likeliest categories the model outputs."""
    return int(np.prod(model.output_dtype[RANKED[0]].shape)) - (listed_only and _ranks_unlisted(model))


def require_listed(model: StepModel) -> None:
    """Raises InputError if the model's rankings may contain no listed category. Any other model fits."""
    if _ranks_unlisted(model) and ranking_size(model) == 1:
        message = "the model outputs the likeliest category alone, which may stand for all that are not listed"
        raise InputError(Fault(FIELD, message))


def listed_outputs(model: StepModel, outputs: Outputs) -> Outputs:
    """Returns outputs (...) with the likeliest k - 1 listed categories in place of the likeliest k categories.

    Each row has as many, also where the index of all others is not among the k. Outputs of a model without such an
    index are returned as they are. Raises InputError as `require_listed` does.
    """
    if not _ranks_unlisted(model):
        return outputs
    require_listed(model)
    left_out = outputs[RANKED[0]] >= len(model.manifest.categories)
    left_out[..., -1] |= ~left_out.any(axis=-1)
    listed = np.empty(outputs.shape, _listed_dtype(outputs.dtype))
    for name in outputs.dtype.names or ():
        values = outputs[name]
        listed[name] = values[~left_out].reshape(listed[name].shape) if name in RANKED else values
    return listed


def likeliest_listed(model: StepModel) -> Sampler:
    """Returns a function that feeds back the likeliest listed category, for rollouts without draws."""

    def feed_back(outputs: Outputs) -> InputArray:
        return model.feedback(listed_outputs(model, outputs))

    return feed_back


def _ranks_unlisted(model: StepModel) -> bool:
    """Returns whether a ranking may contain the index that stands for all categories beyond the list."""
    manifest = model.manifest
    return manifest.head.ranks_categories and manifest.category_count > len(manifest.categories)


@lru_cache(1000)
def _listed_dtype(dtype: np.dtype[np.void]) -> np.dtype[np.void]:
    """Returns the type of rows whose rankings are one category shorter."""
    fields: list[Any] = []
    for name in dtype.names or ():
        base, shape = dtype[name].base, dtype[name].shape
        fields.append((name, base, (shape[0] - 1,) if name in RANKED else shape))
    return np.dtype(fields)
