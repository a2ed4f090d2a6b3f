"""Sample paths and their summary: means and quantiles of numbers, probabilities of categories.

Owns the content of a forecast by samples. Knows nothing of how paths are run: each is recorded by its rollout inputs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from onward.model import distribution
from onward.model.distribution import Array
from onward.model.inputs import Fault, InputArray, InputError
from onward.model.listed_rankings import listed_outputs, ranking_size
from onward.model.manifest import RANKED, Head
from onward.model.outputs import category_names
from onward.model.runner import Outputs, StepModel
from onward.model.sampling.rollout import NonFiniteError
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.sampling.samplers import make_sampler, path_generator

LEVELS, SAMPLES = (0.1, 0.5, 0.9), 200
"""The defaults if a request names only one of them."""


class SampleForecast(NamedTuple):
    """Drawn paths (samples, horizon, targets), of categories as indices, and their summary.

    mean: (horizon, targets), medians of targets that have no finite mean (`distribution.has_mean`), and quantiles:
    (horizon, targets, levels), for numbers. top, probability: (horizon, at most the size of the model's ranking), for
    categories: the likeliest indices, falling. The first step is the model's own distribution; those after it are
    estimated from the paths.
    """

    model: StepModel
    step: int
    seed: int
    paths: InputArray
    levels: tuple[float, ...] = ()
    mean: Array | None = None
    quantiles: Array | None = None
    top: list[list[int]] | None = None
    probability: list[list[float]] | None = None

    def fields(self, *, paths: bool) -> dict[str, Any]:
        """Returns the fields of the forecast, indices replaced by categories; paths: include the paths themselves."""
        categories = self.model.manifest.categories
        fields: dict[str, Any] = {"mean": self.mean, "quantiles": self.quantiles}
        if self.top is not None:
            fields = {"top": category_names(self.top, categories), "probability": self.probability}
        if paths:
            fields["paths"] = (
                category_names(self.paths.astype(np.int64).tolist(), categories) if categories else self.paths
            )
        return fields


def draws_paths(*, samples: int | None, levels: Sequence[float] | None, seed: int | None, paths: bool) -> bool:
    """Returns True if a forecast with these options draws paths.

    Raises InputError if the levels are invalid, or if no paths are drawn and an option belongs to them.
    """
    if levels is not None and not (levels and sorted(set(levels)) == [*levels] and 0 < levels[0] <= levels[-1] < 1):
        raise InputError(Fault("quantiles", "levels rise, each of them once, between 0 and 1"))
    drawn = samples is not None or levels is not None
    if not drawn and (paths or seed is not None):
        raise InputError(Fault("paths" if paths else "seed", "belongs to sample paths; ask for samples or quantiles"))
    return drawn


def require_distribution(head: Head, *, samples: int | None, levels: Sequence[float] | None) -> None:
    """Raises InputError if the head has no distribution of the kind that the options need."""
    if head.ranks_categories and levels is not None:
        raise InputError(Fault("quantiles", "categories have no order, so no quantiles; ask for samples"))
    if not head.ranks_categories and not distribution.has_distribution(head):
        message = f"the head {head.kind} has no distribution; without this field a forecast feeds back the prediction"
        raise InputError(Fault("quantiles" if samples is None else "samples", message))


def path_inputs(model: StepModel, future: InputArray | None, seed: int, path: int) -> RolloutInputs:
    """Returns rollout inputs that draw, for path number `path`. Raises RolloutUnsupportedError."""
    return RolloutInputs(model, future, make_sampler(model, path_generator(seed, path)))


def summarise_paths(
    model: StepModel,
    step: int,
    seed: int,
    rollouts: Sequence[RolloutInputs],
    first: Outputs,
    levels: Sequence[float] | None,
    *,
    listed_only: bool = False,
) -> SampleForecast:
    """Returns the summary of the paths that `rollouts` recorded. first: the outputs (1,) that all of them began with.

    listed_only: leave the index of all categories that are not listed out of the first step's ranking; it is never
    drawn. Raises NonFiniteError if a path has a number that is not finite.
    """
    paths = np.stack([rollout.path() for rollout in rollouts])
    if not np.isfinite(paths).all():
        raise NonFiniteError
    drawn = SampleForecast(model, step, seed, paths)
    return (
        _summarise_categories(drawn, listed_outputs(model, first) if listed_only else first)
        if model.manifest.head.ranks_categories
        else _summarise_numbers(drawn, first, levels or LEVELS)
    )


def _summarise_numbers(drawn: SampleForecast, first: Outputs, levels: Sequence[float]) -> SampleForecast:
    head, paths = drawn.model.manifest.head, drawn.paths.astype(np.float64)
    has_mean = distribution.has_mean(head)
    mean = paths.mean(axis=0) if has_mean.all() else np.where(has_mean, paths.mean(axis=0), np.median(paths, axis=0))
    quantiles = np.ascontiguousarray(np.moveaxis(np.quantile(paths, levels, axis=0), 0, -1))
    mean[0], quantiles[0] = distribution.mean(head, first)[0], distribution.quantile(head, first, levels)[0]
    return drawn._replace(levels=tuple(levels), mean=mean, quantiles=quantiles)


def _summarise_categories(drawn: SampleForecast, first: Outputs) -> SampleForecast:
    top, probability = [first[RANKED[0]][0].tolist()], [np.exp(first[RANKED[1]][0].astype(np.float64)).tolist()]
    for step in range(1, drawn.paths.shape[1]):
        indices, counts = np.unique(drawn.paths[:, step, 0].astype(np.int64), return_counts=True)
        falling = np.argsort(-counts, kind="stable")[: ranking_size(drawn.model)]
        top.append(indices[falling].tolist())
        probability.append((counts[falling] / len(drawn.paths)).tolist())
    return drawn._replace(top=top, probability=probability)
