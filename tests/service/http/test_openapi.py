"""The OpenAPI document is valid, is complete and describes the responses of the service."""

import json
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import validate

from onward.model.repository import open_all
from onward.service.app import OPERATIONS, create_app
from onward.service.engine.engine import Engine, Limits
from onward.service.http import openapi, response_schemas
from onward.service.http.sse import MEDIA_TYPE
from onward.service.settings import Settings
from onward.service.store.lmdb import LmdbStore
from onward.service.store.signed_tokens import SignedTokens
from tests.helpers import sse_reader
from tests.helpers.recorded_bundles import make_bundle
from tests.helpers.reference_loop import ZOO


@pytest.fixture
def app(tmp_path: Path) -> Any:
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(history=5), seal=SignedTokens(["0123456789abcdef" * 2]))
    engine.start()
    yield create_app(Settings(), engine)
    engine.close()


def test_the_document_is_valid() -> None:
    """The validator of the specification accepts the document."""
    validate(openapi.document(OPERATIONS))


def test_the_document_has_every_route(app: Flask) -> None:
    """The paths of the document are the routes of Flask, no more and no fewer."""
    rules = {
        (str(rule).replace("<", "{").replace(">", "}"), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    document = json.loads(app.test_client().get("/openapi.json").data)
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert rules - {("/openapi.json", "get")} == described


def test_responses_match_their_schemas(app: Flask) -> None:
    """The response of each operation matches the schema of the document, without additional keys."""
    client = app.test_client()
    responses = {
        "GET /": client.get("/"),
        "GET /healthz": client.get("/healthz"),
        "GET /readyz": client.get("/readyz"),
        "GET /v1/models": client.get("/v1/models"),
        "GET /v1/models/{model}": client.get("/v1/models/weather"),
        "POST /v1/models/{model}/predict": client.post(
            "/v1/models/pulse/predict", json={"inputs": [[1.0]], "horizon": 2}
        ),
        "POST /v1/models/{model}/step": client.post("/v1/models/pulse/step", json={"inputs": [[1.0]]}),
        "POST /v1/models/{model}/sessions": client.post("/v1/models/pulse/sessions", json={"session_id": "s"}),
        "PUT /v1/models/{model}/sessions/{session_id}": client.put("/v1/models/pulse/sessions/ensured"),
        "POST /v1/models/{model}/sessions/{session_id}/steps": client.post(
            "/v1/models/pulse/sessions/stepped/steps", json={"inputs": [1.0]}
        ),
        "GET /v1/sessions": client.get("/v1/sessions"),
        "GET /v1/sessions/{session_id}": client.get("/v1/sessions/s"),
        "POST /v1/sessions/{session_id}/fork": client.post("/v1/sessions/s/fork"),
        "POST /v1/sessions/{session_id}/rewind": client.post("/v1/sessions/s/rewind", json={"step": 0}),
        "POST /v1/sessions/{session_id}/migrate": client.post("/v1/sessions/s/migrate"),
        "GET /v1/sessions/{session_id}/state": (state := client.get("/v1/sessions/s/state")),
        "PUT /v1/sessions/{session_id}/state": client.put("/v1/sessions/t/state", json=state.json),
        "POST /v1/sessions/{session_id}/steps": client.post("/v1/sessions/s/steps", json={"inputs": [1.0]}),
        "POST /v1/steps": client.post(
            "/v1/steps", json={"items": [{"session_id": name, "inputs": [1.0]} for name in "su"]}
        ),
        "POST /v1/sessions/{session_id}/forecast": client.post("/v1/sessions/s/forecast", json={"horizon": 2}),
        "POST /v1/sessions/{session_id}/generate": client.post("/v1/sessions/s/generate", json={"horizon": 2}),
        "DELETE /v1/sessions": client.delete("/v1/sessions?prefix=s&idle_s=0"),
    }
    described = {
        f"{operation.method} {operation.path}": operation for operation in OPERATIONS if operation.answer is not None
    }
    assert set(described) == set(responses)
    for name, operation in described.items():
        response = responses[name]
        assert response.status_code == operation.status, response.text
        assert operation.answer is not None
        assert response.mimetype == operation.media
        content = sse_reader.fields_of(response.text) if operation.media == MEDIA_TYPE else response.json
        operation.answer.model_validate(content)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("DELETE", "/v1/sessions", None, 422, "expected model, prefix or idle_s"),
        ("DELETE", "/v1/sessions?idle_s=-1", None, 422, "expected a number of seconds"),
        ("DELETE", "/v1/sessions?idle_s=nan", None, 422, "expected a number of seconds"),
        ("DELETE", "/v1/sessions?prefix=a/b", None, 422, "letters, digits"),
        ("DELETE", "/v1/sessions?modle=pulse", None, 422, "no such parameter"),
        ("POST", "/v1/sessions/s/fork", {"session_id": "s"}, 409, "is alive"),
        ("POST", "/v1/sessions/s/fork", {"session_id": "no/id"}, 422, "session_id"),
        ("POST", "/v1/sessions/none/fork", {}, 404, "none"),
        ("POST", "/v1/sessions/s/rewind", {"step": 1}, 422, "has not been at 1"),
        ("POST", "/v1/sessions/s/rewind", {"step": -1}, 422, "step"),
        ("POST", "/v1/sessions/s/migrate", {"version": 7}, 404, "7"),
        ("PUT", "/v1/sessions/t/state", {"state": "***"}, 422, "not base64"),
        ("PUT", "/v1/sessions/t/state", {"state": "AAAA"}, 422, "secret has signed"),
        ("PUT", "/v1/sessions/t/state", {}, 422, "state"),
        ("POST", "/v1/models/pulse/step", {"inputs": [[1]], "state": "x"}, 422, "not a state"),
        ("POST", "/v1/models/pulse/step", {"inputs": [["a"]]}, 422, "not a number"),
        ("POST", "/v1/models/none/step", {"inputs": [[1]]}, 404, "none"),
    ],
)
def test_invalid_requests_are_refused_with_a_reason(
    app: Flask, method: str, path: str, body: dict[str, Any] | None, status: int, message: str
) -> None:
    """The problem names the reason, and no session is created, advanced or ended."""
    client = app.test_client()
    client.post("/v1/models/pulse/sessions", json={"session_id": "s"})
    before = client.get("/v1/sessions").json
    response = client.open(path, method=method, json=body)
    assert (response.status_code, response.content_type) == (status, "application/problem+json"), response.text
    assert message in response.text
    assert client.get("/v1/sessions").json == before


