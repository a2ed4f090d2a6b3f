"""The operations that advance sessions: by a JSON body, by NDJSON lines as they arrive, and many sessions in one call.

`reply` makes a Reply of the bytes of a body, so that Flask's views and the fast path answer with the same code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from flask import Response, request

from onward.model.outputs import step_fields
from onward.service.engine.batching.batch_row import ResultColumns, StepRequest, StepResult
from onward.service.engine.batching.model_call import joined
from onward.service.engine.engine import Engine
from onward.service.engine.event_loop import in_loop_turns
from onward.service.errors import Fault, InvalidInputError
from onward.service.http import ndjson, problems, request_body, request_schemas, response_schemas
from onward.service.http.connection import HasLeft, client
from onward.service.http.operations import LISTED_ONLY, NDJSON, Operation, Query, wants_listed_only
from onward.service.http.reply import Reply, encode_by_turns
from onward.service.http.session_ids import TENANT, checked
from onward.service.http.step_encoding import encode_step, step_content
from onward.service.http.step_requests import parse_step, parse_steps


def step(engine: Engine, session_id: str, model: str = "") -> Response:
    """Advances a session. model: the session is created on it if the session does not exist."""
    checked(session_id)
    if request.mimetype == NDJSON:
        return ndjson.reply(engine, session_id, model)
    if "step" in request.args:
        raise InvalidInputError(Fault("step", "is a field of a JSON body; it is a parameter only of NDJSON"))
    listed_only = wants_listed_only()
    return reply(engine, session_id, request_body.body(), client(), model, listed_only=listed_only).response()


def step_many(engine: Engine) -> Response:
    listed_only = wants_listed_only()
    return reply(engine, None, request_body.body(), client(), listed_only=listed_only).response()


def reply(
    engine: Engine,
    session_id: str | None,
    data: bytes,
    has_left: HasLeft | None = None,
    model: str = "",
    *,
    listed_only: bool = False,
) -> Reply:
    """The response to a body that advances the session, or many sessions if the id is None.

    model: the session is created on it if the session does not exist; if empty, the session must exist. listed_only:
    rankings have listed categories only.
    """
    if session_id is None:
        return _reply_many(engine, data, has_left, listed_only=listed_only)
    step_request = parse_step(session_id, data, engine.limits, model)
    result = engine.steps.step(
        TENANT,
        session_id,
        step_request.inputs,
        step=step_request.step,
        request_id=step_request.request_id,
        model=model,
        listed_only=listed_only,
        has_left=has_left,
    )
    return reply_to(result.listed() if listed_only else result, session_id)


def reply_to(result: StepResult, session_id: str) -> Reply:
    """The response to a step of the session."""
    if result.created:
        return Reply(201, encode_step(result), headers=(("Location", f"/v1/sessions/{session_id}"),))
    return Reply(200, encode_step(result))


def _reply_many(engine: Engine, data: bytes, has_left: HasLeft | None, *, listed_only: bool) -> Reply:
    requests, is_columns = parse_steps(data, engine.limits)
    if listed_only:
        for step_request in requests:
            step_request.listed_only = True
    results = engine.steps.step_many(TENANT, requests, has_left=has_left)
    if listed_only:
        results = [result.listed() if isinstance(result, StepResult) else result for result in in_loop_turns(results)]
    return Reply(200, encode_by_turns(_columns(results)) if is_columns else _items(requests, results))


def _items(requests: Sequence[StepRequest], results: Sequence[StepResult | Exception]) -> bytes:
    return b'{"items":[' + b",".join(map(_item, in_loop_turns(requests), results)) + b"]}"


def _item(step_request: StepRequest, result: StepResult | Exception) -> bytes:
    name = step_request.session_id.encode()  # a valid id needs no escaping
    if isinstance(result, StepResult):
        return b'{"session_id":"%b","status":%d,%b' % (name, _status(result), encode_step(result)[1:])
    problem = _problem(result)
    return b'{"session_id":"%b","status":%d,"problem":%b}' % (name, problem.status, problem.body)


def _columns(results: Sequence[StepResult | Exception]) -> dict[str, Any]:
    """The results in columns, an entry a session.

    If every result is one step of the same model with the same outputs, the rows are joined before they become fields.
    """
    first = results[0]
    if (batch := _batch_of(results)) is not None and isinstance(first, StepResult):
        outputs = step_fields(first.model, batch.outputs[:, np.newaxis])
        return {"statuses": [_status(result) for result in results], "steps": batch.steps, **outputs, "problems": {}}
    if isinstance(first, StepResult) and all(
        isinstance(result, StepResult)
        and result.model is first.model
        and result.outputs.dtype is first.outputs.dtype
        and len(result.outputs) == 1
        for result in results
    ):
        alike = [result for result in results if isinstance(result, StepResult)]
        outputs = step_fields(first.model, joined([result.outputs for result in alike])[:, np.newaxis])
        statuses, reached = [_status(result) for result in alike], [result.step for result in alike]
        return {"statuses": statuses, "steps": reached, **outputs, "problems": {}}
    contents = [step_content(result) if isinstance(result, StepResult) else None for result in in_loop_turns(results)]
    refused = {
        index: _problem(result) for index, result in enumerate(in_loop_turns(results)) if isinstance(result, Exception)
    }
    names = sorted({name for content in contents if content for name in content["predictions"]})
    return {
        "statuses": [
            _status(result) if isinstance(result, StepResult) else refused[index].status
            for index, result in enumerate(results)
        ],
        "steps": [content and content["step"] for content in contents],
        "predictions": {name: [content and content["predictions"].get(name) for content in contents] for name in names},
        "surprise": [content and content.get("surprise") for content in contents],
        **_score_columns(contents),
        **({"dtype": "float64"} if any(content and "dtype" in content for content in contents) else {}),
        "problems": {str(index): orjson.Fragment(problem.body) for index, problem in refused.items()},
    }


def _batch_of(results: Sequence[StepResult | Exception]) -> ResultColumns | None:
    """The columns that a batch has made of these results, in their order; None if they were not made together."""
    batch = results[0].columns if isinstance(results[0], StepResult) else None
    if batch is None or len(batch.steps) != len(results):
        return None
    together = all(
        isinstance(result, StepResult) and result.columns is batch and result.row == row
        for row, result in enumerate(results)
    )
    return batch if together else None


def _score_columns(contents: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """The columns `error`, `anomaly` and `interval`; a column that no session's result has is left out."""
    names = [name for name in ("error", "anomaly") if any(content and name in content for content in contents)]
    columns: dict[str, Any] = {name: [content and content.get(name) for content in contents] for name in names}
    intervals = [content and content.get("interval") for content in contents]
    if any(intervals):
        columns["interval"] = {
            name: [interval and interval[name] for interval in intervals] for name in ("low", "high")
        }
    return columns


