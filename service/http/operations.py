"""An operation: one method on one path, with what goes in and out. Routes and OpenAPI are made of these."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from flask import Flask, Response, request
from pydantic import BaseModel

from model.answers import said
from model.runner import Outputs, StepModel
from service.engine.engine import Engine
from service.errors import Fault, InvalidInputError
from service.http.reply import JSON, encode


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter, for the document; the view reads it itself."""

    name: str
    kind: type[int] | type[str] | type[float]
    description: str


@dataclass(frozen=True, slots=True)
class Operation:
    """`path` in OpenAPI's writing, `/v1/sessions/{session_id}`; `view` takes the engine and the path's parameters."""

    method: str
    path: str
    view: Callable[..., Response]
    summary: str
    answer: type[BaseModel] | None
    body: type[BaseModel] | None = None
    body_optional: bool = False
    status: int = 200
    query: tuple[Query, ...] = ()
    problems: tuple[int, ...] = ()


def install(app: Flask, engine: Engine, operations: tuple[Operation, ...]) -> None:
    for operation in operations:
        rule = operation.path.replace("{", "<").replace("}", ">")
        app.add_url_rule(
            rule,
            endpoint=f"{operation.method} {operation.path}",
            view_func=partial(_answer, operation, engine),
            methods=[operation.method],
        )


def _answer(operation: Operation, engine: Engine, **parameters: str) -> Response:
    known = {query.name for query in operation.query}
    if unknown := sorted(set(request.args) - known):
        message = f"no such parameter; there is {', '.join(sorted(known)) or 'none'}"
        raise InvalidInputError(*(Fault(name[:100], message) for name in unknown))
    return operation.view(engine, **parameters)


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(content), status, headers, content_type=JSON)


def rows(model: StepModel, outputs: Outputs) -> dict[str, Any]:
    """`predictions` and `surprise` of outputs (steps,)."""
    head = model.manifest.head
    told: dict[str, Any] = {"predictions": said(model, outputs, head.outputs)}
    if head.surprise is not None:
        told["surprise"] = np.ascontiguousarray(outputs[head.surprise])
    return told


def rolled(model: StepModel, outputs: Outputs) -> dict[str, Any]:
    """A forecast (horizon,): what was fed back, and nothing that holds for one step ahead only."""
    head = model.manifest.head
    told = said(model, outputs, head.outputs[:1])
    return {name: [row[:1] for row in rows] for name, rows in told.items()} if head.ranks else told