@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_every_head_is_served_as_described(tmp_path: Path, head: str) -> None:
    """Steps, forecasts and stateless predictions of each head match the schemas of the document."""
    make_bundle(tmp_path / "models", name="m", head=head, features=("x", "y"))
    engine = Engine(open_all(tmp_path / "models"), LmdbStore(tmp_path / "store"), Limits())
    engine.start()
    client = create_app(Settings(), engine).test_client()
    inputs = [[10.0, 20.0], [11.0, 19.0]]
    created = client.post("/v1/models/m/sessions", json={"session_id": "s", "inputs": inputs})
    response_schemas.CreatedSession.model_validate_json(created.data)
    step = response_schemas.StepAnswer.model_validate_json(
        client.post("/v1/sessions/s/steps", json={"inputs": inputs}).data
    )
    assert step.step == 4
    assert all(len(rows) == 2 for rows in step.predictions.values())
    assert step.error is not None
    assert step.interval is None
    client.post("/v1/models/m/sessions", json={"session_id": "t", "interval": 0.5})
    for names in (["s", "t"], ["t", "s"], ["t"]):
        body = {"session_ids": names, "inputs": [inputs[:1]] * len(names)}
        columns = response_schemas.ColumnsAnswer.model_validate_json(client.post("/v1/steps", json=body).data)
        assert columns.statuses == [200] * len(names)
        assert columns.interval is not None
        assert [bounds is None for bounds in columns.interval.low] == [name == "s" for name in names]
        assert all(len(rows[0]) == 2 for rows in columns.error if rows)
    session = response_schemas.SessionDetail.model_validate_json(client.get("/v1/sessions/t").data)
    assert session.accuracy is not None
    assert (session.accuracy["y"].inputs, session.interval and session.interval.wanted) == (3, 0.5)
    refused = client.post("/v1/models/m/sessions", json={"interval": 0.4})
    assert (refused.status_code, refused.json["errors"][0]["field"]) == (422, "interval")  # type: ignore[index]
    forecast = client.post("/v1/sessions/s/forecast", json={"horizon": 3})
    (centre,) = response_schemas.ForecastAnswer.model_validate_json(forecast.data).forecast.values()
    assert len(centre) == 3
    predicted = client.post("/v1/models/m/predict", json={"inputs": [inputs], "horizon": 1})
    response_schemas.PredictAnswer.model_validate_json(predicted.data)
    detail = response_schemas.ModelDetail.model_validate_json(client.get("/v1/models/m").data)
    assert detail.head["kind"] == head
    assert detail.head["levels"] == ([0.1, 0.5, 0.9] if head == "quantiles" else [])
    engine.close()


def test_ndjson_is_described(app: Flask) -> None:
    """The document lists NDJSON beside JSON, and each line of a response matches the schema."""
    client = app.test_client()
    client.post("/v1/models/pulse/sessions", json={"session_id": "lines"})
    response = client.post("/v1/sessions/lines/steps", data="1\n[2]\n", content_type="application/x-ndjson")
    operation = json.loads(client.get("/openapi.json").data)["paths"]["/v1/sessions/{session_id}/steps"]["post"]
    for content in (operation["requestBody"]["content"], operation["responses"]["200"]["content"]):
        assert set(content) == {"application/json", response.mimetype}
    lines = response.text.splitlines()
    assert len(lines) == 2
    for line in lines:
        response_schemas.StepAnswer.model_validate_json(line)


@pytest.mark.parametrize(
    ("model", "body", "names"),
    [
        ("pulse", {"horizon": 2}, ["message", "message", "done"]),
        ("characters", {"horizon": 1, "logprobs": 2}, ["message", "done"]),
    ],
)
def test_events_match_their_schemas(app: Flask, model: str, body: dict[str, Any], names: list[str]) -> None:
    """JSON Schema alone, as clients in other languages use it, accepts each event and the JSON in its `data`."""
    client = app.test_client()
    client.post(f"/v1/models/{model}/sessions", json={"session_id": "drawn"})
    response = client.post("/v1/sessions/drawn/generate", json=body)
    document = json.loads(client.get("/openapi.json").data)
    described = document["paths"]["/v1/sessions/{session_id}/generate"]["post"]["responses"]["200"]["content"]
    schema = described["text/event-stream"]["schema"] | {"components": document["components"]}
    events = sse_reader.fields_of(response.text)
    assert [event.get("event", "message") for event in events] == names
    Draft202012Validator(schema).validate(events)
    schemas = document["components"]["schemas"]
    for event, name in zip(events, names, strict=True):
        data = schemas[{"message": "StepEvent", "done": "DoneEvent"}[name]]["properties"]["data"]
        assert data["contentMediaType"] == "application/json"
        content = Draft202012Validator(data["contentSchema"] | {"components": document["components"]})
        content.validate(json.loads(event["data"]))
        assert not content.is_valid({"ahead": "1"})
