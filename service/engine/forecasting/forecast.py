"""Forecasts: predictions rolled forward from a session's state, as point forecasts or as many sample paths.

Every path is a row of its own, which shares batches with live steps. The session does not change. How paths are drawn
and summarised is in `onward.model.sampling.sample_paths`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from onward.model.listed_rankings import likeliest_listed, listed_outputs
from onward.model.runner import Outputs, StepModel
from onward.model.sampling import sample_paths
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.sampling.sample_paths import SAMPLES, SampleForecast
from onward.model.sampling.samplers import new_seed
from onward.service.engine.batching.batcher import Batchers
from onward.service.engine.batching.model_call import joined
from onward.service.engine.event_loop import in_loop_turns
from onward.service.engine.forecasting.forecast_start import ForecastRequest, ForecastStart, ForecastStarts
from onward.service.engine.input_parsing import InputParser, as_service_errors
from onward.service.errors import Fault, InvalidInputError


class PointForecast(NamedTuple):
    """A point forecast.

    outputs: (horizon,) of the model, each fed the centre, or the likeliest category, of the one before it.
    """

    model: StepModel
    step: int
    outputs: Outputs


class Forecasts:
    def __init__(self, starts: ForecastStarts, parser: InputParser, batchers: Batchers, *, max_samples: int) -> None:
        self._starts, self._parser, self._batchers, self._max_samples = starts, parser, batchers, max_samples

    def roll(
        self, tenant: str, session_id: str, request: ForecastRequest, *, has_left: Callable[[], bool] | None = None
    ) -> PointForecast:
        """Returns the point forecast. Raises as `ForecastStarts.prepare` does, and the errors of a step."""
        start = self._starts.prepare(tenant, session_id, request, has_left)
        feed = RolloutInputs(
            start.model, start.covariates, likeliest_listed(start.model) if request.listed_only else None
        )
        (outputs,) = self._outputs(start, request.horizon, [feed], has_left)
        return PointForecast(
            start.model, start.record.step, listed_outputs(start.model, outputs) if request.listed_only else outputs
        )

    def sample(
        self,
        tenant: str,
        session_id: str,
        request: ForecastRequest,
        *,
        samples: int | None = None,
        levels: Sequence[float] | None = None,
        seed: int | None = None,
        has_left: Callable[[], bool] | None = None,
    ) -> SampleForecast:
        """Returns sample paths and their quantiles.

        The same seed gives the same paths: each path has a random generator of its own, made from the seed and the
        path's number.

        Raises as `roll` does, and InvalidInputError if the model predicts no distribution.
        """
        count = min(SAMPLES, self._max_samples) if samples is None else samples
        if count > self._max_samples:
            raise InvalidInputError(Fault("samples", f"at most {self._max_samples}"))
        self._parser.check_total(count * request.horizon, "samples", f"{count} paths of {request.horizon} steps")
        if levels is not None:
            description = f"{len(levels)} quantiles at each of {request.horizon} steps"
            self._parser.check_total(len(levels) * request.horizon, "quantiles", description)
        start = self._starts.prepare(tenant, session_id, request, has_left)
        model, seed = start.model, new_seed() if seed is None else seed
        with as_service_errors():
            sample_paths.require_distribution(model.manifest.head, samples=samples, levels=levels)
            feeds = [
                sample_paths.path_inputs(model, start.covariates, seed, path) for path in in_loop_turns(range(count))
            ]
        rollouts = self._outputs(start, request.horizon, feeds, has_left)
        for feed, outputs in in_loop_turns(zip(feeds, rollouts, strict=True)):
            feed.next_targets(outputs[-1:])
        with as_service_errors():
            return sample_paths.summarise_paths(
                model, start.record.step, seed, feeds, start.outputs, levels, listed_only=request.listed_only
            )

    def _outputs(
        self, start: ForecastStart, horizon: int, feeds: Sequence[RolloutInputs], has_left: Callable[[], bool] | None
    ) -> list[Outputs]:
        """Returns the outputs (horizon,) of a rollout for each feed."""
        if horizon == 1:
            return [start.outputs] * len(feeds)
        call = self._batchers.call(len(feeds), needs_all=True, has_left=has_left)
        items = [
            self._batchers.standalone_row(
                start.model, feed(start.outputs), call, start.state, horizon=horizon - 2, feed=feed
            )
            for feed in in_loop_turns(feeds)
        ]
        return [
            joined([start.outputs, result.outputs]) for result in in_loop_turns(self._batchers.run_all(call, items))
        ]
