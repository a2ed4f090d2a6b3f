"""Streams: connections that were taken over from HTTP as WebSockets, and go on until either side ends them.

Owns their reading and writing: a greenlet each, one clock for all that looks who has been silent, and their ends. A few
messages are answered in each turn of the event loop, and no more are read before their answers are sent: so neither the
time of a turn nor what is unsent grows with what has come together. What messages mean is
`onward.service.websocket.endpoint`'s.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent

from onward.service.engine.event_loop import take_loop_turn
from onward.service.http import problems
from onward.service.http.connection import hung_up
from onward.service.websocket.endpoint import Conversation
from onward.service.websocket.framing import Frames

log = logging.getLogger(__name__)

READ = 65_536
PING_S = 20.0
"""A stream that was silent for so long is asked whether it is there, and cut after as long again."""
SLOW_S = 10.0
"""A client that reads nothing for so long is told, and cut after as long again."""
CLOSE_S = 5.0
"""How long a client may take to answer a close."""
MESSAGE_S = 120.0
"""How long a message may take from its first byte to its last: until then the service holds what has come of it."""
STOPS, TOO_LONG, FAILED, AGAIN, SLOW = 1001, 1008, 1011, 1013, 4008


class Streams:
    """Those of one worker process."""

    def __init__(self, alive: Callable[[], bool]) -> None:
        """`alive` says whether the worker is to go on."""
        self._alive = alive
        self._open: set[Stream] = set()

    def serve(self, connection: Any, data: bytes, frames: Frames, conversation: Conversation) -> None:
        """Returns at the stream's end. data: what was read of it already."""
        stream = Stream(connection, frames, conversation)
        self._open.add(stream)
        try:
            stream.run(data)
        except OSError as error:
            log.debug("a stream's client has gone: %s", error)
        finally:
            self._open.discard(stream)

    def watch(self) -> None:
        """Looks after them, for ever."""
        while True:
            gevent.sleep(min(PING_S, SLOW_S, CLOSE_S, 4.0) / 4)
            now, stops = time.monotonic(), not self._alive()
            for stream in list(self._open):
                try:
                    stream.look(now, stops=stops)
                except Exception:  # the others are looked after still
                    log.exception("a stream could not be looked after")


class Stream:
    __slots__ = (
        "_begun_at", "_busy", "_connection", "_conversation", "_frames", "_has_left", "_heard", "_left_at", "_pinged",
    )  # fmt: skip

    def __init__(self, connection: Any, frames: Frames, conversation: Conversation) -> None:
        self._connection, self._frames, self._conversation = connection, frames, conversation
        self._has_left = partial(hung_up, connection.fileno())
        self._heard = time.monotonic()
        self._begun_at: float | None = None  # when a message began whose end has not come
        self._left_at: float | None = None  # when it was said that this side closes
        self._busy = self._pinged = False

    def run(self, data: bytes) -> None:
        """Raises OSError where the client has gone or does not read."""
        self._connection.settimeout(SLOW_S)
        hub = gevent.get_hub()
        watcher = hub.loop.io(self._connection.fileno(), 1)
        try:
            while not self._frames.ends:
                if not data:
                    hub.wait(watcher)
                    data = self._connection.recv(READ)
                    if not data:
                        return
                self._busy = True
                self._send(self._answered(data))
                while self._frames.more:
                    take_loop_turn()
                    self._send(self._answered(b""))
                self._busy, self._pinged, self._heard, data = False, False, time.monotonic(), b""
        finally:
            watcher.close()

    def _answered(self, data: bytes) -> bytes:
        """The responses to the next piece of what has come, `data` being new."""
        messages = self._frames.take(data)
        if not self._frames.has_begun:
            self._begun_at = None
        elif self._begun_at is None or self._frames.has_ended:
            self._begun_at = time.monotonic()
        if not messages or self._left_at is not None:
            return self._frames.to_send()
        try:
            answers, goes_on = self._conversation.answers(messages, self._has_left)
        except Exception:
            log.exception("a stream failed")
            self._frames.fail(FAILED, "this is our fault and is in the log")
            return self._frames.to_send()
        response = self._frames.to_send() + self._frames.encoded(answers)
        if goes_on:
            return response
        self._leave(AGAIN, "connect again, and send again what was not done")
        return response + self._frames.to_send()

    def _send(self, data: bytes) -> None:
        """Raises OSError."""
        unsent = memoryview(data)
        while unsent:
            try:
                unsent = unsent[self._connection.send(unsent) :]
            except TimeoutError:
                if self._left_at is not None:
                    raise
                unsent = memoryview(bytes(unsent) + self._farewell())

    def _farewell(self) -> bytes:
        """Of a client that does not read."""
        detail = f"nothing was read for {SLOW_S:g} s; connect again, and send again what was not answered"
        problem = self._frames.encoded([(problems.document(problems.SLOW, detail), True)])
        self._leave(SLOW, "the client reads too slowly")
        return problem + self._frames.to_send()

    def _leave(self, code: int, reason: str) -> None:
        self._left_at = time.monotonic()
        self._frames.close(code, reason)

    def look(self, now: float, *, stops: bool) -> None:
        """Asks a silent client whether it is there, closes where the worker stops, and cuts what does not answer.

        Not while it is being answered: the engine and the connection have clocks of their own.
        """
        if self._busy:
            return
        if now - self._heard > 2 * PING_S or (self._left_at is not None and now - self._left_at > CLOSE_S):
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # whoever reads it sees its end
        elif self._left_at is not None:
            return
        elif stops:
            self._leave(STOPS, "the service stops; connect again")
            gevent.spawn(self._send_aside)
        elif self._begun_at is not None and now - self._begun_at > MESSAGE_S:
            self._leave(TOO_LONG, f"a message must be whole within {MESSAGE_S:g} s")
            gevent.spawn(self._send_aside)
        elif now - self._heard > PING_S and not self._pinged:
            self._pinged = True
            self._frames.ping()
            gevent.spawn(self._send_aside)

    def _send_aside(self) -> None:
        if not self._busy:  # or else it is sent with the next answer
            self._busy = True
            with contextlib.suppress(OSError):
                self._send(self._frames.to_send())
            self._busy = False
