"""The client for an event loop. The sync client is generated from this module."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from onward.client.command_flow import Flow, RetryPolicy
from onward.client.generation import GenerationOptions
from onward.client.inputs import Step, Steps
from onward.client.operations import Operations, StepResult
from onward.client.results import (
    Done,
    Forecast,
    Generated,
    Prediction,
    Predictions,
    SequencePrediction,
    SessionInfo,
    StatelessStep,
)
from onward.client.session_operations import SessionOperations, step_many
from onward.client.transport.async_http import AsyncHttpTransport
from onward.client.transport.http import RETRY_DEADLINE_S, TIMEOUT_S, URL
from onward.client.transport.websocket import AsyncWebSocketTransport
from onward.model.scoring.anomaly import AnomalyKind


class AsyncClient:
    """A client, for an event loop, of the service at `url`.

    api_key: sent as `Authorization: Bearer`. timeout: seconds that one try may take. patience: seconds that a call may
    take with all its retries. listed_only: rankings have listed categories only, k - 1 of a model that ranks k and
    accepts others. Raises ValueError for a URL or a key that is not valid. Its methods raise a Problem
    (`onward.errors`) if the service refuses or an input cannot be sent, and UnreachableError if it does not respond.
    """

    def __init__(
        self,
        url: str = URL,
        api_key: str | None = None,
        timeout: float = TIMEOUT_S,
        patience: float = RETRY_DEADLINE_S,
        *,
        listed_only: bool = False,
    ) -> None:
        self._transport = AsyncHttpTransport(url, api_key, timeout)
        self._operations = Operations(RetryPolicy(patience), listed_only=listed_only)

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._transport.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the client's connections."""
        await self._transport.close()

    # The service

    async def ready(self) -> bool:
        """Returns True if the service responds and serves a model."""
        return await self._transport.run(self._operations.ready())

    async def alive(self) -> dict[str, Any]:
        """Returns the liveness report of one of the service's processes."""
        return await self._transport.run(self._operations.get("/healthz"))

    async def openapi(self) -> dict[str, Any]:
        """Returns the OpenAPI document, which describes every operation."""
        return await self._transport.run(self._operations.get("/openapi.json"))

    async def models(self) -> list[dict[str, Any]]:
        """Returns the served models: name, versions, task, description, features, targets, live_sessions."""
        return await self._transport.run(self._operations.models())

    async def model(self, name: str, version: int | None = None) -> dict[str, Any]:
        """Returns the description of one version, the highest if None: inputs, head, accuracy, provenance."""
        return await self._transport.run(self._operations.model(name, version))

    async def predict(
        self, model: str, sequences: Sequence[Steps], horizon: int = 0, *, version: int | None = None
    ) -> list[SequencePrediction]:
        """Returns predictions of sequences without a session, each from the initial state.

        horizon: the number of steps that each is rolled forward past its last input.
        """
        return await self._transport.run(self._operations.predict(model, sequences, horizon, version))

    async def held(
        self, model: str, inputs: Steps, state: str | None = None, *, version: int | None = None
    ) -> StatelessStep:
        """Returns predictions of steps without a session, and the state, which the caller sends with its next steps."""
        return await self._transport.run(self._operations.stateless_step(model, inputs, state, version))

    # Sessions

    def session(
        self,
        model: str,
        session_id: str | None = None,
        version: int | None = None,
        ttl_s: float | None = None,
        inputs: Steps | None = None,
        *,
        interval: float | None = None,
        anomaly: AnomalyKind | None = None,
        keep: bool = False,
    ) -> "PendingSession":
        """Returns a new session; `inputs` seed its state. A `with` block deletes it at its end unless `keep`.

        interval: the nominal coverage, 0.5 to 0.99, of its prediction intervals; None: it has none. anomaly: what the
        anomaly of its steps is: "run" (the default of a service), "tail" or "rank".
        """
        flow = self._operations.create(model, session_id, version, ttl_s, inputs, interval, anomaly)
        return _opened(self._transport, self._operations, flow, keep=keep)

    def ensure(
        self,
        model: str,
        session_id: str,
        version: int | None = None,
        ttl_s: float | None = None,
        inputs: Steps | None = None,
        *,
        interval: float | None = None,
        anomaly: AnomalyKind | None = None,
        keep: bool = True,
    ) -> "PendingSession":
        """Returns the living session with this id; creates it, as `session` does, if it does not exist.

        Raises SessionExists if a living session differs from the arguments.
        """
        flow = self._operations.ensure(model, session_id, version, ttl_s, inputs, interval, anomaly)
        return _opened(self._transport, self._operations, flow, keep=keep)

    async def step(
        self, model: str, session_id: str, inputs: Steps, at: int | None = None, request_id: str | None = None
    ) -> Predictions:
        """Steps a session by its id; creates it on the newest version of the model if it does not exist.

        at: the step that the session is believed to have reached; above 0, a session that does not exist is an error.
        """
        return await self._transport.run(self._operations.step(model, session_id, inputs, at, request_id))

    def attach(self, session_id: str, *, keep: bool = True) -> "PendingSession":
        """Returns a session that exists."""
        return _opened(self._transport, self._operations, self._operations.info(session_id), keep=keep)

    def sessions(self, model: str | None = None, *, page: int = 100) -> AsyncIterator[SessionInfo]:
        """Yields the living sessions in the order of their ids; requests `page` of them at once."""
        return self._transport.run_emitting(self._operations.sessions(model, page))

    def restore(self, session_id: str, exported: Mapping[str, Any], *, keep: bool = True) -> "PendingSession":
        """Returns a session with the exported state of `Session.export`, under an id that is free."""
        return _opened(self._transport, self._operations, self._operations.restore(session_id, exported), keep=keep)

    async def delete_sessions(
        self, model: str | None = None, prefix: str | None = None, idle_s: float | None = None
    ) -> int:
        """Deletes the sessions of the model whose ids have the prefix and which were idle for so long.

        Returns the number of deleted sessions.
        """
        return await self._transport.run(self._operations.delete_sessions(model, prefix, idle_s))

    async def step_many(self, items: Sequence[tuple[SessionOperations | str, Steps]]) -> list[StepResult]:
        """Steps many sessions, each by itself; the result of an item that failed is its Problem or UnreachableError.

        One request carries all items, unless a session has more than 32, which are applied in their order. Raises the
        failure of the first request; the failure of a later one is the result of each item that was not answered yet.
        """
        return await self._transport.run(step_many(self._operations, items))


