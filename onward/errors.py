"""The exceptions that Onward raises for its callers, as one tree below `OnwardError`.

    OnwardError
        BundleError             a bundle must not serve
        DataError               a file cannot be used as data
        Problem                 the service refused; one class for each problem type of docs/problems.md
            RetryableProblem    for now: status 429, 502, 503 or 504
        RetryableError          the same call may succeed later
            UnreachableError    no response came
            RetryableProblem

Wrong arguments raise ValueError or TypeError; InvalidRequest is also a ValueError. This module knows no transport. A
problem type without a class, which a newer service may have, is a plain `Problem` or `RetryableProblem`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Self

from onward.model.errors import BundleError as BundleError  # noqa: PLC0414  (exported)
from onward.model.errors import DataError as DataError  # noqa: PLC0414  (exported)
from onward.model.errors import OnwardError as OnwardError  # noqa: PLC0414  (exported)

PREFIX = "urn:onward:problem:"
MOST_LISTED = 20
"""The most faults that a problem lists."""
RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
"""The statuses of failures that may pass. 502 and 504 come from a proxy, which does not know whether the request was
applied.
"""


class RetryableError(OnwardError):
    """The same call may succeed later.

    A step may have been applied although it raised this: call again with the same `request_id`, and the step is not
    applied twice.
    """


class UnreachableError(RetryableError):
    """No response came before the retry deadline. The request may have been applied."""


class Problem(OnwardError):
    """The service refused a request. `document` is its RFC 9457 problem; the other attributes are its members."""

    name: ClassVar[str] = ""
    """The problem type without `urn:onward:problem:`."""
    code: ClassVar[int] = 0
    """The status that all problems of this type have."""
    by_type: ClassVar[dict[str, type["Problem"]]] = {}
    """The class of each problem type."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(document)
        self.document = document
        self.type = str(document.get("type", "about:blank"))
        self.status = int(document.get("status", self.code))
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail", ""))
        self.errors: list[dict[str, str]] = list(document.get("errors", ()))
        """The fields at fault: `{"field", "message"}`."""

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            Problem.by_type[PREFIX + cls.name] = cls

    def __str__(self) -> str:
        return self.detail or self.title or self.type

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Problem":
        """Returns the problem as an exception of its type's class."""
        unlisted = RetryableProblem if document.get("status") in RETRYABLE_STATUSES else Problem
        return cls.by_type.get(str(document.get("type")), unlisted)(document)

    @classmethod
    def with_detail(cls, detail: str, errors: Sequence[tuple[str, str]] = (), **members: Any) -> Self:
        """Returns the problem that a service would answer, for a fault that is found without a service.

        errors: pairs of a field and what is wrong with it; the first of them are listed, and the others counted.
        members: the further members of this problem type.
        """
        fields = [{"field": field, "message": message} for field, message in errors[:MOST_LISTED]]
        members |= {"more_errors": len(errors) - MOST_LISTED} if len(errors) > MOST_LISTED else {}
        document = {"type": PREFIX + cls.name, "status": cls.code, "title": (cls.__doc__ or "").split(".")[0]}
        return cls(document | {"detail": detail} | ({"errors": fields} if fields else {}) | members)


class RetryableProblem(Problem, RetryableError):
    """The service, or a proxy before it, could not answer for now: status 429, 502, 503 or 504."""


class BadRequest(Problem):
    """Not a proper HTTP request."""

    name, code = "bad-request", 400


class MalformedJson(Problem):
    """The body is not JSON."""

    name, code = "malformed-json", 400


class InvalidRequest(Problem, ValueError):
    """The request does not fit. `errors` names the fields."""

    name, code = "invalid-request", 422


class LateRequest(Problem):
    """The request was applied before."""

    name, code = "late-request", 409


class RequestReused(Problem):
    """The request id was used with other inputs."""

    name, code = "request-reused", 422


class NoHistory(Problem):
    """The session does not keep so much of its past."""

    name, code = "no-history", 409


