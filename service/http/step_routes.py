"""The routes that advance sessions: by a body of JSON, by lines as they come, and many sessions at once."""

from flask import Response, request

from onward.service.engine.engine import Engine
from onward.service.errors import Fault, InvalidInputError
from onward.service.http import ndjson, request_body, request_schemas, response_schemas, steps
from onward.service.http.connection import client
from onward.service.http.operations import NDJSON, Operation, Query


def step(engine: Engine, session_id: str, model: str = "") -> Response:
    """model: creates the session on it where there is none."""
    steps.checked(session_id)
    if request.mimetype == NDJSON:
        return ndjson.reply(engine, session_id, model)
    if request.args:
        raise InvalidInputError(Fault("step", "a body says it; the parameter is of NDJSON"))
    return steps.reply(engine, session_id, request_body.body(), client(), model).response()


def step_many(engine: Engine) -> Response:
    return steps.reply(engine, None, request_body.body(), client()).response()


OPERATIONS = (
    Operation(
        "step_session", "POST", "/v1/sessions/{session_id}/steps",
        step, "Advance a session by all of the inputs, or not at all",
        response_schemas.StepAnswer, body=request_schemas.Step, line=request_schemas.Line,
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503, 507),
        query=(Query("step", int, "of NDJSON: the step that the session is believed to have reached"),),
    ),
    Operation(
        "step_or_create_session", "POST", "/v1/models/{model}/sessions/{session_id}/steps",
        step, "Advance a session as the operation above; the first step creates it, on the newest version of the model",
        response_schemas.StepAnswer, body=request_schemas.Step, line=request_schemas.Line, status=201, confirms=True,
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503, 507),
        query=(Query("step", int, "of NDJSON: the step that the session is believed to have reached"),),
    ),
    Operation(
        "step_sessions", "POST", "/v1/steps",
        step_many, "Advance many sessions, each by itself, with a status for each",
        response_schemas.BulkAnswer, body=request_schemas.Bulk, problems=(400, 413, 415, 422, 503),
    ),
)  # fmt: skip
