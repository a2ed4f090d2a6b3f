"""Forecasts: predictions rolled forward from a session's state, by their centre or as many drawn paths.

Owns what a forecast says. Every path is a row of its own, which shares batches with live steps. The session stays.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model import distribution
from model.distribution import Array
from model.manifest import RANKED, Head
from model.runner import Outputs, StepModel
from service.engine import choice
from service.engine.call import joined
from service.engine.dispatch import Dispatch
from service.engine.drawing import generator, new_seed, saying
from service.engine.feed import Feed
from service.engine.origin import Ahead, Origin, Origins
from service.engine.turn import by_turns
from service.errors import Fault, InvalidInputError, NotFiniteError

LEVELS, SAMPLES = (0.1, 0.5, 0.9), 200
"""Where only one of them is asked for."""


class Rolled(NamedTuple):
    """outputs: (horizon,) of the model, each after its own centre, or likeliest category, was fed back."""

    model: StepModel
    step: int
    outputs: Outputs


class Sampled(NamedTuple):
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


class Forecasts:
    def __init__(self, origins: Origins, dispatch: Dispatch, *, max_samples: int, max_steps: int) -> None:
        """max_steps: of all paths together."""
        self._origins, self._dispatch = origins, dispatch
        self._max_samples, self._max_steps = max_samples, max_steps

    def roll(self, tenant: str, session_id: str, ahead: Ahead, *, has_left: Callable[[], bool] | None = None) -> Rolled:
        """Raises as `Origins.of` does, and what running raises."""
        origin = self._origins.of(tenant, session_id, ahead, has_left)
        (outputs,) = self._outputs(origin, ahead.horizon, [Feed(origin.model, origin.known)], has_left)
        return Rolled(origin.model, origin.record.step, outputs)

    def sample(
        self,
        tenant: str,
        session_id: str,
        ahead: Ahead,
        *,
        samples: int | None = None,
        levels: Sequence[float] | None = None,
        seed: int | None = None,
        has_left: Callable[[], bool] | None = None,
    ) -> Sampled:
        """Each path has a generator of its own, of the seed and its number: the same seed gives the same paths.

        Raises as `roll` does, and InvalidInputError where the model says no distribution.
        """
        count = min(SAMPLES, self._max_samples) if samples is None else samples
        self._not_too_many(count, ahead.horizon)
        origin = self._origins.of(tenant, session_id, ahead, has_left)
        model, head = origin.model, origin.model.manifest.head
        _hold(head, "quantiles" if samples is None else "samples", quantiles=levels is not None)
        seed = new_seed() if seed is None else seed
        feeds = [Feed(model, origin.known, saying(model, generator(seed, path))) for path in by_turns(range(count))]
        ends = self._outputs(origin, ahead.horizon, feeds, has_left)
        for feed, outputs in by_turns(zip(feeds, ends, strict=True)):
            feed.say(outputs[-1:])
        paths = np.stack([feed.path() for feed in feeds])
        if not np.isfinite(paths).all():
            raise NotFiniteError
        drawn = Sampled(model, origin.record.step, seed, paths)
        return _counted(drawn, origin.outputs) if head.ranks else _measured(drawn, origin.outputs, levels or LEVELS)

    def _not_too_many(self, samples: int, horizon: int) -> None:
        if samples > self._max_samples:
            raise InvalidInputError(Fault("samples", f"at most {self._max_samples}"))
        if samples * horizon > self._max_steps:
            what = f"{samples} paths of {horizon} steps are {samples * horizon} steps; at most {self._max_steps} a call"
            raise InvalidInputError(Fault("samples", what))

    def _outputs(
        self, origin: Origin, horizon: int, feeds: Sequence[Feed], has_left: Callable[[], bool] | None
    ) -> list[Outputs]:
        """Of each feed, outputs (horizon,)."""
        if horizon == 1:
            return [origin.outputs] * len(feeds)
        call = self._dispatch.call(len(feeds), needs_all=True, has_left=has_left)
        works = [
            self._dispatch.free_work(
                origin.model, feed(origin.outputs), call, origin.state, horizon=horizon - 2, feed=feed
            )
            for feed in by_turns(feeds)
        ]
        return [joined([origin.outputs, done.outputs]) for done in by_turns(self._dispatch.run_all(call, works))]


def _hold(head: Head, field: str, *, quantiles: bool) -> None:
    """Raises InvalidInputError where the head does not say what would be told."""
    if head.ranks and quantiles:
        raise InvalidInputError(Fault("quantiles", "categories have no order, so no quantiles; ask for samples"))
    if not head.ranks and not distribution.known(head):
        what = f"the head {head.kind} says no distribution; without it a forecast feeds back what the head says"
        raise InvalidInputError(Fault(field, what))


def _measured(drawn: Sampled, first: Outputs, levels: Sequence[float]) -> Sampled:
    head, paths = drawn.model.manifest.head, drawn.paths.astype(np.float64)
    mean = paths.mean(axis=0)
    quantiles = np.ascontiguousarray(np.moveaxis(np.quantile(paths, levels, axis=0), 0, -1))
    mean[0], quantiles[0] = distribution.mean(head, first)[0], distribution.quantile(head, first, levels)[0]
    return drawn._replace(levels=tuple(levels), mean=mean, quantiles=quantiles)


def _counted(drawn: Sampled, first: Outputs) -> Sampled:
    top, probability = [first[RANKED[0]][0].tolist()], [np.exp(first[RANKED[1]][0].astype(np.float64)).tolist()]
    for step in range(1, drawn.paths.shape[1]):
        places, counts = np.unique(drawn.paths[:, step, 0].astype(np.int64), return_counts=True)
        falling = np.argsort(-counts, kind="stable")[: choice.told(drawn.model)]
        top.append(places[falling].tolist())
        probability.append((counts[falling] / len(drawn.paths)).tolist())
    return drawn._replace(top=top, probability=probability)
