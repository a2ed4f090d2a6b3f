"""Streams: connections that were taken over from HTTP as WebSockets, and go on until either side ends them.

Owns their reading and writing: a greenlet each, one clock for all that looks who has been silent, and their ends. What
is unsent is bounded by what was read in one go, since nothing is read while it waits. What messages mean is
`service.http.stream`'s.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gevent
from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol

from service.http import problems
from service.http.connection import hung_up
from service.http.stream import Conversation, Message

log = logging.getLogger(__name__)

READ = 65_536
PING_S = 20.0
"""A stream that was silent for so long is asked whether it is there, and cut after as long again."""
SLOW_S = 10.0
"""A client that reads nothing for so long is told, and cut after as long again."""
CLOSE_S = 5.0
"""How long a client may take to answer a close."""
STOPS, FAILED, SLOW = 1001, 1011, 4008


class Streams:
    """Those of one worker process."""

    def __init__(self, alive: Callable[[], bool]) -> None:
        """`alive` says whether the worker is to go on."""
        self._alive = alive
        self._open: set[Stream] = set()

    def serve(self, connection: Any, data: bytes, protocol: ServerProtocol, conversation: Conversation) -> None:
        """Returns at the stream's end. data: what was read of it already."""
        stream = Stream(connection, protocol, conversation)
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
                stream.look(now, stops=stops)


class Stream:
    __slots__ = ("_busy", "_connection", "_conversation", "_heard", "_left_at", "_parts", "_pinged", "_protocol")

    def __init__(self, connection: Any, protocol: ServerProtocol, conversation: Conversation) -> None:
        self._connection, self._protocol, self._conversation = connection, protocol, conversation
        self._heard = time.monotonic()
        self._left_at: float | None = None  # when it was said that this side closes
        self._busy = self._pinged = False
        self._parts: list[Frame] = []  # of a message whose end has not come

    def run(self, data: bytes) -> None:
        """Raises OSError where the client has gone or does not read."""
        self._connection.settimeout(SLOW_S)
        watcher = gevent.get_hub().loop.io(self._connection.fileno(), 1)
        try:
            goes_on = True
            while goes_on:
                if not data:
                    gevent.get_hub().wait(watcher)
                    data = self._connection.recv(READ)
                    if not data:
                        return
                goes_on, data = self._take(data), b""
        finally:
            watcher.close()

    def _take(self, data: bytes) -> bool:
        """Answers what was read; whether the stream goes on."""
        self._busy = True
        try:
            self._protocol.receive_data(data)
            messages = self._messages(self._protocol.events_received())
            if messages and self._left_at is None:
                try:
                    answers = self._conversation.answers(messages, partial(hung_up, self._connection.fileno()))
                except Exception:
                    log.exception("a stream failed")
                    self._protocol.fail(FAILED, "this is our fault and is in the log")
                else:
                    self._say(answers)
            return self._send()
        finally:
            self._busy, self._pinged, self._heard = False, False, time.monotonic()

    def _messages(self, events: Sequence[Any]) -> list[Message]:
        whole = []
        for frame in events:
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._parts.append(frame)
                if frame.fin:
                    data = b"".join(part.data for part in self._parts)
                    whole.append(Message(data, self._parts[0].opcode is Opcode.TEXT))
                    self._parts.clear()
        return whole

    def _say(self, answers: Sequence[Message]) -> None:
        if self._protocol.state is State.OPEN:  # or else the client has closed without waiting for them
            for answer in answers:
                (self._protocol.send_text if answer.is_text else self._protocol.send_binary)(answer.data)

    def _send(self) -> bool:
        """Sends what there is; whether the stream goes on. Raises OSError."""
        writes = self._protocol.data_to_send()
        left = memoryview(b"".join(writes))
        while left:
            try:
                left = left[self._connection.send(left) :]
            except TimeoutError:
                if self._left_at is not None:
                    raise
                detail = f"nothing was read for {SLOW_S:g} s; connect again, and send again what was not answered"
                self._say([Message(problems.document(problems.SLOW, detail), is_text=True)])
                self._leave(SLOW, "the client reads too slowly")
                left = memoryview(bytes(left) + b"".join(self._protocol.data_to_send()))
        return SEND_EOF not in writes

    def _leave(self, code: int, reason: str) -> None:
        self._left_at = time.monotonic()
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)

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
        elif now - self._heard > PING_S and not self._pinged:
            self._pinged = True
            self._protocol.send_ping(b"")
            gevent.spawn(self._send_aside)

    def _send_aside(self) -> None:
        if not self._busy:
            self._busy = True
            try:
                with contextlib.suppress(OSError):
                    self._send()
            finally:
                self._busy = False
