"""The number of steps of a request is bounded as the product of its dimensions, on every route, before computing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from onward.model.repository import open_all
from onward.service.app import OPERATIONS, create_app
from onward.service.engine.batching.batcher import Batchers
from onward.service.engine.batching.cost import MOST_CHUNK
from onward.service.engine.batching.executor import Executor
from onward.service.engine.engine import Engine, Limits
from onward.service.settings import Settings
from onward.service.store.lmdb import LmdbStore
from onward.service.store.signed_tokens import SignedTokens
from tests.helpers.recorded_bundles import FEATURES, make_bundle

MOST_STEPS = 60
LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
HISTORY = 20

TOO_MUCH: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("/v1/models/{model}/predict", "tiny", {"inputs": [[10]] * 7, "horizon": 9}, "horizon", "are 63 steps"),
    ("/v1/models/{model}/predict", "tiny", {"inputs": [[10]] * 6, "horizon": 10}, "inputs", "are 66 steps"),
    ("/v1/models/{model}/predict", "tiny", {"inputs": [[10] * 31] * 2}, "inputs", "are 62 steps"),
    ("/v1/models/{model}/sessions", "tiny", {"inputs": [10] * 61}, "inputs", "not 61"),
    ("/v1/models/{model}/step", "tiny", {"inputs": [10] * 61}, "inputs", "not 61"),
    ("/v1/sessions/{session_id}/steps", "s", {"inputs": [10] * 61}, "inputs", "not 61"),
    ("/v1/models/{model}/sessions/{session_id}/steps", "tiny", {"inputs": [10] * 61}, "inputs", "not 61"),
    ("/v1/sessions/{session_id}/forecast", "s", {"horizon": 1, "inputs": [10] * 61}, "inputs", "not 61"),
    ("/v1/sessions/{session_id}/forecast", "s", {"horizon": 31, "samples": 2}, "samples", "are 62 steps"),
    ("/v1/sessions/{session_id}/forecast", "c", {"horizon": 2, "future": [[1, 2]] * 41}, "future", "at most 40"),
    (
        "/v1/sessions/{session_id}/forecast", "s",
        {"horizon": 7, "samples": 2, "quantiles": LEVELS}, "quantiles", "are 63 steps",
    ),
    ("/v1/sessions/{session_id}/generate", "s", {"horizon": 1, "inputs": [10] * 61}, "inputs", "not 61"),
    ("/v1/sessions/{session_id}/generate", "s", {"horizon": 41}, "horizon", "at most 40"),
    ("/v1/sessions/{session_id}/generate", "c", {"horizon": 2, "future": [[1, 2]] * 41}, "future", "at most 40"),
    ("/v1/steps", "", {"items": [{"session_id": "s", "inputs": [10] * 31}] * 2}, "inputs", "are 62 steps"),
    ("/v1/steps", "", {"session_ids": ["s", "t"], "inputs": [[10] * 31] * 2}, "inputs", "are 62 steps"),
]  # fmt: skip
COMPUTES_NOTHING = {"/v1/sessions/{session_id}/fork"}
BOUNDED_BY_ITS_SESSION = {"/v1/sessions/{session_id}/rewind", "/v1/sessions/{session_id}/migrate"}
"""Routes that replay the history of a session; `test_a_replay_is_no_longer_than_twice_the_history` bounds them."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    models = tmp_path / "models"
    make_bundle(models, name="tiny")
    make_bundle(models, name="covariate", features=FEATURES, targets=("x",))
    limits = Limits(max_steps=MOST_STEPS, max_horizon=40, history=HISTORY)
    started = Engine(
        open_all(models), LmdbStore(tmp_path / "store"), limits, seal=SignedTokens(["0123456789abcdef" * 2])
    )
    started.start()
    for name, model in {"s": "tiny", "t": "tiny", "c": "covariate"}.items():
        started.create("public", model, session_id=name)
    yield started
    started.close()


@pytest.fixture
def client(engine: Engine) -> FlaskClient:
    return create_app(Settings(), engine).test_client()


def test_every_route_with_a_body_is_in_a_list() -> None:
    """A new route must be bounded and must be added to one of the lists."""
    posted = {operation.path for operation in OPERATIONS if operation.method == "POST"}
    assert posted == {path for path, *_ in TOO_MUCH} | COMPUTES_NOTHING | BOUNDED_BY_ITS_SESSION


@pytest.mark.parametrize(("path", "target", "body", "field", "expected"), TOO_MUCH)
def test_too_much_is_refused_before_any_of_it_runs(
    client: FlaskClient,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    target: str,
    body: dict[str, Any],
    field: str,
    expected: str,
) -> None:
    """The problem has the field, the number of steps and the limit."""

    def run(*_: object) -> None:
        raise AssertionError("a batch ran")

    monkeypatch.setattr(Executor, "run", run)
    response = client.post(path.replace("{model}", target).replace("{session_id}", target), json=body)
    assert response.status_code == 422, response.text
    assert response.json is not None
    ((refused_field, message),) = ((error["field"], error["message"]) for error in response.json["errors"])
    assert refused_field == field
    assert expected in message
    assert "at most" in message


def test_requests_at_the_limits_are_answered(client: FlaskClient) -> None:
    """The limits are inclusive."""
    for path, body in {
        "/v1/models/tiny/predict": {"inputs": [[10]] * 6, "horizon": 9},
        "/v1/sessions/s/forecast": {"horizon": 30, "samples": 2, "quantiles": [0.1, 0.9]},
        "/v1/sessions/c/forecast": {"horizon": 40, "future": [[1, 2]] * 40},
        "/v1/steps": {"items": [{"session_id": name, "inputs": [10] * 30} for name in "st"]},
    }.items():
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text


def test_a_replay_is_no_longer_than_twice_the_history(
    client: FlaskClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of steps that rewind and migrate recompute is bounded, for every way to advance the session."""
    replayed = []
    run = Batchers.run_standalone

    def counting(self: Batchers, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        replayed.append(len(inputs))
        return run(self, model, inputs, *more, **named)

    monkeypatch.setattr(Batchers, "run_standalone", counting)
    for steps in (1, 60, 7, 33, 60):
        client.post("/v1/sessions/s/steps", json={"inputs": [10.0] * steps})
        step = engine.sessions.get("public", "s").record.step
        for name, path, body in (("r", "rewind", {"step": max(0, step - HISTORY)}), ("m", "migrate", {})):
            client.post("/v1/sessions/s/fork", json={"session_id": f"{name}{step}"})
            response = client.post(f"/v1/sessions/{name}{step}/{path}", json=body)
            assert response.status_code == 200, response.text
    assert replayed
    assert max(replayed) <= 2 * HISTORY + MOST_CHUNK, replayed
