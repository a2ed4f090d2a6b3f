"""An operation: a method on a path, with its parameters, body and response. Routes and OpenAPI are made from these."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from flask import Flask, Response, request
from pydantic import BaseModel

from onward.model.listed_rankings import FIELD
from onward.service.engine.engine import Engine
from onward.service.errors import Fault, InvalidInputError
from onward.service.http.reply import JSON, encode_by_turns

NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter in the query or the headers, as the OpenAPI document describes it; the view reads it itself."""

    name: str
    kind: type[int] | type[str] | type[float] | type[bool]
    description: str
    location: Literal["query", "header"] = "query"


LISTED_ONLY = Query(
    FIELD,
    bool,
    "true: rankings of listed categories only, k - 1 of a model's k if it accepts others; 422 where k is 1",
)


def wants_listed_only() -> bool:
    """True if the request asks for rankings of listed categories only. Raises InvalidInputError."""
    value = request.args.get(FIELD, "false")
    if value not in ("true", "false"):
        raise InvalidInputError(Fault(FIELD, f"expected true or false, not {value[:40]!r}"))
    return value == "true"


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation.

    `path` is in OpenAPI's notation, `/v1/sessions/{session_id}`; `view` takes the engine and the path's parameters.

    `operation_id`, a verb and a resource, is public and never changes: generated clients name their methods by it.
    """

    operation_id: str
    method: str
    path: str
    view: Callable[..., Response]
    summary: str
    answer: type[BaseModel] | None
    body: type[BaseModel] | None = None
    body_optional: bool = False
    status: int = 200
    confirms: bool = False
    """True if the resource may exist already: then the status is 200 instead of 201, with the same schema."""
    media: str = JSON
    """The media type of the response; for Server-Sent Events, the response schema is a list of events."""
    line: type[BaseModel] | None = None
    """The schema of a line if the body may be NDJSON; each line is answered by a line with a response of its own."""
    query: tuple[Query, ...] = ()
    problems: tuple[int, ...] = ()


def install(app: Flask, engine: Engine, operations: tuple[Operation, ...]) -> None:
    for operation in operations:
        rule, endpoint = operation.path.replace("{", "<").replace("}", ">"), f"{operation.method} {operation.path}"
        view = partial(_answer, operation, engine)
        app.add_url_rule(rule, endpoint, view, methods=[operation.method])
        if operation.status == 101:  # werkzeug routes WebSocket handshakes separately
            app.add_url_rule(rule, endpoint, view, methods=[operation.method], websocket=True)


def _answer(operation: Operation, engine: Engine, **parameters: str) -> Response:
    accepted = {query.name for query in operation.query if query.location == "query"}
    if unknown := sorted(set(request.args) - accepted):
        message = f"no such parameter; the parameters are: {', '.join(sorted(accepted)) or 'none'}"
        raise InvalidInputError(*(Fault(name[:100], message) for name in unknown))
    return operation.view(engine, **parameters)


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode_by_turns(content), status, headers, content_type=JSON)
