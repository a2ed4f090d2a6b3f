"""Drawn paths, and what they come to: means and quantiles of numbers, probabilities of categories.

Owns what a forecast by samples says. Knows nothing of how paths are run: each is what a feed has said.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model import distribution
from onward.model.distribution import Array
from onward.model.inputs import Fault, InputError
from onward.model.manifest import RANKED, Head
from onward.model.outputs import category_names
from onward.model.runner import Outputs, StepModel
from onward.model.sampling import categorical
from onward.model.sampling.rollout import NonFiniteError
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.sampling.samplers import make_sampler, path_generator

LEVELS, SAMPLES = (0.1, 0.5, 0.9), 200
"""Where only one of them is asked for."""


class SampleForecast(NamedTuple):
    """Paths (samples, horizon, targets) that were drawn, of categories as places, and what they come to.

    mean: (horizon, targets) and quantiles: (horizon, targets, levels), of numbers. top, probability: (horizon, at most
    as many as the model tells), of categories the likeliest places, falling. The first step is what the model says, the
    others are counted.
    """

    model: StepModel
    step: int
    seed: int
    paths: NDArray[np.float32]
    levels: tuple[float, ...] = ()
    mean: Array | None = None
    quantiles: Array | None = None
    top: list[list[int]] | None = None
    probability: list[list[float]] | None = None

    def fields(self, *, paths: bool) -> dict[str, Any]:
        """By name, categories as they are; with the paths themselves or without."""
        categories = self.model.manifest.categories
        told: dict[str, Any] = {"mean": self.mean, "quantiles": self.quantiles}
        if self.top is not None:
            told = {"top": category_names(self.top, categories), "probability": self.probability}
        if paths:
            told["paths"] = (
                category_names(self.paths.astype(np.int64).tolist(), categories) if categories else self.paths
            )
        return told


def draws_paths(*, samples: int | None, levels: Sequence[float] | None, seed: int | None, paths: bool) -> bool:
    """Whether a forecast draws paths. Raises InputError where levels are none, and where no paths are drawn and what
    belongs to them is asked for.
    """
    if levels is not None and not (levels and sorted(set(levels)) == [*levels] and 0 < levels[0] <= levels[-1] < 1):
        raise InputError(Fault("quantiles", "levels rise, each of them once, between 0 and 1"))
    drawn = samples is not None or levels is not None
    if not drawn and (paths or seed is not None):
        raise InputError(Fault("paths" if paths else "seed", "belongs to sample paths; ask for samples or quantiles"))
    return drawn


def require_distribution(head: Head, *, samples: int | None, levels: Sequence[float] | None) -> None:
    """Raises InputError where the head does not say what would be told."""
    if head.ranks_categories and levels is not None:
        raise InputError(Fault("quantiles", "categories have no order, so no quantiles; ask for samples"))
    if not head.ranks_categories and not distribution.has_distribution(head):
        what = f"the head {head.kind} says no distribution; without it a forecast feeds back what the head says"
        raise InputError(Fault("quantiles" if samples is None else "samples", what))


def path_inputs(model: StepModel, known: NDArray[np.float32] | None, seed: int, path: int) -> RolloutInputs:
    """That path's own, which draws. known: see `RolloutInputs`. Raises RolloutUnsupportedError."""
    return RolloutInputs(model, known, make_sampler(model, path_generator(seed, path)))


def summarise_paths(
    model: StepModel,
    step: int,
    seed: int,
    feeds: Sequence[RolloutInputs],
    first: Outputs,
    levels: Sequence[float] | None,
) -> SampleForecast:
    """Of feeds that have said all steps, and the outputs (1,) that all of them began with. Raises NonFiniteError."""
    paths = np.stack([feed.path() for feed in feeds])
    if not np.isfinite(paths).all():
        raise NonFiniteError
    drawn = SampleForecast(model, step, seed, paths)
    return _counted(drawn, first) if model.manifest.head.ranks_categories else _measured(drawn, first, levels or LEVELS)


def _measured(drawn: SampleForecast, first: Outputs, levels: Sequence[float]) -> SampleForecast:
    head, paths = drawn.model.manifest.head, drawn.paths.astype(np.float64)
    mean = paths.mean(axis=0)
    quantiles = np.ascontiguousarray(np.moveaxis(np.quantile(paths, levels, axis=0), 0, -1))
    mean[0], quantiles[0] = distribution.mean(head, first)[0], distribution.quantile(head, first, levels)[0]
    return drawn._replace(levels=tuple(levels), mean=mean, quantiles=quantiles)


def _counted(drawn: SampleForecast, first: Outputs) -> SampleForecast:
    top, probability = [first[RANKED[0]][0].tolist()], [np.exp(first[RANKED[1]][0].astype(np.float64)).tolist()]
    for step in range(1, drawn.paths.shape[1]):
        places, counts = np.unique(drawn.paths[:, step, 0].astype(np.int64), return_counts=True)
        falling = np.argsort(-counts, kind="stable")[: categorical.told(drawn.model)]
        top.append(places[falling].tolist())
        probability.append((counts[falling] / len(drawn.paths)).tolist())
    return drawn._replace(top=top, probability=probability)
