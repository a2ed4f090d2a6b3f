"""The client for an event loop, twin of `sync`, call by call."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from onward.client.command_flow import Flow, Patience
from onward.client.generation import Choices
from onward.client.operations import Answer, Calls
from onward.client.results import Done, Forecast, Generated, Held, Predicted, Prediction, Predictions, Step, Steps
from onward.client.session_info import SessionInfo
from onward.client.session_operations import Handle, many
from onward.client.transport.http import PATIENCE_S, TIMEOUT_S, URL, AsyncDriver
from onward.client.transport.websocket import AsyncWire


class AsyncClient:
    """As `Client`; what gives a session may be awaited, or opened in an `async with` block."""

    def __init__(
        self, url: str = URL, api_key: str | None = None, timeout: float = TIMEOUT_S, patience: float = PATIENCE_S
    ) -> None:
        self._driver, self._calls = AsyncDriver(url, api_key, timeout), Calls(Patience(patience))

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._driver.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends its connections."""
        await self._driver.http.aclose()

    # The service

    async def ready(self) -> bool:
        """Whether the service is there and serves a model."""
        return await self._driver.run(self._calls.ready())

    async def alive(self) -> dict[str, Any]:
        """What a process of the service says of itself."""
        return await self._driver.run(self._calls.get("/healthz"))

    async def openapi(self) -> dict[str, Any]:
        """The document that describes every operation."""
        return await self._driver.run(self._calls.get("/openapi.json"))

    async def models(self) -> list[dict[str, Any]]:
        """What is served: name, versions, task, description, features, targets, live_sessions."""
        return await self._driver.run(self._calls.models())

    async def model(self, name: str, version: int | None = None) -> dict[str, Any]:
        """All of one version, the highest if None: what a step is made of, head, accuracy, provenance."""
        return await self._driver.run(self._calls.model(name, version))

    async def predict(
        self, model: str, sequences: Sequence[Steps], horizon: int = 0, *, version: int | None = None
    ) -> list[Predicted]:
        """Of sequences that stand alone, each from the initial state, and rolled `horizon` steps forward."""
        return await self._driver.run(self._calls.predict(model, sequences, horizon, version))

    async def held(self, model: str, inputs: Steps, state: str | None = None, *, version: int | None = None) -> Held:
        """Steps without a session: the state comes back, to be sent with the next ones."""
        return await self._driver.run(self._calls.held(model, inputs, state, version))

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
        keep: bool = False,
    ) -> "Opening":
        """A new session; `inputs` seed its state. A `with` block deletes it at its end unless `keep`.

        interval: the share of inputs, 0.5 to 0.99, that the intervals of its answers are to hold; None: they have none.
        """
        return Opening(
            self._driver,
            self._calls,
            self._calls.create(model, session_id, version, ttl_s, inputs, interval),
            keep=keep,
        )

    def ensure(
        self,
        model: str,
        session_id: str,
        version: int | None = None,
        ttl_s: float | None = None,
        inputs: Steps | None = None,
        *,
        interval: float | None = None,
        keep: bool = True,
    ) -> "Opening":
        """The living session under that id; a new one, as `session` makes it, where there is none.

        Raises SessionExists where a living session differs from what is named here.
        """
        return Opening(
            self._driver,
            self._calls,
            self._calls.ensure(model, session_id, version, ttl_s, inputs, interval),
            keep=keep,
        )

    async def step(
        self, model: str, session_id: str, inputs: Steps, at: int | None = None, request_id: str | None = None
    ) -> Predictions:
        """Steps of a session that need not be there: the first ones create it on the newest version of the model.

        at: the step that the session is believed to have reached; above 0, a session that is not there is an error.
        """
        return await self._driver.run(self._calls.step(model, session_id, inputs, at, request_id))

    def attach(self, session_id: str, *, keep: bool = True) -> "Opening":
        """One that is there."""
        return Opening(self._driver, self._calls, self._calls.info(session_id), keep=keep)

    def sessions(self, model: str | None = None, *, page: int = 100) -> AsyncIterator[SessionInfo]:
        """Those that live, in the order of their ids; `page` of them are asked for at once."""
        return self._driver.feed(self._calls.sessions(model, page))

    def restore(self, session_id: str, exported: Mapping[str, Any], *, keep: bool = True) -> "Opening":
        """What `Session.export` gave, under an id that is free."""
        return Opening(self._driver, self._calls, self._calls.restore(session_id, exported), keep=keep)

    async def delete_sessions(
        self, model: str | None = None, prefix: str | None = None, idle_s: float | None = None
    ) -> int:
        """Ends those of this model, whose id begins so and which were not stepped for so long; says how many."""
        return await self._driver.run(self._calls.delete_sessions(model, prefix, idle_s))

    async def step_many(self, items: Sequence[tuple[Handle | str, Steps]]) -> list[Answer]:
        """Steps of many sessions, each by itself; in the place of one that failed is its Problem, or UnreachableError.

        In one call, or several where there are more than 32 of one session, whose items are done in their order. Raises
        that by which the first call failed; that of a later one is in the place of each item not answered before it.
        """
        return await self._driver.run(many(self._calls, items))


