"""What a session generates, read from Server-Sent Events, as a flow: a cut connection is taken up where it ended."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import orjson

from onward.client import results
from onward.client.command_flow import AGAIN, Emit, Feed, Lost, Patience, Reply, Request, Retry, failure
from onward.client.errors import Problem
from onward.client.results import Done, Steps

MEDIA_TYPE = "text/event-stream"


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
        headers = {"accept": MEDIA_TYPE} | ({"last-event-id": last_id} if last_id else {})
        answer: Reply | Lost | None = yield Open(Request("POST", where, body, headers=headers))
        if isinstance(answer, Reply) and answer.headers.get("content-type", "").startswith(MEDIA_TYPE):
            answer, reached = yield from _told(last_id)
            if answer is None:
                return
            if reached != last_id:
                last_id, retry = reached, Retry(patience)
        assert answer is not None
        if isinstance(answer, Reply) and answer.status not in AGAIN:
            raise failure(answer)
        yield retry.pause(answer)


def _told(last_id: str) -> Generator[Any, Any, tuple[Reply | Lost | None, str]]:
    """Emits what one answer tells after that event. Returns what ended it, None at the end of the draw, and the id of
    the last event that came.
    """
    events = Events(last_id)
    while isinstance(piece := (yield Read()), bytes) and piece:
        for event in events.feed(piece):
            told = orjson.loads(event.data)
            if event.kind == "problem":
                return Reply(Problem.of(told).status, {}, event.data.encode()), last_id
            if event.kind == "done":
                yield Emit(Done(told["reason"], told.get("seed"), told["step"], told.get("text")))
                return None, event.last_id
            last_id = event.last_id
            yield Emit(results.generated(told))
    return piece if isinstance(piece, Lost) else Lost(ConnectionError("the answer broke off"), sent=True), last_id


def generate_body(horizon: int, choices: Choices) -> dict[str, Any]:
    told = results.given(**choices)
    return {"horizon": horizon} | {
        name: results.steps(value) if name in ("inputs", "future") else value for name, value in told.items()
    }