class StateExpired(Problem):
    """The state is too old."""

    name, code = "state-expired", 410

    @property
    def issued_at(self) -> datetime:
        return datetime.fromisoformat(self.document["issued_at"])


class NoSecret(Problem):
    """The service has no secret."""

    name, code = "no-secret", 501


class NotFinite(Problem):
    """The inputs lead beyond finite numbers. The session is unmoved."""

    name, code = "not-finite", 422


class NoForecast(Problem):
    """The model cannot be rolled forward."""

    name, code = "no-forecast", 422


class UnknownModel(Problem):
    """No such model."""

    name, code = "unknown-model", 404


class UnknownVersion(Problem):
    """No such version of the model."""

    name, code = "unknown-version", 404


class UnknownSession(Problem):
    """No such session."""

    name, code = "unknown-session", 404


class NotFound(Problem):
    """Nothing is here."""

    name, code = "not-found", 404


class MethodNotAllowed(Problem):
    """This resource does not take that method."""

    name, code = "method-not-allowed", 405


class SessionEnded(Problem):
    """The session has ended. `reason` is `expired` or `deleted`."""

    name, code = "session-ended", 410

    @property
    def reason(self) -> str:
        return str(self.document["reason"])

    @property
    def ended_at(self) -> datetime:
        return datetime.fromisoformat(self.document["ended_at"])


class SessionExists(Problem):
    """The session id is taken."""

    name, code = "session-exists", 409


class StepConflict(Problem):
    """The session is at another step. `expected_step` is where it is."""

    name, code = "step-conflict", 409

    @property
    def expected_step(self) -> int:
        return int(self.document["expected_step"])


class ModelGone(Problem):
    """The session's model is not served."""

    name, code = "model-gone", 409


class BodyTooLarge(Problem):
    """The body is too large."""

    name, code = "body-too-large", 413


class UriTooLong(Problem):
    """The request line is too long."""

    name, code = "uri-too-long", 414


class HeadersTooLarge(Problem):
    """The headers are too large."""

    name, code = "headers-too-large", 431


class UnsupportedMediaType(Problem):
    """The body's type is not supported."""

    name, code = "unsupported-media-type", 415


class Overloaded(RetryableProblem):
    """Too much is waiting. Nothing was done."""

    name, code = "overloaded", 503


class Deadline(RetryableProblem):
    """Not done in time. Nothing was committed."""

    name, code = "deadline", 503


class Abandoned(RetryableProblem):
    """The client did not wait. Nothing was committed."""

    name, code = "abandoned", 503


class DrawMoved(Problem):
    """The session has changed since the draw began."""

    name, code = "draw-moved", 409


class ForeignOrigin(Problem):
    """A page of another site."""

    name, code = "foreign-origin", 403


class UpgradeRequired(Problem):
    """A WebSocket is expected."""

    name, code = "upgrade-required", 426


class NoStream(Problem):
    """No stream on this connection."""

    name, code = "no-stream", 501


class SlowReader(Problem):
    """The client reads too slowly."""

    name, code = "slow-reader", 408


class Stopping(RetryableProblem):
    """The service stops."""

    name, code = "stopping", 503


class Reloaded(RetryableProblem):
    """The models are being reloaded. Nothing was done; another try finds the new ones."""

    name, code = "reloaded", 503


class StoreUnavailable(RetryableProblem):
    """The session store does not answer. A step may or may not be committed."""

    name, code = "store-unavailable", 503


class NotReady(RetryableProblem):
    """Not ready to serve."""

    name, code = "not-ready", 503


class StoreFull(Problem):
    """The session store is full. Nothing was changed."""

    name, code = "store-full", 507


class DamagedRecord(Problem):
    """The session's record cannot be read."""

    name, code = "damaged-record", 500


class ForeignRecord(RetryableProblem):
    """Another version wrote the record. Nothing was changed."""

    name, code = "foreign-record", 503


class Internal(Problem):
    """Something broke inside the service."""

    name, code = "internal", 500
