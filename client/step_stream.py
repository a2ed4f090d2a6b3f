"""Steps over a WebSocket, as a flow: up to 32 unanswered, in order, and none lost or doubled where a connection breaks.

Each message carries a request id. The service keeps the answers of a session's last 32 requests, so after a lost
connection all that was not answered is sent again on the next one, and what was applied is answered from the record.

Each message but the first carries the step it is for, so that those behind a refused one are refused, too. Where the
session is, is known from the first answer: until then no other message is sent.
"""

from collections import deque
from typing import Any, NamedTuple

import orjson

from onward.client import results
from onward.client.command_flow import AGAIN, Emit, Feed, Lost, Patience, Reply, Retry, failure
from onward.client.errors import Problem
from onward.client.operations import REMEMBERED, new_id, path
from onward.client.results import Step


class Dial(NamedTuple):
    """Open a WebSocket, in the place of any that is open; be sent None, a Reply that refuses it, or a Lost."""

    path: str


class Tell(NamedTuple):
    """Send the text. What becomes of it is Heard, or is Broken."""

    text: str


class Ask(NamedTuple):
    """Take one more input from whoever streams; it comes as Given, or as Over."""


class Wait(NamedTuple):
    """Be sent the next of Given, Over, Heard and Broken."""


class Given(NamedTuple):
    step: Any


class Over(NamedTuple):
    """There are no more inputs, or they ended with an error."""

    error: Exception | None = None


class Heard(NamedTuple):
    text: bytes


class Broken(NamedTuple):
    """The connection has ended: it broke, the service stops (1001), or this client read too slowly (4008)."""

    error: Exception


class Stream:
    """One run over the inputs that a driver is given. `feed` emits the Prediction after each of them, in order.

    It connects when there is something to send, so a service may end a connection on which nothing goes on.
    """

    def __init__(self, session_id: str, patience: Patience) -> None:
        self._path, self._patience, self._retry = path(session_id, "/stream"), patience, Retry(patience)
        self._unanswered: deque[tuple[str, str]] = deque()  # request ids and messages, the oldest first
        self._asked = self._over = self._connected = False
        self._step: int | None = None  # where the session is once all is answered
        self._error: Exception | None = None

    def feed(self) -> Feed:
        """Raises Problem, UnreachableError, and, once all before it is answered, what the inputs ended with: also with
        one that cannot be sent, by TypeError or ValueError.
        """
        while not self._over or self._unanswered:
            if self._unanswered and not self._connected:
                yield from self._connect()
            elif not self._asked and not self._over and len(self._unanswered) < self._most:
                self._asked = True
                yield Ask()
            else:
                yield from self._take((yield Wait()))
        if self._error is not None:
            raise self._error

    @property
    def _most(self) -> int:
        return 1 if self._step is None else REMEMBERED

    def _connect(self) -> Feed:
        failed: Reply | Lost | None = yield Dial(self._path)
        if failed is None:
            self._connected = True
            for _, message in self._unanswered:
                yield Tell(message)
        elif isinstance(failed, Reply) and failed.status not in AGAIN:
            raise failure(failed)
        else:
            yield self._retry.pause(failed)

    def _take(self, event: Given | Over | Heard | Broken) -> Feed:
        match event:
            case Given(step):
                self._asked = False
                try:
                    message = self._message(step)
                except (TypeError, ValueError) as error:
                    self._over, self._error = True, error
                else:
                    if self._connected:
                        yield Tell(message)
            case Over(error):
                self._over, self._error = True, error
            case Heard(text):
                yield from self._heard(text)
            case Broken(error):
                self._connected = False
                if self._unanswered:
                    yield self._retry.pause(Lost(error, sent=True))

    def _message(self, step: Step) -> str:
        """From now on among what is unanswered. Raises TypeError and ValueError where there is no JSON for the step."""
        request_id = new_id()
        body = {"inputs": results.step(step), "request_id": request_id} | results.given(step=self._step)
        message = orjson.dumps(body).decode()
        self._unanswered.append((request_id, message))
        if self._step is not None:
            self._step += 1
        return message

    def _heard(self, text: bytes) -> Feed:
        told = orjson.loads(text)
        if "status" not in told:
            if not self._unanswered or told.get("request_id") != self._unanswered[0][0]:
                raise ValueError(f"request {told.get('request_id')!r} was answered out of turn")
            self._unanswered.popleft()
            self._retry = Retry(self._patience)
            self._step = told["step"] if self._step is None else self._step
            yield Emit(results.predictions(told).last)
            return
        problem = Problem.of(told)
        if problem.status not in AGAIN:
            raise problem
        self._connected = False  # this one and all behind it again, on another connection
        yield self._retry.pause(Reply(problem.status, {}, text))
