"""Errors as RFC 9457 problem details.

Owns the one table from domain errors to statuses and problem types. A `type` is stable: clients may switch on it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from flask import Flask, Response, request
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from onward.service import errors
from onward.service.errors import Fault, ServiceError
from onward.service.http.reply import Reply
from onward.service.http.times import iso

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MOST_FAULTS = 20
"""The most faults that a problem lists; it gives the number of further faults."""
MOST_TEXT = 1000
"""Characters of a name or a message that a problem repeats."""
_OF_JSON = {
    "model_type": "Input should be an object", "dict_type": "Input should be an object",
    "list_type": "Input should be a valid array",
}  # fmt: skip
"""pydantic's messages that name Python types, by its error types, in the words of JSON."""
VALUE_TYPES = ("float", "int", "str", "constrained-str")
"""pydantic's names of the types that a value of a step, or a stop, may have."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A problem type: its name, the status that it answers with, and a title that is the same each time."""

    name: str
    status: int
    title: str
    retry_after_s: int | None = None

    @property
    def type(self) -> str:
        return f"urn:onward:problem:{self.name}"


PROBLEM_TYPES: dict[type[ServiceError], ProblemType] = {
    errors.UnknownModelError: ProblemType("unknown-model", 404, "No such model"),
    errors.UnknownVersionError: ProblemType("unknown-version", 404, "No such version of the model"),
    errors.UnknownSessionError: ProblemType("unknown-session", 404, "No such session"),
    errors.SessionEndedError: ProblemType("session-ended", 410, "The session has ended"),
    errors.SessionExistsError: ProblemType("session-exists", 409, "The session id is taken"),
    errors.StepConflictError: ProblemType("step-conflict", 409, "The session is at another step"),
    errors.LateRequestError: ProblemType("late-request", 409, "The request was applied before"),
    errors.RequestReusedError: ProblemType("request-reused", 422, "The request id was used with other inputs"),
    errors.HistoryError: ProblemType("no-history", 409, "The session does not keep so much of its past"),
    errors.StateExpiredError: ProblemType("state-expired", 410, "The state is too old"),
    errors.NoSecretError: ProblemType("no-secret", 501, "The service has no secret"),
    errors.InvalidInputError: ProblemType("invalid-request", 422, "The request does not fit"),
    errors.NotFiniteError: ProblemType("not-finite", 422, "The inputs lead beyond finite numbers"),
    errors.NoForecastError: ProblemType("no-forecast", 422, "The model cannot be rolled forward"),
    errors.DrawMovedError: ProblemType("draw-moved", 409, "The session has changed since the draw began"),
    errors.ModelGoneError: ProblemType("model-gone", 409, "The session's model is not served"),
    errors.DamagedRecordError: ProblemType("damaged-record", 500, "The session's record cannot be read"),
    errors.ForeignRecordError: ProblemType("foreign-record", 503, "Another version wrote the record", retry_after_s=1),
    errors.OverloadedError: ProblemType("overloaded", 503, "Too much is waiting", retry_after_s=1),
    errors.DeadlineError: ProblemType("deadline", 503, "Not done in time", retry_after_s=1),
    errors.AbandonedError: ProblemType("abandoned", 503, "The client did not wait", retry_after_s=1),
    errors.ReloadedError: ProblemType("reloaded", 503, "The models are being reloaded", retry_after_s=1),
    errors.StoreUnavailableError: ProblemType(
        "store-unavailable", 503, "The session store does not answer", retry_after_s=1
    ),
    errors.StoreFullError: ProblemType("store-full", 507, "The session store is full"),
}

MALFORMED = ProblemType("malformed-json", 400, "The body is not JSON")
MEDIA = ProblemType("unsupported-media-type", 415, "The body's type is not supported")
NOT_READY = ProblemType("not-ready", 503, "Not ready to serve", retry_after_s=1)
ORIGIN = ProblemType("foreign-origin", 403, "A page of another site")
UPGRADE = ProblemType("upgrade-required", 426, "A WebSocket is expected")
NO_STREAM = ProblemType("no-stream", 501, "No stream on this connection")
SLOW = ProblemType("slow-reader", 408, "The client reads too slowly")
STOPPING = ProblemType("stopping", 503, "The service stops", retry_after_s=1)
INTERNAL = ProblemType("internal", 500, "Something broke inside the service")
HTTP_PROBLEM_TYPES = {
    400: ProblemType("bad-request", 400, "Not a proper HTTP request"),
    404: ProblemType("not-found", 404, "Nothing is here"),
    405: ProblemType("method-not-allowed", 405, "This resource does not take that method"),
    413: ProblemType("body-too-large", 413, "The body is too large"),
    414: ProblemType("uri-too-long", 414, "The request line is too long"),
    431: ProblemType("headers-too-large", 431, "The headers are too large"),
}
ALL = (
    *PROBLEM_TYPES.values(), MALFORMED, MEDIA, NOT_READY, ORIGIN, UPGRADE, NO_STREAM, SLOW, STOPPING, INTERNAL,
    *HTTP_PROBLEM_TYPES.values(),
)  # fmt: skip


