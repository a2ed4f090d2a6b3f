"""A session as its client holds it: what it knows of it, and its calls as flows.

`Session` and `AsyncSession` are this, run by threads and by an event loop.
"""

from collections.abc import Sequence
from typing import Any

from onward.client import results
from onward.client.command_flow import Feed, Flow, Patience
from onward.client.errors import Problem, SessionEnded, UnknownSession, UnreachableError
from onward.client.generation import Choices, generate, generate_body
from onward.client.operations import Answer, Calls, forecast_body, path
from onward.client.results import Forecast, Prediction, Predictions, Step, Steps
from onward.client.session_info import SessionInfo
from onward.client.step_stream import Stream

ONCE = Patience(total_s=0.0)


class Handle:
    """One client's view of one session. `keep`: whether it lives on after a `with` block."""

    def __init__(self, calls: Calls, info: SessionInfo, *, keep: bool) -> None:
        self.id, self.model, self.version = info.session_id, info.model, info.version
        self.step_count = info.step
        """How many inputs it has consumed, as last told."""
        self.prediction = info.prediction
        """Of the next input, as last told; None where nothing has told it yet."""
        self._calls, self._keep = calls, keep

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} of {self.model} {self.version} at step {self.step_count}>"

    def _known(self, info: SessionInfo) -> SessionInfo:
        self.version, self.step_count = info.version, info.step
        return info

    def _advanced(self, told: Predictions) -> Predictions:
        self.step_count, self.prediction = told.step, told.last
        return told

    def _info(self) -> Flow[SessionInfo]:
        return self._known((yield from self._calls.info(self.id)))

    def _step(self, step: Step, at: int | None, request_id: str | None) -> Flow[Prediction]:
        return self._advanced((yield from self._calls.steps(self.id, results.step(step), at, request_id))).last

    def _steps(self, inputs: Steps, at: int | None, request_id: str | None) -> Flow[Predictions]:
        return self._advanced((yield from self._calls.steps(self.id, results.steps(inputs), at, request_id)))

    def _forecast(
        self, horizon: int, samples: int | None, quantiles: Sequence[float] | None, seed: int | None,
        future: Steps | None, inputs: Steps | None, *, paths: bool,
    ) -> Flow[Forecast]:  # fmt: skip
        body = forecast_body(horizon, samples, quantiles, seed, future, inputs, paths=paths)
        return self._calls.forecast(self.id, body)

    def _generate(self, horizon: int, choices: Choices) -> Feed:
        return generate(path(self.id, "/generate"), generate_body(horizon, choices), self._calls.patience)

    def _stream(self) -> Feed:
        return Stream(self.id, self._calls.patience).feed()

    def _streamed(self, prediction: Prediction) -> Prediction:
        self.step_count, self.prediction = prediction.step, prediction
        return prediction

    def _fork(self, session_id: str | None, ttl_s: float | None) -> Flow[SessionInfo]:
        return self._calls.fork(self.id, session_id, ttl_s)

    def _rewind(self, step: int) -> Flow[SessionInfo]:
        self.prediction = None
        return self._known((yield from self._calls.rewind(self.id, step)))

    def _migrate(self, version: int | None) -> Flow[SessionInfo]:
        self.prediction = None
        return self._known((yield from self._calls.migrate(self.id, version)))

    def _export(self) -> Flow[dict[str, Any]]:
        return self._calls.get(path(self.id, "/state"))

    def _delete(self) -> Flow[None]:
        return self._calls.delete(self.id)

    def _leave(self, *, failed: bool) -> Flow[None]:
        """At the end of a `with` block. A session that has ended is no error, and no error hides the block's own."""
        if self._keep:
            return
        try:
            yield from (Calls(ONCE) if failed else self._calls).delete(self.id)
        except (SessionEnded, UnknownSession):
            pass
        except (Problem, UnreachableError):
            if not failed:
                raise


def many(calls: Calls, items: Sequence[tuple[Handle | str, Steps]]) -> Flow[list[Answer]]:
    """Steps of sessions, told by their handles, which are brought up to date, or by their ids."""
    named = [(one if isinstance(one, str) else one.id, inputs) for one, inputs in items]
    answers = yield from calls.step_many(named)
    for (one, _), answer in zip(items, answers, strict=True):
        if isinstance(one, Handle) and isinstance(answer, Predictions):
            one._advanced(answer)  # noqa: SLF001  (this module's own)
    return answers
