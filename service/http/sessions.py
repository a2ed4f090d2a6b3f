"""/v1/sessions: creates, lists, shows, changes, transfers and deletes sessions."""

import re
from base64 import b64decode, b64encode
from typing import Any

from flask import Response, request

from onward.model.listed_rankings import require_listed
from onward.model.outputs import dtype_field, readable_outputs
from onward.service.engine.batching.batch_row import StepResult
from onward.service.engine.engine import Engine
from onward.service.engine.input_parsing import as_service_errors
from onward.service.engine.sessions.lifecycle import Session, SessionFilter
from onward.service.errors import Fault, InvalidInputError
from onward.service.http import request_body, request_schemas, response_schemas
from onward.service.http.connection import client
from onward.service.http.operations import LISTED_ONLY, Operation, Query, json, wants_listed_only
from onward.service.http.reply import Empty
from onward.service.http.session_ids import TENANT, checked
from onward.service.http.times import iso

PAGE, LARGEST_PAGE = 100, 1000


def create(engine: Engine, model: str) -> Response:
    body = request_body.read(request_schemas.CreateSession, engine, optional=True)
    listed_only = _wants_listed_only(engine, model, body.version)
    session, result = engine.create(
        TENANT,
        model,
        version=body.version,
        session_id=body.session_id,
        ttl_s=body.ttl_s,
        inputs=body.inputs,
        interval=body.interval,
        anomaly=body.anomaly,
        has_left=client(),
    )
    return _created(session, result.listed() if listed_only else result)


def ensure(engine: Engine, model: str, session_id: str) -> Response:
    checked(session_id)
    body = request_body.read(request_schemas.EnsureSession, engine, optional=True)
    listed_only = _wants_listed_only(engine, model, body.version)
    session, result = engine.ensure(
        TENANT,
        model,
        session_id,
        version=body.version,
        ttl_s=body.ttl_s,
        inputs=body.inputs,
        interval=body.interval,
        anomaly=body.anomaly,
        has_left=client(),
    )
    return _created(session, result.listed() if listed_only else result)


def _wants_listed_only(engine: Engine, model: str, version: int | None) -> bool:
    """True if the request asks for rankings of listed categories only. Raises InvalidInputError if the model has none,
    before a session is created.
    """
    listed_only = wants_listed_only()
    if listed_only:
        with as_service_errors():
            require_listed(engine.models.named(model, version))
    return listed_only


def _created(session: Session, result: StepResult) -> Response:
    """The session with its last prediction: status 201 if it was created, 200 if it existed."""
    last = {
        name: rows[0]
        for name, rows in readable_outputs(result.model, result.outputs, result.model.manifest.head.last).items()
    }
    headers = {"Location": f"/v1/sessions/{session.session_id}"}
    content = _info(session) | {"prediction": last} | dtype_field(result.model)
    return json(content, 201 if result.created else 200, headers)


def index(engine: Engine) -> Response:
    limit = request.args.get("limit", str(PAGE))
    if not limit.isdecimal() or not 1 <= int(limit) <= LARGEST_PAGE:
        raise InvalidInputError(Fault("limit", f"expected a whole number from 1 to {LARGEST_PAGE}"))
    after = request.args.get("after", "")
    page, last = engine.sessions.page(TENANT, after and checked(after, "after"), int(limit), request.args.get("model"))
    return json({"sessions": [_info(session) for session in page], "after": last})


def show(engine: Engine, session_id: str) -> Response:
    session = engine.sessions.get(TENANT, checked(session_id))
    targets, interval = engine.accuracy(session.record)
    accuracy = None if targets is None else {target: scores.fields() for target, scores in targets.items()}
    detail = {
        "accuracy": accuracy,
        "interval": interval and interval._asdict(),
        "anomaly": engine.anomaly_kind(session.record),
    }
    return json(_info(session) | detail)


def delete(engine: Engine, session_id: str) -> Response:
    engine.sessions.delete(TENANT, checked(session_id))
    return Empty(status=204)


def delete_many(engine: Engine) -> Response:
    chosen = {name: value for name in ("model", "prefix", "idle_s") if (value := request.args.get(name)) is not None}
    if not chosen:
        message = "expected model, prefix or idle_s, or several of them, to choose sessions; prefix= alone chooses all"
        raise InvalidInputError(Fault("prefix", message))
    prefix = chosen.get("prefix", "")
    ended, more = engine.sessions.delete_many(
        TENANT,
        SessionFilter(chosen.get("model"), prefix and checked(prefix, "prefix"), _seconds(chosen.get("idle_s", "0"))),
    )
    return json({"ended": ended, "more": more})


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text):
        raise InvalidInputError(Fault("idle_s", "expected a number of seconds, such as 3600"))
    return float(text)


def fork(engine: Engine, session_id: str) -> Response:
    body = request_body.read(request_schemas.ForkSession, engine, optional=True)
    return _new_session(engine.sessions.fork(TENANT, checked(session_id), body.session_id, body.ttl_s))


