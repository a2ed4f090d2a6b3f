"""The OpenAPI document: valid, complete, and true of what the service answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import validate

from model.repository import open_all
from service.app import OPERATIONS, create_app
from service.engine.engine import Engine, Limits
from service.http import bodies, openapi
from service.sessions.lmdb import LmdbStore
from service.settings import Settings
from tests.bundles import make_bundle
from tests.reference import ZOO


@pytest.fixture
def app(tmp_path: Path) -> Any:
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    engine.start()
    yield create_app(Settings(), engine)
    engine.close()


def test_it_is_valid() -> None:
    """By the specification's own validator."""
    validate(openapi.document(OPERATIONS))


def test_it_has_every_route(app: Flask) -> None:
    """No more and no less than Flask's rules."""
    rules = {
        (str(rule).replace("<", "{").replace(">", "}"), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    document = json.loads(app.test_client().get("/openapi.json").data)
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert rules - {("/openapi.json", "get")} == described


def test_answers_are_as_described(app: Flask) -> None:
    """Each operation's real answer has the form that the document promises, extra keys refused."""
    client = app.test_client()
    answers = {
        "/": client.get("/"),
        "/healthz": client.get("/healthz"),
        "/readyz": client.get("/readyz"),
        "/v1/models": client.get("/v1/models"),
        "/v1/models/{model}": client.get("/v1/models/weather"),
        "/v1/models/{model}/predict": client.post("/v1/models/pulse/predict", json={"inputs": [[1.0]], "horizon": 2}),
        "/v1/models/{model}/sessions": client.post("/v1/models/pulse/sessions", json={"session_id": "s"}),
        "/v1/sessions": client.get("/v1/sessions"),
        "/v1/sessions/{session_id}": client.get("/v1/sessions/s"),
        "/v1/sessions/{session_id}/steps": client.post("/v1/sessions/s/steps", json={"inputs": [1.0]}),
        "/v1/steps": client.post("/v1/steps", json={"items": [{"session_id": name, "inputs": [1.0]} for name in "st"]}),
        "/v1/sessions/{session_id}/forecast": client.post("/v1/sessions/s/forecast", json={"horizon": 2}),
    }
    described = [operation for operation in OPERATIONS if operation.answer is not None]
    assert {operation.path for operation in described} == set(answers)
    for operation in described:
        answer = answers[operation.path]
        assert answer.status_code == operation.status, answer.text
        assert operation.answer is not None
        operation.answer.model_validate_json(answer.data)


@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_every_head_is_served_as_described(tmp_path: Path, head: str) -> None:
    """Steps, forecasts and stateless predictions of each head have the forms of the document."""
    make_bundle(tmp_path / "models", name="m", head=head, features=("x", "y"))
    engine = Engine(open_all(tmp_path / "models"), LmdbStore(tmp_path / "store"), Limits())
    engine.start()
    client = create_app(Settings(), engine).test_client()
    inputs = [[10.0, 20.0], [11.0, 19.0]]
    created = client.post("/v1/models/m/sessions", json={"session_id": "s", "inputs": inputs})
    bodies.CreatedSession.model_validate_json(created.data)
    step = bodies.StepAnswer.model_validate_json(client.post("/v1/sessions/s/steps", json={"inputs": inputs}).data)
    assert step.step == 4
    assert all(len(rows) == 2 for rows in step.predictions.values())
    forecast = client.post("/v1/sessions/s/forecast", json={"horizon": 3})
    (centre,) = bodies.ForecastAnswer.model_validate_json(forecast.data).forecast.values()
    assert len(centre) == 3
    predicted = client.post("/v1/models/m/predict", json={"inputs": [inputs], "horizon": 1})
    bodies.PredictAnswer.model_validate_json(predicted.data)
    detail = bodies.ModelDetail.model_validate_json(client.get("/v1/models/m").data)
    assert detail.head["kind"] == head
    assert detail.head["levels"] == ([0.1, 0.5, 0.9] if head == "quantiles" else [])
    engine.close()
