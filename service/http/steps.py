"""The requests that advance sessions: one session's, and many sessions' in one call.

From bytes to a Reply, so that Flask's views and the fast path answer with the same code. A body in the plain form, as
nearly every one is, is read by orjson alone. Whatever is not plainly right is left to pydantic, which takes or refuses
it by the bodies' own definitions.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError

from onward.model.outputs import step_fields
from onward.service.engine.batching.model_call import joined
from onward.service.engine.batching.work_item import StepRequest
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import in_loop_turns
from onward.service.engine.steps import StepResult
from onward.service.errors import Fault, InvalidInputError
from onward.service.http import json_parsing, problems, request_schemas
from onward.service.http.connection import HasLeft
from onward.service.http.reply import Reply, encode_by_turns
from onward.service.http.step_encoding import told, written

TENANT = "public"
"""Whose sessions these are, until keys tell callers apart."""

_SESSION_ID: TypeAdapter[str] = TypeAdapter(request_schemas.SessionId)
_PLAIN_ID = re.compile(request_schemas.SESSION_ID).fullmatch
_PLAIN_MODEL = re.compile(request_schemas.MODEL_NAME).fullmatch
_PLAIN_REQUEST_ID = re.compile(request_schemas.REQUEST_ID).fullmatch


def reply(
    engine: Engine, session_id: str | None, data: bytes, has_left: HasLeft | None = None, model: str = ""
) -> Reply:
    """The response to a body for that session, or, None, for many.

    model: creates the session on it where there is none; empty: the session must exist.
    """
    if session_id is None:
        return _many(engine, data, has_left)
    step = asked(session_id, data, engine.limits, model)
    answer = engine.steps.step(
        TENANT, session_id, step.inputs, step=step.step, request_id=step.request_id, model=model, has_left=has_left
    )
    if answer.created:
        return Reply(201, written(answer), headers=(("Location", f"/v1/sessions/{session_id}"),))
    return Reply(200, written(answer))


def asked(session_id: str, data: bytes, limits: Limits, model: str = "") -> StepRequest:
    """What a body asks for. Raises RequestError, InvalidInputError, ValidationError."""
    is_short = len(data) <= json_parsing.PIECE
    content = loaded(data) if is_short else json_parsing.parsed(data, limits)
    plain = _plain(content, session_id, model)
    if plain is None:
        body = (
            json_parsing.validated(request_schemas.Step, data, limits)
            if is_short
            else request_schemas.Step.model_validate(content)
        )
        return StepRequest(session_id, body.inputs, body.step, body.request_id or "", model)
    if is_short and not _is_each_key_once(data, len(content), plain):
        json_parsing.parsed(data, limits)  # says which is not, if one is not
    return plain


def _is_each_key_once(data: bytes, keys: int, one: StepRequest) -> bool:
    """Whether that is plain from the quotes in the data: two a key, and two a text. keys: how many it has at least."""
    texts = keys + (one.request_id != "")
    quotes = data.count(b'"')
    return quotes == 2 * texts or quotes == 2 * (texts + request_schemas.texts_in(one.inputs))


def loaded(data: bytes) -> Any:
    """What the JSON says; None where it is none."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _plain(content: Any, session_id: str | None = None, model: str = "") -> StepRequest | None:
    """A step in the plain form: known keys, and inputs that are lists of values. None where it is anything else.

    session_id: whose step it is, and the model to create it on; None where the content says so.
    """
    if type(content) is not dict:
        return None
    inputs: Any = content.get("inputs")
    if not request_schemas.plain_inputs(inputs):
        return None
    known = 1
    if session_id is None:
        session_id, known = content.get("session_id"), 2 + ("model" in content)
        model = content.get("model", "")
        if not _is_plain_id(session_id) or not (known == 2 or _is_plain_model(model)):
            return None
    if len(content) == known:
        return StepRequest(session_id, inputs, None, "", model)
    step, request_id = content.get("step"), content.get("request_id")
    known += ("step" in content) + ("request_id" in content)
    if len(content) != known or not _is_plain_step(step) or not _is_plain_request_id(request_id):
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


# Many


def _many(engine: Engine, data: bytes, has_left: HasLeft | None) -> Reply:
    many, columns = _listed(data, engine.limits)
    answers = engine.steps.step_many(TENANT, many, has_left=has_left)
    return Reply(200, encode_by_turns(_columns(answers)) if columns else _items(many, answers))