class AsyncSession(Handle):
    """As `Session`."""

    def __init__(self, driver: AsyncDriver, calls: Calls, info: SessionInfo, *, keep: bool) -> None:
        super().__init__(calls, info, keep=keep)
        self._driver = driver

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._driver.run(self._leave(failed=error is not None))

    async def info(self) -> SessionInfo:
        """Model, version, step, times, surprise, accuracy, interval."""
        return await self._driver.run(self._info())

    async def step(self, step: Step, *, at: int | None = None, request_id: str | None = None) -> Prediction:
        """Advances by one input. at: the step that the session is believed to have reached; elsewhere StepConflict.

        request_id: of the caller's own, who may then ask again after a restart.
        """
        return await self._driver.run(self._step(step, at, request_id))

    async def steps(self, inputs: Steps, *, at: int | None = None, request_id: str | None = None) -> Predictions:
        """Advances by all of the inputs, or not at all."""
        return await self._driver.run(self._steps(inputs, at, request_id))

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
        """Rolls predictions forward; the session stays. inputs: consumed first. future: what is known in advance.

        samples, quantiles, seed, paths: draws paths, and tells their mean, these quantiles, and the paths themselves.
        """
        return await self._driver.run(self._forecast(horizon, samples, quantiles, seed, future, inputs, paths=paths))

    def generate(self, horizon: int, **choices: Unpack[Choices]) -> AsyncIterator[Generated | Done]:
        """Draws up to `horizon` steps, each as it is drawn, and Done; the session stays. choices: see `Choices`."""
        return self._driver.feed(self._generate(horizon, choices))

    async def stream(self, inputs: Steps | AsyncIterable[Step]) -> AsyncIterator[Prediction]:
        """Steps over one WebSocket, a prediction each; a task takes inputs, up to 32 ahead of their answers.

        What is refused, or cannot be sent, ends it: the inputs before it are applied, and none behind it. So does, by
        StepConflict, another's step of the session meanwhile. Raises TypeError for an iterator that cannot be awaited.
        """
        driver = self._driver
        async with AsyncWire(driver.url, driver.headers, driver.timeout_s, inputs) as wire:
            async for prediction in wire.run(self._stream()):
                yield self._streamed(prediction)

    def fork(self, session_id: str | None = None, ttl_s: float | None = None, *, keep: bool = False) -> "Opening":
        """A session of its own in the same state."""
        return Opening(self._driver, self._calls, self._fork(session_id, ttl_s), keep=keep)

    async def rewind(self, step: int) -> SessionInfo:
        """Goes back to an earlier step, as far as the service keeps them."""
        return await self._driver.run(self._rewind(step))

    async def migrate(self, version: int | None = None) -> SessionInfo:
        """Goes on with another version of its model, the highest if None; `replayed` inputs made its state anew."""
        return await self._driver.run(self._migrate(version))

    async def export(self) -> dict[str, Any]:
        """The whole session, signed, for `Client.restore`."""
        return await self._driver.run(self._export())

    async def delete(self) -> None:
        await self._driver.run(self._delete())


class Opening:
    """A session to come: `await` it, or open it in an `async with` block. However often, it is the same one."""

    def __init__(self, driver: AsyncDriver, calls: Calls, flow: Flow[SessionInfo], *, keep: bool) -> None:
        self._driver, self._calls, self._flow, self._keep = driver, calls, flow, keep
        self._opened: asyncio.Task[AsyncSession] | None = None

    async def _open(self) -> AsyncSession:
        return AsyncSession(self._driver, self._calls, await self._driver.run(self._flow), keep=self._keep)

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
