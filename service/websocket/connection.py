"""WebSocket connections, from the handoff by HTTP until either side closes them.

Owns reading and writing, one clock that pings or closes silent connections, and closing. A step that comes alone is
answered from the event loop, all else by the connection's greenlet (`onward.service.http.loop_connection`). Each turn
of the loop answers a few messages, and no more are read before the responses are sent: so neither the time of a turn
nor the unsent bytes grow with the number of messages received. `onward.service.websocket.endpoint` defines the meaning
of messages.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gevent

from onward.service.engine.batching.batch_row import BatchRow, StepResult
from onward.service.engine.event_loop import take_loop_turn
from onward.service.http import problems
from onward.service.http.loop_connection import LoopConnection, end
from onward.service.http.step_encoding import is_long
from onward.service.websocket.endpoint import SessionProtocol
from onward.service.websocket.framing import Frames, Message

log = logging.getLogger(__name__)

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
        connection.settimeout(SLOW_S)
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


class WebSocketConnection(LoopConnection[None]):
    """A connection of steps, one at a time.

    What its greenlet does, because it may wait: messages that come together, in parts, or in a form that the schemas
    read, a session whose model is not known yet, a long answer, control frames, closing, and a client that reads
    slowly.
    """

    __slots__ = ("_begun_at", "_conversation", "_data", "_frames", "_is_text", "_left_at", "_pinged")

    def __init__(self, connection: Any, frames: Frames, conversation: SessionProtocol) -> None:
        super().__init__(connection)
        self._frames, self._conversation = frames, conversation
        self._data, self._is_text = b"", False  # of the message whose step was submitted
        self._begun_at: float | None = None  # when the unfinished message began
        self._left_at: float | None = None  # when the close frame was sent
        self._pinged = False

    def _take(self, data: bytes) -> None:
        self._pinged = False
        message = self._frames.single(data)
        if message is not None and self._conversation.submit(message, self):
            self._waits_since, self._data, self._is_text = None, data, message[1]
        else:
            self._give(partial(self._answer, data))

    def settled(self, row: BatchRow) -> None:
        if self._is_over:
            return
        if isinstance(row.outcome, StepResult) and is_long(row.outcome):
            self._give(partial(self._answer_later, row))
        elif (response := self._settled(row)) is None:
            self._give(partial(self._answer, self._data))
        elif self._send(response):
            self._go_on()

    def _settled(self, row: BatchRow) -> bytes | None:
        """The response to the submitted message; None if it must be answered anew."""
        try:
            answered = self._conversation.answer_to(row, is_text=self._is_text)
        except Exception:
            log.exception("a stream failed")
            return self._failed()
        return None if answered is None else self._response(answered[:1], goes_on=answered[1])

    def _go_on(self) -> None:
        self._waits_since = time.monotonic()
        if self._frames.ends:
            self._give(end)
        else:
            self._watch()

    # The work of the greenlet

    def _answer(self, data: bytes) -> None:
        """Answers the messages that these bytes bring."""
        self._deliver(self._answered(data))
        while self._frames.more:
            take_loop_turn()
            self._deliver(self._answered(b""))

    def _answer_later(self, row: BatchRow) -> None:
        """Answers with a result whose encoding takes turns of the event loop."""
        response = self._settled(row)
        assert response is not None
        self._deliver(response)

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
            answers, goes_on = self._conversation.answers(messages, self.has_left)
        except Exception:
            log.exception("a stream failed")
            return self._failed()
        return self._response(answers, goes_on=goes_on)

    def _failed(self) -> bytes:
        """Ends the stream; returns the frames that say so."""
        self._frames.fail(FAILED, "this is an error of the service; it is logged")
        return self._frames.to_send()

    def _response(self, answers: Sequence[Message], *, goes_on: bool) -> bytes:
        response = self._frames.to_send() + self._frames.encoded(answers)
        if goes_on:
            return response
        self._leave(AGAIN, "connect again, and resend the messages that were not applied")
        return response + self._frames.to_send()

    def _deliver(self, answer: bytes) -> None:
        unsent = memoryview(answer)
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
        if self._waits_since is None:
            return
        is_silent = now - self._waits_since > PING_S
        if (is_silent and self._pinged) or (self._left_at is not None and now - self._left_at > CLOSE_S):
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # the watcher sees the end
        elif self._left_at is not None:
            return
        elif stops:
            self._leave(STOPS, "the service stops; connect again")
            self._give(self._deliver_frames)
        elif self._begun_at is not None and now - self._begun_at > MESSAGE_S:
            self._leave(TOO_LONG, f"a message must be whole within {MESSAGE_S:g} s")
            self._give(self._deliver_frames)
        elif is_silent:
            self._pinged = True
            self._frames.ping()
            self._give(self._deliver_frames)

    def _deliver_frames(self) -> None:
        self._deliver(self._frames.to_send())
