"""What the service refuses, as exceptions: a class for each problem type of docs/problems.md.

Knows no transport. A type that is not known here, of a newer service, is a plain `Problem`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, ClassVar, Self

import orjson

PREFIX = "urn:onward:problem:"


class UnreachableError(Exception):
    """No answer came, however often it was tried. What was under way may have been done; ids make another try safe."""


class Problem(Exception):
    """What the service answered instead: `document` is its RFC 9457 problem, and the attributes are its members."""

    name: ClassVar[str] = ""
    """Of the type, after `urn:onward:problem:`."""
    code: ClassVar[int] = 0
    """The status that the type always has."""
    known: ClassVar[dict[str, type["Problem"]]] = {}

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
        Problem.known[PREFIX + cls.name] = cls

    def __str__(self) -> str:
        return self.detail or self.title or self.type

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Problem":
        """The document as an exception of its type's class."""
        return cls.known.get(str(document.get("type")), Problem)(document)

    @classmethod
    def here(cls, detail: str, errors: Sequence[tuple[str, str]] = (), **members: Any) -> Self:
        """The same problem where it is found without a service; errors: fields, and what is wrong with each."""
        found = [{"field": field, "message": message} for field, message in errors]
        told = {"type": PREFIX + cls.name, "status": cls.code, "title": (cls.__doc__ or "").split(".")[0]}
        return cls(told | {"detail": detail} | ({"errors": found} if found else {}) | members)


def answered(status: int, body: bytes) -> Problem:
    """The answer as an exception, also where something between client and service has answered in its own words."""
    told = {"status": status} | (document(body) or {})
    if _is_problem(told):
        return Problem.of(told)
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "no answer of Onward"
    detail = f"{status} {phrase}, in words that are not Onward's: {body[:200].decode('utf-8', 'replace')}"
    return Problem({"title": phrase, "status": status, "detail": detail})


def document(body: bytes) -> dict[str, Any] | None:
    """The JSON object that this is; None where it is none."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return told if isinstance(told, dict) else None


def _is_problem(told: Mapping[str, Any]) -> bool:
    errors = told.get("errors", [])
    return type(told["status"]) is int and isinstance(told.get("type"), str) and isinstance(errors, list)


class BadRequest(Problem):
    """Not a proper HTTP request."""

    name, code = "bad-request", 400


class MalformedJson(Problem):
    """The body is not JSON."""

    name, code = "malformed-json", 400


class InvalidRequest(Problem):
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


class Overloaded(Problem):
    """Too much is waiting. Nothing was done."""

    name, code = "overloaded", 503


class Deadline(Problem):
    """Not done in time. Nothing was committed."""

    name, code = "deadline", 503


class Abandoned(Problem):
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


class Stopping(Problem):
    """The service stops."""

    name, code = "stopping", 503


class Reloaded(Problem):
    """The models are being reloaded. Nothing was done; another try finds the new ones."""

    name, code = "reloaded", 503


class StoreUnavailable(Problem):
    """The session store does not answer. A step may or may not be committed."""

    name, code = "store-unavailable", 503


class NotReady(Problem):
    """Not ready to serve."""

    name, code = "not-ready", 503


class StoreFull(Problem):
    """The session store is full. Nothing was changed."""

    name, code = "store-full", 507


class DamagedRecord(Problem):
    """The session's record cannot be read."""

    name, code = "damaged-record", 500


class ForeignRecord(Problem):
    """Another version of the service wrote the session's record. Nothing was changed."""

    name, code = "foreign-record", 503


class Internal(Problem):
    """Something broke inside the service."""

    name, code = "internal", 500


UNDONE = (Overloaded, Deadline, Abandoned, NotReady, Stopping, ForeignRecord)
"""Those that say that nothing was done, so that anything may be sent again."""
