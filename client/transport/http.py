"""Flows run by httpx: a driver for threads and one for an event loop. They do as they are told, and decide nothing."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from onward.client.command_flow import Command, Emit, Feed, Flow, Lost, Reply, Request, Sleep
from onward.client.generation import Open, Read
from onward.client.transport import address

T = TypeVar("T")
URL = "http://127.0.0.1:8000"
TIMEOUT_S, PATIENCE_S = 35.0, 60.0
"""Of one try, a little more than the service gives a request by itself; and of all tries together."""
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""Whoever makes calls side by side decides how many."""
LOST = (httpx.TimeoutException, httpx.NetworkError, httpx.ProxyError, httpx.RemoteProtocolError)
"""What may be another at the next try. What this client may not send is not."""
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Driver:
    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        self.url, self.headers, self.timeout_s = address.service(url), _headers(api_key), timeout_s
        self.http = httpx.Client(
            base_url=self.url, headers=self.headers, timeout=timeout_s, limits=LIMITS, verify=_trusted(self.url)
        )

    def run(self, flow: Flow[T]) -> T:
        """What the flow returns."""
        answer: Reply | Lost | None = None
        while True:
            try:
                command = flow.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = self._do(command)

    def feed(self, feed: Feed) -> Iterator[Any]:
        """What the feed emits."""
        opened: httpx.Response | None = None
        pieces: Iterator[bytes] = iter(())
        answer: Any = None
        try:
            while True:
                try:
                    command = feed.send(answer)
                except StopIteration:
                    return
                answer, began = None, time.monotonic()
                try:
                    match command:
                        case Emit(item):
                            yield item
                        case Open(request):
                            opened = self._opened(request, opened)
                            answer = _reply(opened, began, b"" if opened.is_success else opened.read())
                            pieces = opened.iter_bytes()
                        case Read():
                            answer = next(pieces, b"")
                        case _:
                            answer = self._do(command)
                except LOST as error:
                    answer = _lost(error, began)
        finally:
            feed.close()
            if opened is not None:
                opened.close()

    def _opened(self, request: Request, before: httpx.Response | None) -> httpx.Response:
        if before is not None:
            before.close()
        return self.http.send(_built(self.http, request), stream=True)

    def _do(self, command: Command) -> Reply | Lost | None:
        if isinstance(command, Sleep):
            time.sleep(command.seconds)
            return None
        began = time.monotonic()
        try:
            answer = self.http.send(_built(self.http, command))
        except LOST as error:
            return _lost(error, began)
        return _reply(answer, began, answer.content)


class AsyncDriver:
    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        self.url, self.headers, self.timeout_s = address.service(url), _headers(api_key), timeout_s
        self.http = httpx.AsyncClient(
            base_url=self.url, headers=self.headers, timeout=timeout_s, limits=LIMITS, verify=_trusted(self.url)
        )

    async def run(self, flow: Flow[T]) -> T:
        """What the flow returns."""
        answer: Reply | Lost | None = None
        while True:
            try:
                command = flow.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = await self._do(command)

    async def feed(self, feed: Feed) -> AsyncIterator[Any]:
        """What the feed emits."""
        opened: httpx.Response | None = None
        pieces: AsyncIterator[bytes] | None = None
        answer: Any = None
        try:
            while True:
                try:
                    command = feed.send(answer)
                except StopIteration:
                    return
                answer, began = None, time.monotonic()
                try:
                    match command:
                        case Emit(item):
                            yield item
                        case Open(request):
                            opened = await self._opened(request, opened)
                            answer = _reply(opened, began, b"" if opened.is_success else await opened.aread())
                            pieces = opened.aiter_bytes()
                        case Read():
                            assert pieces is not None
                            answer = await anext(pieces, b"")
                        case _:
                            answer = await self._do(command)
                except LOST as error:
                    answer = _lost(error, began)
        finally:
            feed.close()
            if opened is not None:
                await opened.aclose()

    async def _opened(self, request: Request, before: httpx.Response | None) -> httpx.Response:
        if before is not None:
            await before.aclose()
        return await self.http.send(_built(self.http, request), stream=True)

    async def _do(self, command: Command) -> Reply | Lost | None:
        if isinstance(command, Sleep):
            await asyncio.sleep(command.seconds)
            return None
        began = time.monotonic()
        try:
            answer = await self.http.send(_built(self.http, command))
        except LOST as error:
            return _lost(error, began)
        return _reply(answer, began, answer.content)


def _trusted(url: str) -> ssl.SSLContext | bool:
    """Whose certificates count: none where there are none, since reading them all takes longer than a call."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if urlsplit(url).scheme == "http" else True


def _headers(api_key: str | None) -> dict[str, str]:
    key = address.key(api_key)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _built(http: httpx.Client | httpx.AsyncClient, request: Request) -> httpx.Request:
    media = {"Content-Type": "application/json"} if request.content is not None else {}
    return http.build_request(
        request.method,
        request.path,
        content=request.body,
        params=request.query or None,
        headers={**media, **request.headers},
    )


def _reply(answer: httpx.Response, began: float, body: bytes) -> Reply:
    """`began`: by the monotonic clock."""
    return Reply(answer.status_code, answer.headers, body, time.monotonic() - began)


def _lost(error: Exception, began: float) -> Lost:
    return Lost(error, not isinstance(error, UNSENT), time.monotonic() - began)