def export(engine: Engine, session_id: str) -> Response:
    session, signed = engine.transfer.export(TENANT, checked(session_id))
    ref = session.record.ref
    summary = {"model": ref.model, "version": ref.version, "step": session.record.step}
    return json(summary | {"state": b64encode(signed).decode()})


def restore(engine: Engine, session_id: str) -> Response:
    checked(session_id)
    body = request_body.read(request_schemas.Exported, engine)
    try:
        signed = b64decode(body.state, validate=True)
    except ValueError:
        raise InvalidInputError(Fault("state", "not base64")) from None
    return _new_session(engine.transfer.restore(TENANT, session_id, signed))


def rewind(engine: Engine, session_id: str) -> Response:
    checked(session_id)
    return json(
        _info(
            engine.history.rewind(
                TENANT, session_id, request_body.read(request_schemas.Rewind, engine).step, has_left=client()
            )
        )
    )


def migrate(engine: Engine, session_id: str) -> Response:
    checked(session_id)
    body = request_body.read(request_schemas.Migrate, engine, optional=True)
    session, replayed = engine.history.migrate(TENANT, session_id, body.version, has_left=client())
    return json(_info(session) | {"replayed": replayed})


def _new_session(session: Session) -> Response:
    return json(_info(session), 201, {"Location": f"/v1/sessions/{session.session_id}"})


def _info(session: Session) -> dict[str, Any]:
    record = session.record
    count, mean, recent = record.surprise
    return {
        "session_id": session.session_id,
        "model": record.ref.model,
        "version": record.ref.version,
        "step": record.step,
        "created_at": iso(record.created_at),
        "last_step_at": iso(record.last_step_at),
        "expires_at": iso(record.expires_at),
        "ttl_s": record.ttl_s,
        "surprise": {"count": count, "mean": mean, "recent": recent} if count else None,
    }


OPERATIONS = (
    Operation(
        "create_session", "POST", "/v1/models/{model}/sessions",
        create, "Begin a session; inputs seed its state", response_schemas.CreatedSession,
        body=request_schemas.CreateSession, body_optional=True, status=201, query=(LISTED_ONLY,),
        problems=(400, 404, 409, 413, 415, 422, 503, 507),
    ),
    Operation(
        "ensure_session", "PUT", "/v1/models/{model}/sessions/{session_id}",
        ensure, "Begin the session where there is none, or confirm the living one", response_schemas.CreatedSession,
        body=request_schemas.EnsureSession, body_optional=True, status=201, confirms=True, query=(LISTED_ONLY,),
        problems=(400, 404, 409, 413, 415, 422, 500, 503, 507),
    ),
    Operation(
        "list_sessions", "GET", "/v1/sessions",
        index, "The living sessions, by page", response_schemas.SessionList, problems=(422, 503),
        query=(
            Query("model", str, "only sessions of this model"),
            Query("after", str, "the id after which the page begins"),
            Query("limit", int, f"at most {LARGEST_PAGE}, {PAGE} if left out"),
        ),
    ),
    Operation(
        "get_session", "GET", "/v1/sessions/{session_id}", show, "One session: model, step, times, surprise, accuracy",
        response_schemas.SessionDetail,
        problems=(404, 410, 422, 500, 503),
    ),
    Operation(
        "delete_session", "DELETE", "/v1/sessions/{session_id}", delete, "End a session", None, status=204,
        problems=(404, 410, 422, 500, 503, 507),
    ),
    Operation(
        "delete_sessions", "DELETE", "/v1/sessions",
        delete_many, "End the sessions that are chosen, up to 10,000 a call",
        response_schemas.EndedSessions, problems=(422, 503, 507),
        query=(
            Query("model", str, "only sessions of this model"),
            Query("prefix", str, "only sessions whose id begins with this"),
            Query("idle_s", float, "only sessions without a step for at least this many seconds"),
        ),
    ),
    Operation(
        "fork_session", "POST", "/v1/sessions/{session_id}/fork",
        fork, "A session of its own in the same state", response_schemas.SessionInfo,
        body=request_schemas.ForkSession, body_optional=True, status=201,
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503, 507),
    ),
    Operation(
        "rewind_session", "POST", "/v1/sessions/{session_id}/rewind",
        rewind, "Take the session back to an earlier step",
        response_schemas.SessionInfo, body=request_schemas.Rewind,
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503, 507),
    ),
    Operation(
        "migrate_session", "POST", "/v1/sessions/{session_id}/migrate",
        migrate, "Move the session to another version of its model",
        response_schemas.MigratedSession, body=request_schemas.Migrate, body_optional=True,
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503, 507),
    ),
    Operation(
        "export_session", "GET", "/v1/sessions/{session_id}/state",
        export, "The session's record, signed, to carry elsewhere",
        request_schemas.Exported, problems=(404, 410, 422, 500, 501, 503),
    ),
    Operation(
        "restore_session", "PUT", "/v1/sessions/{session_id}/state",
        restore, "Begin a session with a record that was carried here",
        response_schemas.SessionInfo, body=request_schemas.Exported, status=201,
        problems=(400, 409, 413, 415, 422, 500, 501, 503, 507),
    ),
)  # fmt: skip