class RequestError(Exception):
    """The request is refused by rules of HTTP, before any use case."""

    def __init__(self, problem_type: ProblemType, detail: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.problem_type, self.detail, self.faults = problem_type, detail, faults


def document(problem_type: ProblemType, detail: str, faults: Sequence[Fault] = (), **more: Any) -> bytes:
    """The problem as JSON."""
    body: dict[str, Any] = {
        "type": problem_type.type,
        "title": problem_type.title,
        "status": problem_type.status,
        "detail": short(detail),
        **more,
    }
    if faults:
        listed = faults[:MOST_FAULTS]
        body["errors"] = [{"field": short(fault.field), "message": short(fault.message)} for fault in listed]
    if len(faults) > MOST_FAULTS:
        body["more_errors"] = len(faults) - MOST_FAULTS
    return orjson.dumps(body)


def short(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 3]}..."


def reply(problem_type: ProblemType, detail: str, faults: Sequence[Fault] = (), **more: Any) -> Reply:
    headers = () if problem_type.retry_after_s is None else (("Retry-After", str(problem_type.retry_after_s)),)
    return Reply(problem_type.status, document(problem_type, detail, faults, **more), MEDIA_TYPE, headers)


def of(error: Exception, method: str, path: str) -> Reply:
    """The response to an error of a use case or of the request's parsing; errors that concern operators are logged."""
    if isinstance(error, ServiceError):
        return _of_domain(error, method, path)
    if isinstance(error, ValidationError):
        return _of_validation(error)
    if isinstance(error, RequestError):
        return reply(error.problem_type, error.detail, error.faults)
    log.error("%s %s failed", method, path, exc_info=error)
    return reply(
        INTERNAL, "this is an error of the service; it is logged; nothing was committed for this request, unless stated"
    )


def _of_domain(error: ServiceError, method: str, path: str) -> Reply:
    """The problem of a domain error, with the members that a program needs to recover."""
    problem_type = PROBLEM_TYPES[type(error)]
    if isinstance(error, errors.InvalidInputError):
        return reply(problem_type, str(error), error.faults)
    if isinstance(error, errors.StepConflictError):
        return reply(problem_type, str(error), [Fault("step", str(error))], expected_step=error.expected)
    if isinstance(error, errors.SessionEndedError):
        more = {"reason": error.reason, "ended_at": iso(error.ended_at)}
        return reply(problem_type, str(error), [Fault("session_id", str(error))], **more)
    if isinstance(error, errors.StateExpiredError):
        return reply(problem_type, str(error), [Fault("state", str(error))], issued_at=iso(error.issued_at))
    if isinstance(error, (errors.UnreadableRecordError, errors.StoreUnavailableError, errors.StoreFullError)):
        log.error("%s %s: %s", method, path, error)
    if isinstance(error, errors.StoreUnavailableError):
        return reply(problem_type, f"{error}; retry with the same request_id")
    return reply(problem_type, str(error), _FIELDS.get(type(error), lambda _: ())(error))


_FIELDS: dict[type[ServiceError], Any] = {
    errors.UnknownModelError: lambda error: [Fault("model", str(error))],
    errors.UnknownVersionError: lambda error: [Fault("version", str(error))],
    errors.UnknownSessionError: lambda error: [Fault("session_id", str(error))],
    errors.SessionExistsError: lambda error: [Fault("session_id", str(error))],
    errors.RequestReusedError: lambda error: [Fault("request_id", str(error))],
    errors.NotFiniteError: lambda error: [Fault("inputs", str(error))],
    errors.NoForecastError: lambda error: [Fault("horizon", str(error))],
    errors.DrawMovedError: lambda error: [Fault("Last-Event-ID", str(error))],
}


def _of_validation(error: ValidationError) -> Reply:
    """The problem of a body that does not fit its schema."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return reply(MALFORMED, found[0]["msg"], [Fault("body", found[0]["msg"])])
    messages: dict[str, str] = {}
    for fault in found:  # a value of a wrong type has a fault for each type of the union: the first is used
        message = _OF_JSON.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
        messages.setdefault(_field(tuple(fault["loc"])), message)
    faults = [Fault(field, message) for field, message in messages.items()]
    return reply(PROBLEM_TYPES[errors.InvalidInputError], str(errors.InvalidInputError(*faults)), faults)


def _field(location: tuple[int | str, ...]) -> str:
    """`("inputs", "@rows", 0, 1, "float")` -> `inputs[0][1]`, the field's name for clients.

    A part that begins with @ is the form of inputs; the last part after a value is the type that did not match.
    """
    name = ""
    if {"inputs", "future", "stop"} & set(location) and location[-1] in VALUE_TYPES:
        location = location[:-1]
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not part.startswith("@"):
            name += f".{part}" if name else part
    return name or "body"


def install(app: Flask) -> None:
    """Answers every error of the app with a problem."""
    app.register_error_handler(HTTPException, _of_http)
    app.register_error_handler(Exception, lambda error: of(error, request.method, request.path).response())


def _of_http(error: HTTPException) -> Response:
    status = error.code or 500
    problem_type = HTTP_PROBLEM_TYPES.get(status) or ProblemType(f"http-{status}", status, HTTPStatus(status).phrase)
    path = request.path[:200]
    if status == 404:
        detail = f"no resource has the path {path}; GET /openapi.json lists the operations"
        return reply(problem_type, detail, [Fault("path", detail)]).response()
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        detail = f"{path} does not accept {request.method}; it accepts {allowed}"
        answer = reply(problem_type, detail, [Fault("method", f"expected {allowed}")]).response()
        answer.headers["Allow"] = allowed
        return answer
    if status == 413:
        most = f"at most {request.max_content_length} bytes"
        return reply(problem_type, f"{most}; split the inputs into several calls", [Fault("body", most)]).response()
    return reply(problem_type, error.description or problem_type.title).response()
