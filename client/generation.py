"""A session's generation, read from Server-Sent Events, as a flow: after a broken connection it goes on from the last
event.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import orjson

from onward.client import results
from onward.client.command_flow import Emit, EmittingFlow, NoResponse, Request, Response, Retry, RetryPolicy, failure
from onward.client.inputs import Steps, json_steps
from onward.client.results import Done
from onward.errors import RETRYABLE_STATUSES, Problem

MEDIA_TYPE = "text/event-stream"


class GenerationOptions(TypedDict, total=False):
    """The options of a generation. An option that is left out, or None, has the service's default."""

    inputs: Steps | None
    """Steps consumed before the first draw."""
    future: Steps | None
    """The future covariates, as each step that is fed back would have them."""
    seed: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    stop: Sequence[str] | None
    """Texts at which the generation ends."""
    logprobs: int | None
    """The number of likeliest tokens to report with each token."""


class OpenResponse(NamedTuple):
    """The command to send the request and return as soon as the response's head has come.

    Its outcome is a Response, with a body only if it failed, or a NoResponse.
    """

    request: Request


class ReadChunk(NamedTuple):
    """The command to read on in the open response. Its outcome is bytes, none at the end, or a NoResponse."""


class Event(NamedTuple):
    kind: str
    data: str
    last_id: str


@dataclass(slots=True)
class EventParser:
    """Parses bytes to events, by the rules of https://html.spec.whatwg.org/multipage/server-sent-events.html."""

    last_id: str = ""
    _rest: bytes = b""
    _kind: str = ""
    _data: list[str] = field(default_factory=list)

    def parse(self, data: bytes) -> list[Event]:
        """Returns the events that end in these bytes."""
        events = []
        *lines, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            name, _, value = line.decode().partition(":")
            value = value.removeprefix(" ")
            if not line:
                if self._data:
                    events.append(Event(self._kind or "message", "\n".join(self._data), self.last_id))
                self._kind, self._data = "", []
            elif name == "event":
                self._kind = value
            elif name == "data":
                self._data.append(value)
            elif name == "id":
                self.last_id = value
        return events


def generate(
    path: str, body: Mapping[str, Any], policy: RetryPolicy, query: Mapping[str, str] | None = None
) -> EmittingFlow:
    """Emits Generated for each step and Done at the end. Raises Problem, UnreachableError."""
    last_id, retry = "", Retry(policy)
    while True:
        headers = {"accept": MEDIA_TYPE} | ({"last-event-id": last_id} if last_id else {})
        outcome: Response | NoResponse | None = yield OpenResponse(Request("POST", path, body, query or {}, headers))
        if isinstance(outcome, Response) and outcome.headers.get("content-type", "").startswith(MEDIA_TYPE):
            outcome, reached = yield from _read_events(last_id)
            if outcome is None:
                return
            if reached != last_id:
                last_id, retry = reached, Retry(policy)
        assert outcome is not None
        if isinstance(outcome, Response) and outcome.status not in RETRYABLE_STATUSES:
            raise failure(outcome)
        yield retry.pause(outcome)


def _read_events(last_id: str) -> Generator[Any, Any, tuple[Response | NoResponse | None, str]]:
    """Emits the content of one response, which begins after the event `last_id`.

    Returns the failure that ended it, None at the end of the generation, and the id of the last event that came.
    """
    parser = EventParser(last_id)
    while isinstance(chunk := (yield ReadChunk()), bytes) and chunk:
        for event in parser.parse(chunk):
            content = orjson.loads(event.data)
            if event.kind == "problem":
                return Response(Problem.from_document(content).status, {}, event.data.encode()), last_id
            if event.kind == "done":
                yield Emit(Done(content["reason"], content.get("seed"), content["step"], content.get("text")))
                return None, event.last_id
            last_id = event.last_id
            yield Emit(results.generated(content))
    if isinstance(chunk, NoResponse):
        return chunk, last_id
    return NoResponse(ConnectionError("the response ended before the generation"), sent=True), last_id


def generate_body(horizon: int, options: GenerationOptions) -> dict[str, Any]:
    return {"horizon": horizon} | {
        name: json_steps(value, name, least=int(name == "inputs")) if name in ("inputs", "future") else value
        for name, value in results.without_none(**options).items()
    }
