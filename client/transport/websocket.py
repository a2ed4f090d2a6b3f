"""WebSockets for `streams`: what is heard and what is to be sent come together in one queue, by threads or tasks.

Knows nothing of what the messages say. Whatever an earlier connection still brings is dropped.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from websockets.asyncio import client as asynchronous
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync import client as synchronous

from onward.client.command_flow import Emit, Feed, Lost, Reply, Sleep
from onward.client.results import Step, Steps
from onward.client.step_stream import Ask, Broken, Dial, Given, Heard, Over, Tell, Wait

LOG = logging.getLogger(__name__)
LOG.setLevel(logging.INFO)  # websockets' own debugging output would have the key
NO_LIMIT = None  # of a message's size: a model of many outputs says much
REFUSED = (OSError, EOFError, TimeoutError, InvalidHandshake)

Event = Given | Over | Heard | Broken


def _failure(error: Exception) -> Reply | Lost:
    if isinstance(error, InvalidStatus):
        answer = error.response
        return Reply(
            answer.status_code, {name.lower(): told for name, told in answer.headers.raw_items()}, bytes(answer.body)
        )
    return Lost(error, sent=False)


def _address(url: str, path: str) -> str:
    return "ws" + url.removeprefix("http") + path


class SyncWire:
    """One stream: `run` it inside a `with` block."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float, inputs: Iterable[Step]) -> None:
        self._url, self._headers, self._timeout_s = url, headers, timeout_s
        self._inputs = iter(inputs)
        self._events: queue.SimpleQueue[tuple[Any, Event]] = queue.SimpleQueue()
        self._wanted, self._over = threading.Semaphore(0), False
        self._open: synchronous.ClientConnection | None = None
        self._held = contextlib.ExitStack()
        # an input that never comes holds up nobody
        self._giver = threading.Thread(target=self._give, name="onward stream inputs", daemon=True)

    def __enter__(self) -> Self:
        self._giver.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._wanted.release()
        self._hang_up()

    def run(self, feed: Feed) -> Iterator[Any]:
        """What the feed emits."""
        answer: Any = None
        with contextlib.closing(feed):
            while True:
                try:
                    command = feed.send(answer)
                except StopIteration:
                    return
                answer = None
                match command:
                    case Emit(item):
                        yield item
                    case Sleep(seconds):
                        time.sleep(seconds)
                    case Dial(path):
                        answer = self._dial(path)
                    case Tell(text):
                        self._tell(text)
                    case Ask():
                        self._wanted.release()
                    case Wait():
                        answer = self._next()

    def _dial(self, path: str) -> Reply | Lost | None:
        self._hang_up()
        try:
            dialled = synchronous.connect(
                _address(self._url, path), additional_headers=self._headers, open_timeout=self._timeout_s,
                max_size=NO_LIMIT, logger=LOG,
            )  # fmt: skip
            self._open = self._held.enter_context(dialled)
        except REFUSED as error:
            return _failure(error)
        threading.Thread(target=self._hear, args=(self._open,), name="onward stream answers", daemon=True).start()
        return None

    def _tell(self, text: str) -> None:
        if self._open is not None:
            with contextlib.suppress(ConnectionClosed):  # which is heard, too
                self._open.send(text)

    def _hang_up(self) -> None:
        self._held.close()
        self._open = None

    def _hear(self, connection: synchronous.ClientConnection) -> None:
        try:
            while True:
                self._events.put((connection, Heard(connection.recv(decode=False))))
        except ConnectionClosed as error:
            self._events.put((connection, Broken(error)))

    def _give(self) -> None:
        while True:
            self._wanted.acquire()
            if self._over:
                return
            try:
                self._events.put((None, Given(next(self._inputs))))
            except StopIteration:
                self._events.put((None, Over()))
                return
            except Exception as error:  # noqa: BLE001  (whoever iterates is told)
                self._events.put((None, Over(error)))
                return

    def _next(self) -> Event:
        while True:
            connection, event = self._events.get()
            if connection is None or connection is self._open:
                return event


class AsyncWire:
    """The same with tasks."""

    def __init__(
        self, url: str, headers: Mapping[str, str], timeout_s: float, inputs: Steps | AsyncIterable[Step]
    ) -> None:
        """Raises TypeError for inputs that may have to be waited for, and cannot be awaited."""
        self._url, self._headers, self._timeout_s = url, headers, timeout_s
        self._inputs = inputs if isinstance(inputs, AsyncIterable) else _each(inputs)
        self._events: asyncio.Queue[tuple[Any, Event]] = asyncio.Queue()
        self._wanted = asyncio.Semaphore(0)
        self._open: asynchronous.ClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks.append(asyncio.create_task(self._give()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run(self, feed: Feed) -> AsyncIterator[Any]:
        """What the feed emits."""
        answer: Any = None
        with contextlib.closing(feed):
            while True:
                try:
                    command = feed.send(answer)
                except StopIteration:
                    return
                answer = None
                match command:
                    case Emit(item):
                        yield item
                    case Sleep(seconds):
                        await asyncio.sleep(seconds)
                    case Dial(path):
                        answer = await self._dial(path)
                    case Tell(text):
                        await self._tell(text)
                    case Ask():
                        self._wanted.release()
                    case Wait():
                        answer = await self._next()

    async def _dial(self, path: str) -> Reply | Lost | None:
        await self._hang_up()
        try:
            self._open = await asynchronous.connect(
                _address(self._url, path), additional_headers=self._headers, open_timeout=self._timeout_s,
                max_size=NO_LIMIT, logger=LOG,
            )  # fmt: skip
        except REFUSED as error:
            return _failure(error)
        self._tasks.append(asyncio.create_task(self._hear(self._open)))
        return None

    async def _tell(self, text: str) -> None:
        if self._open is not None:
            with contextlib.suppress(ConnectionClosed):  # which is heard, too
                await self._open.send(text)

    async def _hang_up(self) -> None:
        if self._open is not None:
            await self._open.close()
            self._open = None

    async def _hear(self, connection: asynchronous.ClientConnection) -> None:
        try:
            while True:
                self._events.put_nowait((connection, Heard(await connection.recv(decode=False))))
        except ConnectionClosed as error:
            self._events.put_nowait((connection, Broken(error)))

    async def _give(self) -> None:
        inputs = aiter(self._inputs)
        while True:
            await self._wanted.acquire()
            try:
                self._events.put_nowait((None, Given(await anext(inputs))))
            except StopAsyncIteration:
                self._events.put_nowait((None, Over()))
                return
            except Exception as error:  # noqa: BLE001  (whoever iterates is told)
                self._events.put_nowait((None, Over(error)))
                return

    async def _next(self) -> Event:
        while True:
            connection, event = await self._events.get()
            if connection is None or connection is self._open:
                return event


def _each(inputs: Steps) -> AsyncIterator[Step]:
    if not isinstance(inputs, (Sequence, np.ndarray)):
        kind = type(inputs).__name__
        raise TypeError(
            f"{kind}: give a list, an array or an asynchronous iterator: the event loop cannot wait for others"
        )

    async def each() -> AsyncIterator[Step]:
        for one in inputs:
            yield one

    return each()