class AsyncSession(SessionOperations):
    """A session. Steps carry request ids and are sent until they are answered: none is lost or applied twice."""

    def __init__(self, transport: AsyncHttpTransport, operations: Operations, info: SessionInfo, *, keep: bool) -> None:
        super().__init__(operations, info, keep=keep)
        self._transport = transport

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.run(self._leave(failed=error is not None))

    async def info(self) -> SessionInfo:
        """Returns the session's model, version, step, times, surprise, accuracy and interval."""
        return await self._transport.run(self._info())

    async def step(self, step: Step, *, at: int | None = None, request_id: str | None = None) -> Prediction:
        """Advances the session by one input.

        at: the step that the session is believed to have reached; raises StepConflict if it is at another. request_id:
        an id of the caller's own, with which it may repeat the request after a restart.
        """
        return await self._transport.run(self._step(step, at, request_id))

    async def steps(self, inputs: Steps, *, at: int | None = None, request_id: str | None = None) -> Predictions:
        """Advances the session by all of the inputs, or by none. at, request_id: as for `step`."""
        return await self._transport.run(self._steps(inputs, at, request_id))

    async def forecast(
        self,
        horizon: int,
        samples: int | None = None,
        quantiles: Sequence[float] | None = None,
        seed: int | None = None,
        future: Steps | None = None,
        inputs: Steps | None = None,
        *,
        paths: bool = False,
    ) -> Forecast:
        """Rolls predictions forward; the session does not move.

        inputs: consumed first. future: the future covariates, as each of the horizon - 1 steps that are fed back would
        have them: of an input with `lead` 1, which a step has for the next step, the values from the second step ahead
        on. samples, quantiles, seed, paths: draws sample paths, and returns their mean, these quantiles and, if
        `paths`, the paths themselves.
        """
        return await self._transport.run(self._forecast(horizon, samples, quantiles, seed, future, inputs, paths=paths))

    def generate(self, horizon: int, **options: Unpack[GenerationOptions]) -> AsyncIterator[Generated | Done]:
        """Yields up to `horizon` generated steps, each as it is drawn, and Done; the session does not move."""
        return self._transport.run_emitting(self._generate(horizon, options))

    async def stream(self, inputs: Steps | AsyncIterable[Step]) -> AsyncIterator[Prediction]:
        """Steps over one WebSocket and yields a prediction for each; takes inputs up to 32 ahead of their predictions.

        An input that is refused, or cannot be sent, ends the stream: the inputs before it are applied, and none behind
        it. So does, with StepConflict, a step of the same session by another caller.
        Raises TypeError for an iterator that cannot be awaited.
        """
        http = self._transport
        async with AsyncWebSocketTransport(http.url, http.headers, http.timeout_s, http.proxy, inputs) as transport:
            async for prediction in transport.run(self._stream()):
                yield self._streamed(prediction)

    def fork(
        self, session_id: str | None = None, ttl_s: float | None = None, *, keep: bool = False
    ) -> "PendingSession":
        """Returns a new session in the same state."""
        return _opened(self._transport, self._operations, self._fork(session_id, ttl_s), keep=keep)

    async def rewind(self, step: int) -> SessionInfo:
        """Returns the session to an earlier step, as far back as the service keeps its history."""
        return await self._transport.run(self._rewind(step))

    async def migrate(self, version: int | None = None) -> SessionInfo:
        """Moves the session to another version of its model, the highest if None.

        The state is computed anew from `replayed` inputs.
        """
        return await self._transport.run(self._migrate(version))

    async def export(self) -> dict[str, Any]:
        """Returns the whole session, signed, for `Client.restore`."""
        return await self._transport.run(self._export())

    async def delete(self) -> None:
        """Deletes the session."""
        await self._transport.run(self._delete())


def _opened(
    transport: AsyncHttpTransport, operations: Operations, flow: Flow[SessionInfo], *, keep: bool
) -> "PendingSession":
    return PendingSession(transport, operations, flow, keep=keep)


class PendingSession:
    """A session that is being opened: `await` it, or enter it with `async with`. It is opened once, however often."""

    def __init__(
        self, transport: AsyncHttpTransport, operations: Operations, flow: Flow[SessionInfo], *, keep: bool
    ) -> None:
        self._transport, self._operations, self._flow, self._keep = transport, operations, flow, keep
        self._opened: asyncio.Task[AsyncSession] | None = None

    async def _open(self) -> AsyncSession:
        info = await self._transport.run(self._flow)
        return AsyncSession(self._transport, self._operations, info, keep=self._keep)

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        if self._opened is None:
            self._opened = asyncio.get_running_loop().create_task(self._open())
        return self._opened.__await__()

    async def __aenter__(self) -> AsyncSession:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (await self).__aexit__(kind, error, trace)