def _listed(data: bytes, limits: Limits) -> tuple[list[StepRequest], bool]:
    """What is asked for, and whether it was written in columns."""
    content = json_parsing.parsed(data, limits, request_schemas.Many)
    columns = type(content) is dict and "session_ids" in content
    many = _plain_columns(content) if columns else _plain_items(content)
    if many is not None:
        return many, columns
    if columns:
        body = request_schemas.Columns.model_validate(content)
        count = len(body.session_ids)
        faults = [
            Fault(name, f"has {len(column)} entries, session_ids {count}")
            for name in ("inputs", "steps", "request_ids", "models")
            if (column := getattr(body, name)) is not None and len(column) != count
        ]
        if faults:
            raise InvalidInputError(*faults)
        nothing = [None] * count
        optional = (column or nothing for column in (body.steps, body.request_ids, body.models))
        columns_of = zip(body.session_ids, body.inputs, *optional, strict=True)
        return [
            StepRequest(name, inputs, step, key or "", model or "") for name, inputs, step, key, model in columns_of
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
    plain = [asked for asked in map(_plain, in_loop_turns(items)) if asked is not None]
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
    steps, request_ids, models = ([None] * len(names) if column is None else column for column in optional)
    for column, is_plain in zip((names, inputs, steps, request_ids, models), _COLUMNS.values(), strict=True):
        if type(column) is not list or len(column) != len(names) or not all(map(is_plain, in_loop_turns(column))):
            return None
    texts = ([name or "" for name in column] for column in (request_ids, models))
    return list(map(StepRequest, names, inputs, steps, *texts))


def _items(many: Sequence[StepRequest], answers: Sequence[StepResult | Exception]) -> bytes:
    return b'{"items":[' + b",".join(map(_item, in_loop_turns(many), answers)) + b"]}"


def _item(asked: StepRequest, answer: StepResult | Exception) -> bytes:
    name = asked.session_id.encode()  # nothing in it needs escaping
    if isinstance(answer, StepResult):
        return b'{"session_id":"%b","status":%d,%b' % (name, _status(answer), written(answer)[1:])
    problem = _problem(answer)
    return b'{"session_id":"%b","status":%d,"problem":%b}' % (name, problem.status, problem.body)


def _columns(answers: Sequence[StepResult | Exception]) -> dict[str, Any]:
    first = answers[0]
    if isinstance(first, StepResult) and all(
        isinstance(answer, StepResult)
        and answer.model is first.model
        and answer.outputs.dtype is first.outputs.dtype
        and len(answer.outputs) == 1
        for answer in answers
    ):
        alike = [answer for answer in answers if isinstance(answer, StepResult)]
        outputs = step_fields(first.model, joined([answer.outputs for answer in alike])[:, np.newaxis])
        statuses, reached = [_status(answer) for answer in alike], [answer.step for answer in alike]
        return {"statuses": statuses, "steps": reached, **outputs, "problems": {}}
    each = [told(answer) if isinstance(answer, StepResult) else None for answer in in_loop_turns(answers)]
    refused = {
        place: _problem(answer) for place, answer in enumerate(in_loop_turns(answers)) if isinstance(answer, Exception)
    }
    names = sorted({name for one in each if one for name in one["predictions"]})
    return {
        "statuses": [
            _status(each) if isinstance(each, StepResult) else refused[at].status for at, each in enumerate(answers)
        ],
        "steps": [one and one["step"] for one in each],
        "predictions": {name: [one and one["predictions"].get(name) for one in each] for name in names},
        "surprise": [one and one.get("surprise") for one in each],
        **_seen(each),
        "problems": {str(place): orjson.Fragment(problem.body) for place, problem in refused.items()},
    }


def _seen(each: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """What is seen of predictions, in columns, where any session's answer has it."""
    names = [name for name in ("error", "anomaly") if any(one and name in one for one in each)]
    told: dict[str, Any] = {name: [one and one.get(name) for one in each] for name in names}
    bounds = [one and one.get("interval") for one in each]
    if any(bounds):
        told["interval"] = {name: [one and one[name] for one in bounds] for name in ("low", "high")}
    return told


def _status(answer: StepResult) -> int:
    return 201 if answer.created else 200


def _problem(error: Exception) -> Reply:
    return problems.of(error, "POST", "/v1/steps")


def checked(session_id: str, field: str = "session_id") -> str:
    """The id, if one could have it: what no session can be called is the request's fault, not a missing session."""
    try:
        return _SESSION_ID.validate_python(session_id)
    except ValidationError:
        raise InvalidInputError(Fault(field, "expected 1 to 128 letters, digits and . _ ~ : -")) from None
