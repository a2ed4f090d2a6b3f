"""What a session generates, read from Server-Sent Events, as a flow: a cut connection is taken up where it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import orjson

from client import values
from client.errors import Problem
from client.flow import AGAIN, Emit, Feed, Lost, Patience, Reply, Request, Retry, content
from client.values import Done, Steps


class Choices(TypedDict, total=False):
    """What may be said of how to generate; what is left out, or None, has the service's default."""

    inputs: Steps | None
    """Consumed first."""
    future: Steps | None
    """What is known in advance of each step."""
    seed: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    stop: Sequence[str] | None
    """Texts at which it ends."""
    logprobs: int | None
    """How many of the likeliest tokens to tell with each."""


class Open(NamedTuple):
    """Send the request and be sent a Reply as soon as its head is there (its body only where it failed), or a Lost."""

    request: Request


class Read(NamedTuple):
    """Be sent the next bytes of what was opened, none at its end, or a Lost."""


class Event(NamedTuple):
    kind: str
    data: str
    last_id: str


@dataclass(slots=True)
class Events:
    """Bytes to events, by the rules of https://html.spec.whatwg.org/multipage/server-sent-events.html."""

    last_id: str = ""
    _rest: bytes = b""
    _kind: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, data: bytes) -> list[Event]:
        """The events that end in these bytes."""
        found = []
        *lines, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            name, _, value = line.decode().partition(":")
            value = value.removeprefix(" ")
            if not line:
                if self._data:
                    found.append(Event(self._kind or "message", "\n".join(self._data), self.last_id))
                self._kind, self._data = "", []
            elif name == "event":
                self._kind = value
            elif name == "data":
                self._data.append(value)
            elif name == "id":
                self.last_id = value
        return found


def generate(where: str, body: Mapping[str, Any], patience: Patience) -> Feed:
    """Emits Generated and, at the end, Done. Raises Problem, UnreachableError."""
    last_id, retry = "", Retry(patience)
    while True:
        headers = {"accept": "text/event-stream"} | ({"last-event-id": last_id} if last_id else {})
        answer: Reply | Lost = yield Open(Request("POST", where, body, headers=headers))
        if isinstance(answer, Reply) and answer.status not in AGAIN:
            content(Reply(answer.status, answer.headers, b"" if answer.status == 200 else answer.body))
            events = Events(last_id)
            while isinstance(piece := (yield Read()), bytes) and piece:
                for event in events.feed(piece):
                    told = orjson.loads(event.data)
                    if event.kind == "problem":
                        raise Problem.of(told)
                    if event.kind == "done":
                        yield Emit(Done(told["reason"], told.get("seed"), told["step"], told.get("text")))
                        return
                    last_id, retry = event.last_id, Retry(patience)
                    yield Emit(values.generated(told))
            answer = piece if isinstance(piece, Lost) else Lost(ConnectionError("the answer broke off"), sent=True)
        yield retry.pause(answer)


def generate_body(horizon: int, choices: Choices) -> dict[str, Any]:
    told = values.given(**choices)
    return {"horizon": horizon} | {
        name: values.steps(value) if name in ("inputs", "future") else value for name, value in told.items()
    }
