"""A session as its client sees it: what is known of it without a request, and its operations as flows.

`Session` and `AsyncSession` run these flows, with threads and with an event loop.
"""

from collections.abc import Sequence
from typing import Any

from onward.client.command_flow import EmittingFlow, Flow, RetryPolicy
from onward.client.generation import GenerationOptions, generate, generate_body
from onward.client.inputs import Step, Steps, json_step, json_steps
from onward.client.operations import Operations, StepResult, forecast_body, session_path
from onward.client.results import Forecast, Prediction, Predictions, SessionInfo
from onward.client.step_stream import StepStream
from onward.errors import Problem, SessionEnded, UnknownSession, UnreachableError

ONCE = RetryPolicy(deadline_s=0.0)


class SessionOperations:
    """The base class of `Session` and `AsyncSession`. keep: the session lives on after a `with` block."""

    def __init__(self, operations: Operations, info: SessionInfo, *, keep: bool) -> None:
        self.id, self.model, self.version = info.session_id, info.model, info.version
        self.step_count = info.step
        """The number of inputs consumed, by the last response."""
        self.prediction = info.prediction
        """The prediction of the next input, by the last response; None if no response has had one yet."""
        self._operations, self._keep = operations, keep

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} of {self.model} {self.version} at step {self.step_count}>"

    def _update(self, info: SessionInfo) -> SessionInfo:
        self.version, self.step_count = info.version, info.step
        return info

    def _advance(self, predictions: Predictions) -> Predictions:
        self.step_count, self.prediction = predictions.step, predictions.last
        return predictions

    def _info(self) -> Flow[SessionInfo]:
        return self._update((yield from self._operations.info(self.id)))

    def _step(self, step: Step, at: int | None, request_id: str | None) -> Flow[Prediction]:
        return self._advance((yield from self._operations.steps(self.id, json_step(step), at, request_id))).last

    def _steps(self, inputs: Steps, at: int | None, request_id: str | None) -> Flow[Predictions]:
        return self._advance((yield from self._operations.steps(self.id, json_steps(inputs), at, request_id)))

    def _forecast(
        self, horizon: int, samples: int | None, quantiles: Sequence[float] | None, seed: int | None,
        future: Steps | None, inputs: Steps | None, *, paths: bool,
    ) -> Flow[Forecast]:  # fmt: skip
        body = forecast_body(horizon, samples, quantiles, seed, future, inputs, paths=paths)
        return self._operations.forecast(self.id, body)

    def _generate(self, horizon: int, options: GenerationOptions) -> EmittingFlow:
        operations, body = self._operations, generate_body(horizon, options)
        return generate(session_path(self.id, "/generate"), body, operations.policy, operations.ranking_query)

    def _stream(self) -> EmittingFlow:
        operations = self._operations
        return StepStream(self.id, operations.policy, operations.ranking_query).run()

    def _streamed(self, prediction: Prediction) -> Prediction:
        self.step_count, self.prediction = prediction.step, prediction
        return prediction

    def _fork(self, session_id: str | None, ttl_s: float | None) -> Flow[SessionInfo]:
        return self._operations.fork(self.id, session_id, ttl_s)

    def _rewind(self, step: int) -> Flow[SessionInfo]:
        self.prediction = None
        return self._update((yield from self._operations.rewind(self.id, step)))

    def _migrate(self, version: int | None) -> Flow[SessionInfo]:
        self.prediction = None
        return self._update((yield from self._operations.migrate(self.id, version)))

    def _export(self) -> Flow[dict[str, Any]]:
        return self._operations.get(session_path(self.id, "/state"))

    def _delete(self) -> Flow[None]:
        return self._operations.delete(self.id)

    def _leave(self, *, failed: bool) -> Flow[None]:
        """Deletes the session at the end of a `with` block unless it is kept.

        A session that has ended already is no error, and no error replaces the one that the block itself raised.
        """
        if self._keep:
            return
        try:
            yield from (Operations(ONCE) if failed else self._operations).delete(self.id)
        except (SessionEnded, UnknownSession):
            pass
        except (Problem, UnreachableError):
            if not failed:
                raise


def step_many(
    operations: Operations, items: Sequence[tuple[SessionOperations | str, Steps]]
) -> Flow[list[StepResult]]:  # fmt: skip
    """Steps many sessions, given as session objects, which are updated, or as ids."""
    bodies = [(session if isinstance(session, str) else session.id, inputs) for session, inputs in items]
    step_results = yield from operations.step_many(bodies)
    for (session, _), result in zip(items, step_results, strict=True):
        if isinstance(session, SessionOperations) and isinstance(result, Predictions):
            session._advance(result)  # noqa: SLF001  (this module's own)
    return step_results