def _status(result: StepResult | Exception) -> int:
    return 201 if isinstance(result, StepResult) and result.created else 200


def _problem(error: Exception) -> Reply:
    return problems.of(error, "POST", "/v1/steps")


_STEP_QUERY = (Query("step", int, "of NDJSON: the step that the session is believed to have reached"), LISTED_ONLY)
OPERATIONS = (
    Operation(
        "step_session", "POST", "/v1/sessions/{session_id}/steps",
        step, "Advance a session by all of the inputs, or not at all",
        response_schemas.StepAnswer, body=request_schemas.Step, line=request_schemas.Line,
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503, 507), query=_STEP_QUERY,
    ),
    Operation(
        "step_or_create_session", "POST", "/v1/models/{model}/sessions/{session_id}/steps",
        step, "Advance a session as the operation above; the first step creates it, on the newest version of the model",
        response_schemas.StepAnswer, body=request_schemas.Step, line=request_schemas.Line, status=201, confirms=True,
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503, 507), query=_STEP_QUERY,
    ),
    Operation(
        "step_sessions", "POST", "/v1/steps",
        step_many, "Advance many sessions, each by itself, with a status for each",
        response_schemas.BulkAnswer, body=request_schemas.Bulk, problems=(400, 413, 415, 422, 503),
        query=(LISTED_ONLY,),
    ),
)  # fmt: skip
