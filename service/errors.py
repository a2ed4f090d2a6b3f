"""What can go wrong, in the domain's words. Knows nothing of HTTP: `onward.service.http.problems` maps these to
statuses.

Each message says what is wrong and, where there is one, the way out.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ServiceError(Exception):
    """The base class of all errors that the service reports to a client."""


def without_frames(error: Exception) -> Exception:
    """The error as an outcome that is kept.

    Its traceback would keep the frames that it came through, and they keep what the outcome is kept in: a cycle that
    only the garbage collector frees, with the request's inputs in it. A defect keeps its traceback, which is logged.
    """
    return error.with_traceback(None) if isinstance(error, ServiceError) else error


class UnknownModelError(ServiceError):
    def __init__(self, model: str, known: Sequence[str]) -> None:
        super().__init__(f"no model {model!r} is served; there is {', '.join(known) or 'none'}")


class UnknownVersionError(ServiceError):
    def __init__(self, model: str, version: int, known: Sequence[int], refused: str | None = None) -> None:
        """refused: the reason, where there is such a version that must not serve."""
        why = f" that is served: {refused}" if refused else ""
        super().__init__(f"model {model!r} has no version {version}{why}; it has {', '.join(map(str, known))}")


class UnknownSessionError(ServiceError):
    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} does not exist; create it with POST /v1/models/{{model}}/sessions")


class SessionEndedError(ServiceError):
    """The session lived, and ended: `reason` is `expired` or `deleted`, `ended_at` is in seconds since 1970 UTC."""

    def __init__(self, session_id: str, reason: str, ended_at: float) -> None:
        super().__init__(f"session {session_id!r} has {reason}; create a new one to go on")
        self.reason, self.ended_at = reason, ended_at


class SessionExistsError(ServiceError):
    """The id belongs to a living session. `difference`: in what that one is not the session that was asked for."""

    def __init__(self, session_id: str, difference: str = "") -> None:
        super().__init__(
            f"session {session_id!r} {difference or 'is alive'}; choose another session_id, or leave it out to get a "
            "new one"
        )


class StepConflictError(ServiceError):
    """The client believes in another step than the session has reached: `expected` is the session's."""

    def __init__(self, session_id: str, given: int, expected: int) -> None:
        super().__init__(
            f"session {session_id!r} is at step {expected}, not {given}; send the input that follows step {expected}"
        )
        self.expected = expected


class LateRequestError(ServiceError):
    """A duplicate of a request that was applied, and after which others were."""

    def __init__(self, session_id: str, request_id: str, step: int) -> None:
        super().__init__(
            f"request_id {request_id!r} was applied already, and others after it: session {session_id!r} is at step "
            f"{step}; its answer is no longer kept, and nothing was applied"
        )


class NoSecretError(ServiceError):
    def __init__(self) -> None:
        super().__init__(
            "records and states that leave the service are signed with a secret, and it has none: set ONWARD_SECRET "
            "to 32 characters or more, the same on every machine"
        )


class StateExpiredError(ServiceError):
    """A state that its client held for too long; `issued_at` in seconds since 1970 UTC."""

    def __init__(self, issued_at: float, age_s: float) -> None:
        super().__init__(f"the state is older than the {age_s:g} s that it may be; begin anew, without a state")
        self.issued_at = issued_at


class HistoryError(ServiceError):
    """What a session keeps of its past is not enough for what is asked."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; ONWARD_HISTORY says how many steps sessions keep from then on")


class RequestReusedError(ServiceError):
    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id {request_id!r} was used with other inputs; a retry sends the same ones, a new step a new id"
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """One field of a request and what is wrong with it."""

    field: str
    message: str


MOST_SAID = 3
"""Faults that the message of an error names."""


class InvalidInputError(ServiceError):
    """Fields of a request that do not fit."""

    def __init__(self, *faults: Fault) -> None:
        few = "; ".join(f"{fault.field}: {fault.message}" for fault in faults[:MOST_SAID])
        super().__init__(few if len(faults) <= MOST_SAID else f"{few}; and {len(faults) - MOST_SAID} more")
        self.faults = faults


class NotFiniteError(ServiceError):
    """The inputs drove the model to numbers that are not finite."""

    def __init__(self) -> None:
        super().__init__("these inputs drive the model beyond finite numbers; the session is unmoved")


class NoForecastError(ServiceError):
    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"model {model!r} cannot be rolled forward: {why}")


class DrawMovedError(ServiceError):
    """The session was stepped, or is another one, since the draw began that is to go on."""

    def __init__(self, session_id: str, since: int, step: int) -> None:
        super().__init__(
            f"session {session_id!r} was at step {since} when this draw began, and has changed since: it is at step "
            f"{step}; begin a new draw, without Last-Event-ID"
        )


class ModelGoneError(ServiceError):
    """The session's bundle is not served any more, or is another one under the same version."""

    def __init__(self, model: str, version: int, why: str) -> None:
        super().__init__(
            f"the session runs on {model} {version}, {why}; serve that bundle again, migrate the session to "
            "another version, or create a new one"
        )


class UnavailableError(ServiceError):
    """What was asked is in order, and can be done at another time."""


class UnreadableRecordError(ServiceError):
    """`why`: what speaks against the record's bytes. They are left as they are."""

    def __init__(self, why: str, way_out: str) -> None:
        self.why = why
        super().__init__(f"the session's record cannot be read: {why}; nothing was changed; {way_out}")


class DamagedRecordError(UnreadableRecordError):
    def __init__(self, why: str) -> None:
        super().__init__(why, "DELETE sets it aside and frees the id")


class ForeignRecordError(UnreadableRecordError, UnavailableError):
    """Another version of Onward wrote the record, in a format that this one does not know."""

    def __init__(self, found: int, readable: Sequence[int]) -> None:
        formats = " and ".join(map(str, readable))
        super().__init__(
            f"another version of Onward wrote it: it is of format {found}, and this version reads formats {formats}",
            "a worker of the version that wrote it serves it",
        )


class OverloadedError(UnavailableError):
    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; nothing was done, try again in a moment")


class DeadlineError(UnavailableError):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"not done within {timeout_s:g} s; nothing was committed; retry with the same request_id, or send less"
        )


class AbandonedError(UnavailableError):
    def __init__(self) -> None:
        super().__init__("the client closed its side of the connection while it waited; nothing was committed")


class ReloadedError(UnavailableError):
    """The model is unknown to a worker that stops, because the service was reloaded and others have later models."""

    def __init__(self) -> None:
        super().__init__(
            "the models are being reloaded, and this worker has those of before; nothing was done, try again"
        )


class StoreUnavailableError(UnavailableError):
    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"the session store does not answer: {why}")


class StoreFullError(UnavailableError):
    def __init__(self, why: str) -> None:
        super().__init__(f"the session store is full: {why}; nothing was changed, delete sessions or give it more room")
