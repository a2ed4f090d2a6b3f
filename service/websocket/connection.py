"""WebSocket connections, from the handoff by HTTP until either side closes them.

Owns reading and writing, with a greenlet a connection, one clock that pings or closes silent connections, and closing.
Each turn of the event loop answers a few messages, and no more are read before the responses are sent: so neither the
time of a turn nor the unsent bytes grow with the number of messages received. `onward.service.websocket.endpoint`
defines the meaning of messages.
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
from onward.service.websocket.endpoint import SessionProtocol
from onward.service.websocket.framing import Frames

log = logging.getLogger(__name__)

READ = 65_536
PING_S = 20.0
"""A connection that is silent for this long is pinged, and closed after the same time again."""
SLOW_S = 10.0
"""A client that reads nothing for this long is sent a problem, and disconnected after the same time again."""
CLOSE_S = 5.0
"""The time within which a client must answer a close frame."""
MESSAGE_S = 120.0
"""The time limit of a message from its first byte to its last: until then the service buffers it."""
STOPS, TOO_LONG, FAILED, AGAIN, SLOW = 1001, 1008, 1011, 1013, 4008


class WebSocketConnections:
    """The open WebSockets of one worker process."""

    def __init__(self, alive: Callable[[], bool]) -> None:
        """alive: returns whether the worker continues."""
        self._alive = alive
        self._open: set[WebSocketConnection] = set()

    def serve(self, connection: Any, data: bytes, frames: Frames, conversation: SessionProtocol) -> None:
        """Serves the connection until its end. data: bytes that were already read."""
        stream = WebSocketConnection(connection, frames, conversation)
        self._open.add(stream)
        try:
            stream.run(data)
        except OSError as error:
            log.debug("a stream's client has gone: %s", error)
        finally:
            self._open.discard(stream)

    def watch(self) -> None:
        """Pings silent connections and closes dead ones; runs for ever."""
        while True:
            gevent.sleep(min(PING_S, SLOW_S, CLOSE_S, 4.0) / 4)
            now, stops = time.monotonic(), not self._alive()
            for stream in list(self._open):
                try:
                    stream.look(now, stops=stops)
                except Exception:  # the other connections must still be checked
                    log.exception("a WebSocket could not be checked")


class WebSocketConnection:
    __slots__ = (
        "_begun_at", "_busy", "_connection", "_conversation", "_frames", "_has_left", "_heard", "_left_at", "_pinged",
    )  # fmt: skip

    def __init__(self, connection: Any, frames: Frames, conversation: SessionProtocol) -> None:
        self._connection, self._frames, self._conversation = connection, frames, conversation
        self._has_left = partial(hung_up, connection.fileno())
        self._heard = time.monotonic()
        self._begun_at: float | None = None  # when the unfinished message began
        self._left_at: float | None = None  # when the close frame was sent
        self._busy = self._pinged = False

    def run(self, data: bytes) -> None:
        """Answers messages until the end. Raises OSError if the client has gone or does not read."""
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
        """The responses to the next messages received; `data` are the new bytes."""
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
            self._frames.fail(FAILED, "this is an error of the service; it is logged")
            return self._frames.to_send()
        response = self._frames.to_send() + self._frames.encoded(answers)
        if goes_on:
            return response
        self._leave(AGAIN, "connect again, and resend the messages that were not applied")
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
        """The problem and the close frame for a client that does not read."""
        detail = f"nothing was read for {SLOW_S:g} s; connect again, and resend the messages that were not answered"
        problem = self._frames.encoded([(problems.document(problems.SLOW, detail), True)])
        self._leave(SLOW, "the client reads too slowly")
        return problem + self._frames.to_send()

    def _leave(self, code: int, reason: str) -> None:
        self._left_at = time.monotonic()
        self._frames.close(code, reason)

    def look(self, now: float, *, stops: bool) -> None:
        """Pings a silent client, closes if the worker stops, and disconnects a client that does not respond.

        Does nothing while a message is being answered: the engine and the connection have time limits of their own.
        """
        if self._busy:
            return
        if now - self._heard > 2 * PING_S or (self._left_at is not None and now - self._left_at > CLOSE_S):
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # its reader sees the end
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
        if not self._busy:  # otherwise it is sent with the next response
            self._busy = True
            with contextlib.suppress(OSError):
                self._send(self._frames.to_send())
            self._busy = False
