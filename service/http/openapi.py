"""GET /openapi.json: the OpenAPI 3.1 document, made from the operations and their pydantic models."""

from functools import cache
from importlib.metadata import version
from typing import Any

import orjson
from flask import Flask, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from onward.service.http.operations import NDJSON, Operation
from onward.service.http.problems import ALL, MEDIA_TYPE
from onward.service.http.response_schemas import Problem

_REF = "#/components/schemas/{model}"

ANYWHERE = (400, 414, 431)
"""The statuses of requests that are refused for their head alone, in any operation."""
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def install(app: Flask, operations: tuple[Operation, ...]) -> None:
    @cache  # made on the first request, so that a worker starts sooner
    def data() -> bytes:
        return orjson.dumps(document(operations))

    app.add_url_rule("/openapi.json", "openapi", lambda: Response(data(), content_type="application/json"))


def document(operations: tuple[Operation, ...]) -> dict[str, Any]:
    used = (form for operation in operations for form in (operation.body, operation.answer, operation.line))
    forms = {form for form in used if form} | {Problem}
    refs, definitions = models_json_schema(
        [(form, "validation") for form in sorted(forms, key=lambda form: form.__name__)], ref_template=_REF
    )
    schemas = {form: refs[form, "validation"] for form in forms}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Onward",
            "version": version("onward"),
            "description": "Recurrent models served with their memory. Errors are RFC 9457 problems of these types: "
            + ", ".join(sorted(problem_type.type for problem_type in ALL)),
        },
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _operation(operation: Operation, schemas: dict[type[BaseModel], dict[str, Any]]) -> dict[str, Any]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    parameters += [
        {
            "name": query.name,
            "in": query.location,
            "description": query.description,
            "schema": {"type": _TYPES[query.kind]},
        }
        for query in operation.query
    ]
    answers: dict[str, Any] = {str(operation.status): {"description": operation.summary}}
    if operation.answer is not None:
        answers[str(operation.status)]["content"] = {operation.media: {"schema": schemas[operation.answer]}}
    if operation.confirms:
        answers["200"] = answers[str(operation.status)]
    for status in sorted({*operation.problems, *ANYWHERE}):
        answers[str(status)] = {
            "description": ", ".join(problem_type.name for problem_type in ALL if problem_type.status == status),
            "content": {MEDIA_TYPE: {"schema": schemas[Problem]}},
        }
    description: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": answers,
    }
    if operation.body is not None:
        content = {"application/json": {"schema": schemas[operation.body]}}
        if operation.line is not None:
            content[NDJSON] = {"schema": schemas[operation.line]}
            answers[str(operation.status)]["content"][NDJSON] = {"schema": schemas[operation.answer or Problem]}
        description["requestBody"] = {"required": not operation.body_optional, "content": content}
    return description
