"""The client's decisions without I/O: which request to send, how long to pause, and what a response means.

An operation is a generator, called a flow: it yields a command, receives the outcome of that command, and returns the
operation's result. A transport runs a flow, with threads or with an event loop; a test runs it with a list. So both
clients share one copy of the logic, and retries can be tested without a clock. Time comes in with the outcomes, in
seconds.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from random import uniform
from typing import Any, NamedTuple, TypeVar

import orjson

from onward.errors import (
    RETRYABLE_STATUSES,
    Abandoned,
    Deadline,
    ForeignRecord,
    NotReady,
    Overloaded,
    Problem,
    Stopping,
    UnreachableError,
)

T = TypeVar("T")
NO_CONTENT = 204
NOT_APPLIED = (Overloaded, Deadline, Abandoned, NotReady, Stopping, ForeignRecord)
"""The problems after which nothing was applied, so that any request may be sent again."""


@dataclass(frozen=True, slots=True)
class Request:
    """The command to send an HTTP request. Its outcome is a Response or a NoResponse. `content` becomes the body."""

    method: str
    path: str
    content: Any = None
    query: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes | None:
        return None if self.content is None else orjson.dumps(self.content)


class Response(NamedTuple):
    """An HTTP response. `headers` are by lower-case name; `took_s` is the time since the request was begun.

    `proxy` is the setting of the proxy between the client and the service, if there is one.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_s: float = 0.0
    proxy: str = ""


class NoResponse(NamedTuple):
    """A request without a response. `sent` is True if any part of the request may have reached the service.

    `proxy` is the setting of the proxy between the client and the service, if there is one.
    """

    error: Exception
    sent: bool
    took_s: float = 0.0
    proxy: str = ""


class Sleep(NamedTuple):
    """The command to pause."""

    seconds: float


class Emit(NamedTuple):
    """The command to hand an item to the caller who iterates."""

    item: Any


Command = Request | Sleep
Flow = Generator[Command, Any, T]
"""An operation with one result."""
EmittingFlow = Generator[Any, Any, None]
"""An operation that emits its results. It also yields the commands of `step_stream` or `generation`."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pauses double from `first_pause_s` to `longest_pause_s`; after `deadline_s` without success the call fails."""

    deadline_s: float = 60.0
    first_pause_s: float = 0.05
    longest_pause_s: float = 5.0


class Retry:
    """A run of failures, and the time that it has taken."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.failures, self.spent_s = 0, 0.0

    def next(self, failed: Response | NoResponse) -> Sleep | None:
        """Returns the pause before the next try; None if the retry deadline would pass.

        Half of the pause is random, so that clients which failed together do not come back together.
        """
        policy = self._policy
        longest_s = min(policy.longest_pause_s, policy.first_pause_s * 2**self.failures)
        pause_s = longest_s * uniform(0.5, 1.0)  # noqa: S311
        if isinstance(failed, Response):
            pause_s = max(pause_s, _retry_after_s(failed))
        self.failures += 1
        self.spent_s += failed.took_s + pause_s
        return Sleep(pause_s) if self.spent_s <= policy.deadline_s else None

    def pause(self, failed: Response | NoResponse) -> Sleep:
        """Returns the pause before the next try. Raises the failure if the retry deadline would pass."""
        pause = self.next(failed)
        if pause is None:
            raise failure(failed)
        return pause


class Exchange(NamedTuple):
    """A request's final response.

    `doubtful` is True if an earlier try, up to `since_s` seconds ago, may have been applied without a response.
    """

    response: Response
    doubtful: bool
    since_s: float


def exchange(request: Request, retry: Retry, *, idempotent: bool) -> Flow[Exchange]:
    """Sends the request until there is a response that another try would not change.

    retry: the retries of the call that this request belongs to. idempotent: the request may be sent again although it
    may have been applied; otherwise it is sent again only if nothing can have been applied. Raises UnreachableError, or
    the last Problem at the retry deadline.
    """
    doubtful = False
    while True:
        outcome: Response | NoResponse = yield request
        if isinstance(outcome, Response) and outcome.status not in RETRYABLE_STATUSES:
            return Exchange(outcome, doubtful, retry.spent_s + outcome.took_s)
        not_applied = _not_applied(outcome)
        if not idempotent and not not_applied:
            raise failure(outcome)
        doubtful = doubtful or not not_applied
        yield retry.pause(outcome)


def content(response: Response, read: Callable[[Any], T]) -> T:
    """Returns what `read` makes of the response's JSON object; `read` receives None for status 204.

    Raises the Problem that the response is. A body in which `read` does not find what it needs comes from another
    service; it raises a Problem that shows the body.
    """
    document = json_object(response.body)
    if not 200 <= response.status < 300 or (document is None and response.status != NO_CONTENT):
        raise problem(response.status, response.body, response.proxy)
    try:
        return read(document)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise problem(response.status, response.body, response.proxy) from error


def failure(failed: Response | NoResponse) -> Problem | UnreachableError:
    if isinstance(failed, Response):
        return problem(failed.status, failed.body, failed.proxy)
    reason = str(failed.error) or type(failed.error).__name__
    error = UnreachableError(f"the service did not answer{_through(failed.proxy)}: {reason}")
    error.__cause__ = failed.error
    return error


def problem(status: int, body: bytes, proxy: str = "") -> Problem:
    """Returns the response as an exception, also if a proxy between client and service has written it."""
    document = {"status": status} | (json_object(body) or {})
    if _is_problem(document):
        return Problem.from_document(document)
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "not a response of Onward"
    text = body[:200].decode("utf-8", "replace")
    detail = f"{status} {phrase}; the response{_through(proxy)} is not Onward's: {text}"
    return Problem.from_document({"title": phrase, "status": status, "detail": detail})


def _through(proxy: str) -> str:
    return proxy and f" through the proxy {proxy}"


def json_object(body: bytes) -> dict[str, Any] | None:
    """Returns the JSON object that the body is; None if it is none."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _is_problem(document: Mapping[str, Any]) -> bool:
    errors = document.get("errors", [])
    return type(document["status"]) is int and isinstance(document.get("type"), str) and isinstance(errors, list)


def _not_applied(failed: Response | NoResponse) -> bool:
    if isinstance(failed, NoResponse):
        return not failed.sent
    return failed.status == 429 or isinstance(problem(failed.status, failed.body), NOT_APPLIED)


def _retry_after_s(response: Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
