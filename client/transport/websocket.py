"""The WebSocket transports for `step_stream`, with threads and with an event loop.

Received messages and the caller's inputs arrive in one queue. A transport knows nothing of the messages' content. An
event of an earlier connection is dropped.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from websockets.asyncio import client as asynchronous
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync import client as synchronous

from onward.client.command_flow import Emit, EmittingFlow, NoResponse, Response, Sleep
from onward.client.inputs import Step, Steps, each_step, is_complete
from onward.client.step_stream import (
    Connect,
    Disconnected,
    InputsEnded,
    InputTaken,
    Received,
    Send,
    TakeInput,
    Wait,
)
from onward.client.transport.proxies import Proxy

LOG = logging.getLogger(__name__)
LOG.setLevel(logging.INFO)  # the debugging output of websockets would contain the key
NO_LIMIT = None  # on the size of a message: a model with many outputs has large responses
CONNECT_ERRORS = (OSError, EOFError, TimeoutError, InvalidHandshake)

Event = InputTaken | InputsEnded | Received | Disconnected


def _usable(proxy: Proxy | None) -> Proxy | None:
    if proxy is not None:
        proxy.require("python_socks")
    return proxy


def _failure(error: Exception, proxy: Proxy | None) -> Response | NoResponse:
    through = proxy.setting if proxy else ""
    if isinstance(error, InvalidStatus):
        response = error.response
        headers = {name.lower(): value for name, value in response.headers.raw_items()}
        return Response(response.status_code, headers, bytes(response.body), proxy=through)
    return NoResponse(error, sent=False, proxy=through)


def _address(url: str, path: str) -> str:
    return "ws" + url.removeprefix("http") + path


class WebSocketTransport:
    """A stream, with threads: `run` it inside a `with` block."""

    def __init__(
        self, url: str, headers: Mapping[str, str], timeout_s: float, proxy: Proxy | None,
        inputs: Steps | Iterable[Step],
    ) -> None:  # fmt: skip
        """Raises ValueError if the proxy cannot be used."""
        self._proxy = _usable(proxy)
        self._url, self._headers, self._timeout_s = url, headers, timeout_s
        self._inputs = iter(each_step(inputs))
        self._events: queue.SimpleQueue[tuple[Any, Event]] = queue.SimpleQueue()
        self._requested_inputs, self._closed = threading.Semaphore(0), False
        self._connection: synchronous.ClientConnection | None = None
        self._open_connections = contextlib.ExitStack()
        # a daemon, so that an input which never comes does not keep the process from ending
        self._input_thread = threading.Thread(target=self._take_inputs, name="onward stream inputs", daemon=True)

    def __enter__(self) -> Self:
        self._input_thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._requested_inputs.release()
        self._disconnect()

    def run(self, flow: EmittingFlow) -> Iterator[Any]:
        """Yields the items that the flow emits."""
        outcome: Any = None
        with contextlib.closing(flow):
            while True:
                try:
                    command = flow.send(outcome)
                except StopIteration:
                    return
                outcome = None
                match command:
                    case Emit(item):
                        yield item
                    case Sleep(seconds):
                        time.sleep(seconds)
                    case Connect(path):
                        outcome = self._connect(path)
                    case Send(text):
                        self._send(text)
                    case TakeInput():
                        self._requested_inputs.release()
                    case Wait():
                        outcome = self._next()

    def _connect(self, path: str) -> Response | NoResponse | None:
        self._disconnect()
        try:
            connecting = synchronous.connect(
                _address(self._url, path), additional_headers=self._headers, open_timeout=self._timeout_s,
                max_size=NO_LIMIT, logger=LOG, proxy=self._proxy and self._proxy.url,
            )  # fmt: skip
            self._connection = self._open_connections.enter_context(connecting)
        except CONNECT_ERRORS as error:
            return _failure(error, self._proxy)
        threading.Thread(
            target=self._receive, args=(self._connection,), name="onward stream responses", daemon=True
        ).start()
        return None

    def _send(self, text: str) -> None:
        if self._connection is not None:
            with contextlib.suppress(ConnectionClosed):  # the receiver reports it
                self._connection.send(text)

    def _disconnect(self) -> None:
        self._open_connections.close()
        self._connection = None

    def _receive(self, connection: synchronous.ClientConnection) -> None:
        try:
            while True:
                self._events.put((connection, Received(connection.recv(decode=False))))
        except ConnectionClosed as error:
            self._events.put((connection, Disconnected(error)))

    def _take_inputs(self) -> None:
        while True:
            self._requested_inputs.acquire()
            if self._closed:
                return
            try:
                self._events.put((None, InputTaken(next(self._inputs))))
            except StopIteration:
                self._events.put((None, InputsEnded()))
                return
            except Exception as error:  # noqa: BLE001  (the caller gets it)
                self._events.put((None, InputsEnded(error)))
                return

    def _next(self) -> Event:
        while True:
            connection, event = self._events.get()
            if connection is None or connection is self._connection:
                return event


class AsyncWebSocketTransport:
    """A stream, with the tasks of an event loop: `run` it inside an `async with` block."""

    def __init__(
        self, url: str, headers: Mapping[str, str], timeout_s: float, proxy: Proxy | None,
        inputs: Steps | AsyncIterable[Step],
    ) -> None:  # fmt: skip
        """Raises TypeError for an iterator that may block and cannot be awaited, and ValueError if the proxy cannot be
        used.
        """
        self._proxy = _usable(proxy)
        self._url, self._headers, self._timeout_s = url, headers, timeout_s
        self._inputs = inputs if isinstance(inputs, AsyncIterable) else _async_iterator(inputs)
        self._events: asyncio.Queue[tuple[Any, Event]] = asyncio.Queue()
        self._requested_inputs = asyncio.Semaphore(0)
        self._connection: asynchronous.ClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks.append(asyncio.create_task(self._take_inputs()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._disconnect()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run(self, flow: EmittingFlow) -> AsyncIterator[Any]:
        """Yields the items that the flow emits."""
        outcome: Any = None
        with contextlib.closing(flow):
            while True:
                try:
                    command = flow.send(outcome)
                except StopIteration:
                    return
                outcome = None
                match command:
                    case Emit(item):
                        yield item
                    case Sleep(seconds):
                        await asyncio.sleep(seconds)
                    case Connect(path):
                        outcome = await self._connect(path)
                    case Send(text):
                        await self._send(text)
                    case TakeInput():
                        self._requested_inputs.release()
                    case Wait():
                        outcome = await self._next()

    async def _connect(self, path: str) -> Response | NoResponse | None:
        await self._disconnect()
        try:
            self._connection = await asynchronous.connect(
                _address(self._url, path), additional_headers=self._headers, open_timeout=self._timeout_s,
                max_size=NO_LIMIT, logger=LOG, proxy=self._proxy and self._proxy.url,
            )  # fmt: skip
        except CONNECT_ERRORS as error:
            return _failure(error, self._proxy)
        self._tasks.append(asyncio.create_task(self._receive(self._connection)))
        return None

    async def _send(self, text: str) -> None:
        if self._connection is not None:
            with contextlib.suppress(ConnectionClosed):  # the receiver reports it
                await self._connection.send(text)

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _receive(self, connection: asynchronous.ClientConnection) -> None:
        try:
            while True:
                self._events.put_nowait((connection, Received(await connection.recv(decode=False))))
        except ConnectionClosed as error:
            self._events.put_nowait((connection, Disconnected(error)))

    async def _take_inputs(self) -> None:
        inputs = aiter(self._inputs)
        while True:
            await self._requested_inputs.acquire()
            try:
                self._events.put_nowait((None, InputTaken(await anext(inputs))))
            except StopAsyncIteration:
                self._events.put_nowait((None, InputsEnded()))
                return
            except Exception as error:  # noqa: BLE001  (the caller gets it)
                self._events.put_nowait((None, InputsEnded(error)))
                return

    async def _next(self) -> Event:
        while True:
            connection, event = await self._events.get()
            if connection is None or connection is self._connection:
                return event


def _async_iterator(inputs: Steps) -> AsyncIterator[Step]:
    if not is_complete(inputs):
        kind = type(inputs).__name__
        raise TypeError(
            f"{kind}: expected a list, an array, a data frame or an asynchronous iterator; any other would block the "
            "event loop"
        )

    rows = each_step(inputs)

    async def steps() -> AsyncIterator[Step]:
        for step in rows:
            yield step

    return steps()
