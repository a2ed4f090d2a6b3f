"""Both clients through one surface: the asynchronous one is run to its answer at each call."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self, cast

from onward.client.async_client import AsyncClient, AsyncSession
from onward.client.sync_client import Client


class Blocking:
    """Calls an asynchronous client or session and waits for each result."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Any) -> None:
        self._loop, self._target = loop, target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return self._calling(value) if callable(value) else value

    def __repr__(self) -> str:
        return repr(self._target)

    def _calling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            return self._resolve(function(*map(_bare, arguments), **named))

        return call

    def _resolve(self, given: Any) -> Any:
        if isinstance(given, Awaitable):
            given = self._loop.run_until_complete(_result(given))
        if isinstance(given, AsyncIterator):
            return self._each(given)
        return Blocking(self._loop, given) if isinstance(given, AsyncSession) else given

    def _each(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        end = object()
        try:
            while (item := self._loop.run_until_complete(_result(anext(items, end)))) is not end:
                yield item
        finally:
            self._loop.run_until_complete(cast("Any", items).aclose())

    def __enter__(self) -> Self:
        self._resolve(self._target.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resolve(self._target.__aexit__(kind, error, trace))


async def _result(coming: Awaitable[Any]) -> Any:
    return await coming


def _bare(argument: Any) -> Any:
    if isinstance(argument, list):
        return [_bare(inner) for inner in argument]
    if type(argument) is tuple:
        return tuple(_bare(inner) for inner in argument)
    return argument._target if isinstance(argument, Blocking) else argument


class Twin:
    """Makes clients of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.loop = asyncio.new_event_loop()

    def __call__(self, url: str, **options: Any) -> Client:
        """A new client of this kind, for a `with` block."""
        if self.kind == "sync":
            return Client(url, **options)
        return cast("Client", Blocking(self.loop, AsyncClient(url, **options)))
