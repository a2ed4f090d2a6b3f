"""An operation: one method on one path, with what goes in and out. Routes and OpenAPI are made of these."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from flask import Flask, Response, request
from pydantic import BaseModel

from onward.service.engine.engine import Engine
from onward.service.errors import Fault, InvalidInputError
from onward.service.http.reply import JSON, encode_by_turns

NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter beside the path and the body, for the document; the view reads it itself."""

    name: str
    kind: type[int] | type[str] | type[float]
    description: str
    place: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """`path` in OpenAPI's writing, `/v1/sessions/{session_id}`; `view` takes the engine and the path's parameters.

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
    """Whether what the status says was created may have been there: then the status is 200, with the same answer."""
    media: str = JSON
    """Of the answer; of events the answer is a list of them."""
    line: type[BaseModel] | None = None
    """What a line is where the body may be NDJSON: each is answered by a line, with an answer of its own."""
    query: tuple[Query, ...] = ()
    problems: tuple[int, ...] = ()


def install(app: Flask, engine: Engine, operations: tuple[Operation, ...]) -> None:
    for operation in operations:
        rule, endpoint = operation.path.replace("{", "<").replace("}", ">"), f"{operation.method} {operation.path}"
        view = partial(_answer, operation, engine)
        app.add_url_rule(rule, endpoint, view, methods=[operation.method])
        if operation.status == 101:  # werkzeug keeps handshakes apart from requests
            app.add_url_rule(rule, endpoint, view, methods=[operation.method], websocket=True)


def _answer(operation: Operation, engine: Engine, **parameters: str) -> Response:
    accepted = {query.name for query in operation.query if query.place == "query"}
    if unknown := sorted(set(request.args) - accepted):
        message = f"no such parameter; the parameters are: {', '.join(sorted(accepted)) or 'none'}"
        raise InvalidInputError(*(Fault(name[:100], message) for name in unknown))
    return operation.view(engine, **parameters)


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode_by_turns(content), status, headers, content_type=JSON)
