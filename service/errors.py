"""The errors of the domain. They know nothing of HTTP: `onward.service.http.problems` maps them to statuses.

Each message says what is wrong and, where it can, what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ServiceError(Exception):
    """Base of all errors that are reported to a client."""


def without_frames(error: Exception) -> Exception:
    """The error without its traceback, so that it can be stored as an outcome.

    The traceback refers to the frames that the error passed through, and these refer to the object in which the outcome
    is stored: a cycle that only the garbage collector frees, with the request's inputs in it. An unexpected error keeps
    its traceback, which is logged.
    """
    return error.with_traceback(None) if isinstance(error, ServiceError) else error


class UnknownModelError(ServiceError):
    def __init__(self, model: str, served: Sequence[str]) -> None:
        super().__init__(f"no model {model!r} is served; the models served are: {', '.join(served) or 'none'}")


class UnknownVersionError(ServiceError):
    def __init__(self, model: str, version: int, served: Sequence[int], refused: str | None = None) -> None:
        """refused: why the version is not served, where it exists."""
        why = f" that is served: {refused}" if refused else ""
        super().__init__(f"model {model!r} has no version {version}{why}; it has {', '.join(map(str, served))}")


class UnknownSessionError(ServiceError):
    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} does not exist; create it with POST /v1/models/{{model}}/sessions")


class SessionEndedError(ServiceError):
    """The session has ended: `reason` is `expired` or `deleted`, `ended_at` is in seconds since 1970 UTC."""

    def __init__(self, session_id: str, reason: str, ended_at: float) -> None:
        super().__init__(f"session {session_id!r} has {reason}; create a new one to continue")
        self.reason, self.ended_at = reason, ended_at


class SessionExistsError(ServiceError):
    """The id belongs to a live session. `difference`: how that session differs from the requested one."""

    def __init__(self, session_id: str, difference: str = "") -> None:
        super().__init__(
            f"session {session_id!r} {difference or 'is alive'}; choose another session_id, or leave it out to get a "
            "new one"
        )


class StepConflictError(ServiceError):
    """The client expects another step than the session has reached: `expected` is the session's step."""

    def __init__(self, session_id: str, given: int, expected: int) -> None:
        super().__init__(
            f"session {session_id!r} is at step {expected}, not {given}; send the input that follows step {expected}"
        )
        self.expected = expected


class LateRequestError(ServiceError):
    """A duplicate of a request that was applied before later requests were applied."""

    def __init__(self, session_id: str, request_id: str, step: int) -> None:
        super().__init__(
            f"request_id {request_id!r} was already applied, and later requests after it: session {session_id!r} is at "
            f"step {step}; its response is no longer stored, and nothing was applied"
        )


class NoSecretError(ServiceError):
    def __init__(self) -> None:
        super().__init__(
            "exported records and states are signed with a secret, and the service has none: set ONWARD_SECRET to 32 "
            "characters or more, the same on every machine"
        )


class StateExpiredError(ServiceError):
    """The state that a client sent is too old; `issued_at` is in seconds since 1970 UTC."""

    def __init__(self, issued_at: float, age_s: float) -> None:
        super().__init__(f"the state is older than the maximum of {age_s:g} s; start again, without a state")
        self.issued_at = issued_at


class HistoryError(ServiceError):
    """The inputs that a session stores are not enough for the request."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; ONWARD_HISTORY sets how many steps new sessions store")


class RequestReusedError(ServiceError):
    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id {request_id!r} was already used with other inputs; send the same inputs to retry, or a new "
            "id for a new step"
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """A field of a request and what is wrong with it."""

    field: str
    message: str


MOST_NAMED_FAULTS = 3
"""The most faults that the message of an error lists."""


class InvalidInputError(ServiceError):
    """Fields of a request are invalid."""

    def __init__(self, *faults: Fault) -> None:
        few = "; ".join(f"{fault.field}: {fault.message}" for fault in faults[:MOST_NAMED_FAULTS])
        super().__init__(
            few if len(faults) <= MOST_NAMED_FAULTS else f"{few}; and {len(faults) - MOST_NAMED_FAULTS} more"
        )
        self.faults = faults


class NotFiniteError(ServiceError):
    """The inputs made the model compute numbers that are not finite."""

    def __init__(self) -> None:
        super().__init__("the model's outputs for these inputs are not finite numbers; the session was not changed")


class NoForecastError(ServiceError):
    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"model {model!r} cannot be rolled forward: {why}")


class DrawMovedError(ServiceError):
    """The session was stepped or replaced after the draw began that a client wants to resume."""

    def __init__(self, session_id: str, since: int, step: int) -> None:
        super().__init__(
            f"session {session_id!r} was at step {since} when this draw began, and has changed since: it is at step "
            f"{step}; start a new draw, without Last-Event-ID"
        )


class ModelGoneError(ServiceError):
    """The session's bundle is no longer served, or another bundle is served under its version."""

    def __init__(self, model: str, version: int, why: str) -> None:
        super().__init__(
            f"the session runs on {model} {version}, {why}; serve that bundle again, migrate the session to "
            "another version, or create a new one"
        )


class UnavailableError(ServiceError):
    """The request is valid and can be retried: base of all retryable errors."""


class UnreadableRecordError(ServiceError):
    """The record's bytes cannot be read, for the reason `why`. They are not changed."""

    def __init__(self, why: str, way_out: str) -> None:
        self.why = why
        super().__init__(f"the session's record cannot be read: {why}; nothing was changed; {way_out}")


class DamagedRecordError(UnreadableRecordError):
    def __init__(self, why: str) -> None:
        super().__init__(why, "DELETE moves it aside and frees the id")


class ForeignRecordError(UnreadableRecordError, UnavailableError):
    """Another version of Onward wrote the record, in a format that this version cannot read."""

    def __init__(self, found: int, readable: Sequence[int]) -> None:
        *earlier, newest = map(str, readable)
        formats = f"{', '.join(earlier)} and {newest}"
        super().__init__(
            f"another version of Onward wrote it in format {found}, and this version reads formats {formats}",
            "a worker of the version that wrote it can serve it",
        )


class OverloadedError(UnavailableError):
    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are already waiting; nothing was done, retry in a moment")


class DeadlineError(UnavailableError):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"not finished within {timeout_s:g} s; nothing was committed; retry with the same request_id, or send less"
        )


class AbandonedError(UnavailableError):
    def __init__(self) -> None:
        super().__init__("the client closed its side of the connection while the request waited; nothing was committed")


class ReloadedError(UnavailableError):
    """A worker that is stopping after a reload does not have the model; other workers serve the newer models."""

    def __init__(self) -> None:
        super().__init__(
            "the models are being reloaded, and this worker still has the old ones; nothing was done, retry"
        )


class StoreUnavailableError(UnavailableError):
    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"the session store does not answer: {why}")


class StoreFullError(UnavailableError):
    def __init__(self, why: str) -> None:
        super().__init__(
            f"the session store is full: {why}; nothing was changed; delete sessions or give it more space"
        )
