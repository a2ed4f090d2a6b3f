"""Forecasts: predictions rolled forward from a session's state, by their centre or as many drawn paths.

Every path is a row of its own, which shares batches with live steps. The session stays. What is drawn, and what the
paths come to, is `onward.model.sampling.sample_paths`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from onward.model.runner import Outputs, StepModel
from onward.model.sampling import sample_paths
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.sampling.sample_paths import SAMPLES, SampleForecast
from onward.model.sampling.samplers import new_seed
from onward.service.engine.batching.batcher import Dispatch
from onward.service.engine.batching.model_call import joined
from onward.service.engine.event_loop import by_turns
from onward.service.engine.forecasting.forecast_start import Ahead, Origin, Origins
from onward.service.engine.input_errors import refusing
from onward.service.engine.input_parsing import Intake
from onward.service.errors import Fault, InvalidInputError


class Rolled(NamedTuple):
    """outputs: (horizon,) of the model, each after its own centre, or likeliest category, was fed back."""

    model: StepModel
    step: int
    outputs: Outputs


class Forecasts:
    def __init__(self, origins: Origins, intake: Intake, dispatch: Dispatch, *, max_samples: int) -> None:
        self._origins, self._intake, self._dispatch, self._max_samples = origins, intake, dispatch, max_samples

    def roll(self, tenant: str, session_id: str, ahead: Ahead, *, has_left: Callable[[], bool] | None = None) -> Rolled:
        """Raises as `Origins.of` does, and what running raises."""
        origin = self._origins.of(tenant, session_id, ahead, has_left)
        (outputs,) = self._outputs(origin, ahead.horizon, [RolloutInputs(origin.model, origin.known)], has_left)
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
    ) -> SampleForecast:
        """Each path has a generator of its own, of the seed and its number: the same seed gives the same paths.

        Raises as `roll` does, and InvalidInputError where the model says no distribution.
        """
        count = min(SAMPLES, self._max_samples) if samples is None else samples
        if count > self._max_samples:
            raise InvalidInputError(Fault("samples", f"at most {self._max_samples}"))
        self._intake.limit(count * ahead.horizon, "samples", f"{count} paths of {ahead.horizon} steps")
        if levels is not None:
            what = f"{len(levels)} quantiles at each of {ahead.horizon} steps"
            self._intake.limit(len(levels) * ahead.horizon, "quantiles", what)
        origin = self._origins.of(tenant, session_id, ahead, has_left)
        model, seed = origin.model, new_seed() if seed is None else seed
        with refusing():
            sample_paths.require_distribution(model.manifest.head, samples=samples, levels=levels)
            feeds = [sample_paths.path_inputs(model, origin.known, seed, path) for path in by_turns(range(count))]
        ends = self._outputs(origin, ahead.horizon, feeds, has_left)
        for feed, outputs in by_turns(zip(feeds, ends, strict=True)):
            feed.next_targets(outputs[-1:])
        with refusing():
            return sample_paths.summarise_paths(model, origin.record.step, seed, feeds, origin.outputs, levels)

    def _outputs(
        self, origin: Origin, horizon: int, feeds: Sequence[RolloutInputs], has_left: Callable[[], bool] | None
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
