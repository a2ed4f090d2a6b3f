"""What a client does next, decided without I/O: requests to send, pauses, and what their answers mean.

An operation is a generator, a flow: it yields a command, is sent what came of it, and returns its result. Whoever runs
one, with threads, an event loop or a list, is a driver; so there is one copy of what the client knows, and retries can
be tested without a clock. Time comes in with the answers, in seconds.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from random import uniform
from typing import Any, NamedTuple, TypeVar

import orjson

from onward.client.errors import UNDONE, Problem, UnreachableError, answered, document

T = TypeVar("T")
NO_CONTENT = 204
AGAIN = frozenset({429, 502, 503, 504})
"""Statuses that may be another at the next try; 502 and 504 are a proxy's, which does not know what was done."""


@dataclass(frozen=True, slots=True)
class Request:
    """Send it, and be sent a Reply or a Lost. `content` is what the body says."""

    method: str
    path: str
    content: Any = None
    query: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes | None:
        return None if self.content is None else orjson.dumps(self.content)


class Reply(NamedTuple):
    """`headers` by lower-case name; `took_s` is the time since the request was begun."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_s: float = 0.0


class Lost(NamedTuple):
    """No answer came. `sent` says whether any of the request may have reached the service."""

    error: Exception
    sent: bool
    took_s: float = 0.0


class Sleep(NamedTuple):
    seconds: float


class Emit(NamedTuple):
    """Hand this to whoever iterates."""

    item: Any


Command = Request | Sleep
Flow = Generator[Command, Any, T]
"""Returns one result."""
Feed = Generator[Any, Any, None]
"""Also yields Emit commands, and what `streams` and `generating` need; returns nothing."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try: pauses double from `first_s` to `most_s`, and after `total_s` without success it is over."""

    total_s: float = 60.0
    first_s: float = 0.05
    most_s: float = 5.0


class Retry:
    """One run of failures, and the time that it has taken."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.failures, self.spent_s = 0, 0.0

    def next(self, failed: Reply | Lost) -> Sleep | None:
        """How long to wait before the next try; None where it is over.

        Half of the pause is by chance, so that clients which failed together do not come back together.
        """
        patience = self._patience
        pause_s = min(patience.most_s, patience.first_s * 2**self.failures) * uniform(0.5, 1.0)  # noqa: S311
        if isinstance(failed, Reply):
            pause_s = max(pause_s, _retry_after_s(failed))
        self.failures += 1
        self.spent_s += failed.took_s + pause_s
        return Sleep(pause_s) if self.spent_s <= patience.total_s else None

    def pause(self, failed: Reply | Lost) -> Sleep:
        """As `next`. Raises the failure where it is over."""
        pause = self.next(failed)
        if pause is None:
            raise failure(failed)
        return pause


class Exchanged(NamedTuple):
    """The answer to a request. `doubtful`: an earlier try, up to `since_s` ago, may have been applied unanswered."""

    reply: Reply
    doubtful: bool
    since_s: float


def exchange(request: Request, retry: Retry, *, safe: bool) -> Flow[Exchanged]:
    """Sends the request until there is an answer that another try would not change.

    retry: of the call that this is part of. safe: it may be sent again although it may have been applied; otherwise it
    is only where nothing can have been done. Raises UnreachableError, or the Problem where tries are used up on one.
    """
    doubtful = False
    while True:
        answer: Reply | Lost = yield request
        if isinstance(answer, Reply) and answer.status not in AGAIN:
            return Exchanged(answer, doubtful, retry.spent_s + answer.took_s)
        undone = _undone(answer)
        if not safe and not undone:
            raise failure(answer)
        doubtful = doubtful or not undone
        yield retry.pause(answer)


def content(reply: Reply, read: Callable[[Any], T]) -> T:
    """What the answer's body says, a JSON object, by `read`; of nothing, with a 204, None is read.

    Raises the Problem that it is, and one that shows it where it says something else than `read` looks for: then
    another service has answered.
    """
    told = document(reply.body)
    if not 200 <= reply.status < 300 or (told is None and reply.status != NO_CONTENT):
        raise answered(reply.status, reply.body)
    try:
        return read(told)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise answered(reply.status, reply.body) from error


def failure(failed: Reply | Lost) -> Problem | UnreachableError:
    if isinstance(failed, Reply):
        return answered(failed.status, failed.body)
    error = UnreachableError(f"the service did not answer: {str(failed.error) or type(failed.error).__name__}")
    error.__cause__ = failed.error
    return error


def _undone(failed: Reply | Lost) -> bool:
    if isinstance(failed, Lost):
        return not failed.sent
    return failed.status == 429 or isinstance(answered(failed.status, failed.body), UNDONE)


def _retry_after_s(reply: Reply) -> float:
    told = reply.headers.get("retry-after", "")
    return float(told) if told.isdecimal() else 0.0
