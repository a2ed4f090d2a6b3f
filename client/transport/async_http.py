"""Flows run by httpx, for an event loop. The transport executes commands and decides nothing.

The sync transport is generated from this module.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import httpx

from onward.client.command_flow import Command, Emit, EmittingFlow, Flow, NoResponse, Request, Response, Sleep
from onward.client.generation import OpenResponse, ReadChunk
from onward.client.transport import address, http

T = TypeVar("T")


class AsyncHttpTransport:
    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        self.url, self.headers, self.timeout_s = address.service(url), http.authorization(api_key), timeout_s
        self.proxy = http.proxy(self.url)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=self.headers,
            timeout=timeout_s,
            limits=http.LIMITS,
            verify=http.trusted(self.url),
            proxy=self.proxy and self.proxy.url,
            trust_env=False,  # the proxy has been chosen
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def run(self, flow: Flow[T]) -> T:
        """Returns the flow's result."""
        outcome: Response | NoResponse | None = None
        while True:
            try:
                command = flow.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome = await self._execute(command)

    async def run_emitting(self, flow: EmittingFlow) -> AsyncIterator[Any]:
        """Yields the items that the flow emits."""
        received: httpx.Response | None = None
        chunks: AsyncIterator[bytes] | None = None
        outcome: Any = None
        try:
            while True:
                try:
                    command = flow.send(outcome)
                except StopIteration:
                    return
                outcome, began = None, time.monotonic()
                try:
                    match command:
                        case Emit(item):
                            yield item
                        case OpenResponse(request):
                            received = await self._opened(request, received)
                            body = b"" if received.is_success else await received.aread()
                            outcome = http.response(received, began, body, self.proxy)
                            chunks = received.aiter_bytes()
                        case ReadChunk():
                            assert chunks is not None
                            outcome = await anext(chunks, b"")
                        case _:
                            outcome = await self._execute(command)
                except http.RETRYABLE as error:
                    outcome = http.no_response(error, began, self.proxy)
        finally:
            flow.close()
            if received is not None:
                await received.aclose()

    async def _opened(self, request: Request, earlier: httpx.Response | None) -> httpx.Response:
        if earlier is not None:
            await earlier.aclose()
        return await self._http.send(http.built(self._http, request), stream=True)

    async def _execute(self, command: Command) -> Response | NoResponse | None:
        if isinstance(command, Sleep):
            await asyncio.sleep(command.seconds)
            return None
        began = time.monotonic()
        try:
            received = await self._http.send(http.built(self._http, command))
        except http.RETRYABLE as error:
            return http.no_response(error, began, self.proxy)
        return http.response(received, began, received.content, self.proxy)
