"""Parses the bodies of requests that advance sessions: a step of one session, or steps of many.

Nearly every body has the plain form, which orjson alone parses. Any other body is left to pydantic, which accepts or
refuses it by the definitions in `request_schemas`.
"""

import re
from typing import Any, TypeGuard

import orjson

from onward.service.engine.batching.batch_row import StepRequest
from onward.service.engine.engine import Limits
from onward.service.engine.event_loop import in_loop_turns
from onward.service.errors import Fault, InvalidInputError
from onward.service.http import json_parsing, request_schemas

_PLAIN_ID = re.compile(request_schemas.SESSION_ID).fullmatch
_PLAIN_MODEL = re.compile(request_schemas.MODEL_NAME).fullmatch
_PLAIN_REQUEST_ID = re.compile(request_schemas.REQUEST_ID).fullmatch


def parse_step(session_id: str, data: bytes, limits: Limits, model: str = "") -> StepRequest:
    """The step request of a body. Raises RequestError, InvalidInputError, ValidationError."""
    is_short = len(data) <= json_parsing.PIECE
    content = json_or_none(data) if is_short else json_parsing.parsed(data, limits)
    plain = _plain(content, session_id, model)
    if plain is None:
        body = (
            json_parsing.validated(request_schemas.Step, data, limits)
            if is_short
            else request_schemas.Step.model_validate(content)
        )
        return StepRequest(session_id, body.inputs, body.step, body.request_id or "", model)
    if is_short and not _is_each_key_once(data, len(content), plain):
        json_parsing.parsed(data, limits)  # raises an error that names the repeated key, if a key is repeated
    return plain


def plain_step(session_id: str, data: bytes, model: str = "") -> StepRequest | None:
    """The step request of a short body in the plain form; None if `parse_step` must read the body."""
    if len(data) > json_parsing.PIECE:
        return None
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if data.count(b'"') == 2 and type(content) is dict and "inputs" in content:  # the one key, and no text
        inputs = content["inputs"]
        return StepRequest(session_id, inputs, None, "", model) if request_schemas.plain_inputs(inputs) else None
    plain = _plain(content, session_id, model)
    return plain if plain is not None and _is_each_key_once(data, len(content), plain) else None


def _is_each_key_once(data: bytes, keys: int, request: StepRequest) -> bool:
    """True if the number of quotes in the data proves that no key is repeated: each key and each text has two quotes.

    keys: the keys of the parsed object. False if a quote is escaped, although no key may be repeated.
    """
    texts = keys + (request.request_id != "")
    quotes = data.count(b'"')
    return quotes == 2 * texts or quotes == 2 * (texts + request_schemas.texts_in(request.inputs))


def json_or_none(data: bytes) -> Any:
    """The parsed JSON; None if the data is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _plain(content: Any, session_id: str | None = None, model: str = "") -> StepRequest | None:
    """The step request of content in the plain form: only defined keys, and inputs that are lists of values.

    None for any other content. session_id, model: the session and the model to create it on; if the session id is None,
    the content names both.
    """
    if type(content) is not dict:
        return None
    inputs: Any = content.get("inputs")
    if not request_schemas.plain_inputs(inputs):
        return None
    defined = 1
    if session_id is None:
        session_id, defined = content.get("session_id"), 2 + ("model" in content)
        model = content.get("model", "")
        if not _is_plain_id(session_id) or not (defined == 2 or _is_plain_model(model)):
            return None
    if len(content) == defined:
        return StepRequest(session_id, inputs, None, "", model)
    step, request_id = content.get("step"), content.get("request_id")
    defined += ("step" in content) + ("request_id" in content)
    if len(content) != defined or not _is_plain_step(step) or not _is_plain_request_id(request_id):
        return None
    return StepRequest(session_id, inputs, step, request_id or "", model)


def _is_plain_model(name: Any) -> TypeGuard[str]:
    return type(name) is str and _PLAIN_MODEL(name) is not None


def _is_plain_id(name: Any) -> TypeGuard[str]:
    return type(name) is str and _PLAIN_ID(name) is not None


def _is_plain_step(step: Any) -> bool:
    return step is None or (type(step) is int and 0 <= step < 2**63)


def _is_plain_request_id(name: Any) -> bool:
    return name is None or (type(name) is str and _PLAIN_REQUEST_ID(name) is not None)


def parse_steps(data: bytes, limits: Limits) -> tuple[list[StepRequest], bool]:
    """The step requests of a body for many sessions, and whether the body is in columns.

    Raises RequestError, InvalidInputError, ValidationError.
    """
    content = json_parsing.parsed(data, limits, request_schemas.Many)
    is_columns = type(content) is dict and "session_ids" in content
    plain = _plain_columns(content) if is_columns else _plain_items(content)
    if plain is not None:
        return plain, is_columns
    if is_columns:
        body = request_schemas.Columns.model_validate(content)
        count = len(body.session_ids)
        faults = [
            Fault(name, f"has {len(column)} entries, session_ids {count}")
            for name in ("inputs", "steps", "request_ids", "models")
            if (column := getattr(body, name)) is not None and len(column) != count
        ]
        if faults:
            raise InvalidInputError(*faults)
        empty = [None] * count
        optional = (column or empty for column in (body.steps, body.request_ids, body.models))
        rows = zip(body.session_ids, body.inputs, *optional, strict=True)
        return [
            StepRequest(name, inputs, step, key or "", model or "") for name, inputs, step, key, model in rows
        ], True
    items = request_schemas.Many.model_validate(content).items
    return [
        StepRequest(item.session_id, item.inputs, item.step, item.request_id or "", item.model or "") for item in items
    ], False


def _plain_items(content: Any) -> list[StepRequest] | None:
    if type(content) is not dict or content.keys() != {"items"} or type(items := content["items"]) is not list:
        return None
    if not 0 < len(items) <= request_schemas.MOST_ITEMS:
        return None
    plain = [request for request in map(_plain, in_loop_turns(items)) if request is not None]
    return plain if len(plain) == len(items) else None


_COLUMNS = {
    "session_ids": _is_plain_id,
    "inputs": request_schemas.plain_inputs,
    "steps": _is_plain_step,
    "request_ids": _is_plain_request_id,
    "models": lambda name: name is None or _is_plain_model(name),
}


def _plain_columns(content: dict[str, Any]) -> list[StepRequest] | None:
    names, inputs, *optional = map(content.get, _COLUMNS)
    if (
        not content.keys() <= _COLUMNS.keys()
        or type(names) is not list
        or type(inputs) is not list
        or not 0 < len(names) <= request_schemas.MOST_ITEMS
    ):
        return None
    columns: list[list[Any]] = [names, inputs]
    for column in optional:
        if column is not None and (type(column) is not list or len(column) != len(names)):
            return None
        columns.append([None] * len(names) if column is None else column)
    for column, given, is_plain in zip(columns, (names, inputs, *optional), _COLUMNS.values(), strict=True):
        if given is not None and not (len(column) == len(names) and all(map(is_plain, in_loop_turns(column)))):
            return None
    _, _, steps, request_ids, models = columns
    texts = ([name or "" for name in column] for column in (request_ids, models))
    return list(map(StepRequest, names, inputs, steps, *texts))
