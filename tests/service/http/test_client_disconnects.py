"""A client that has closed its connection is computed for no further, on any route, whatever it has asked for."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from flask.testing import FlaskClient

from onward.model.repository import open_all
from onward.service.app import OPERATIONS, create_app
from onward.service.engine.batching.executor import Executor
from onward.service.engine.batching.work_item import WorkItem
from onward.service.engine.engine import Engine, Limits
from onward.service.http.operations import NDJSON
from onward.service.settings import Settings
from onward.service.store.lmdb import LmdbStore
from onward.service.store.signed_tokens import SignedTokens
from tests.helpers.recorded_bundles import make_bundle

HISTORY = 2000
STEPS = [10.0] * 100_000

LONG: dict[str, dict[str, Any]] = {
    "/v1/models/{model}/predict": {"inputs": [[10]] * 10, "horizon": 9999},
    "/v1/models/{model}/sessions": {"inputs": STEPS},
    "/v1/models/{model}/step": {"inputs": STEPS},
    "/v1/sessions/{session_id}/steps": {"inputs": STEPS},
    "/v1/models/{model}/sessions/{session_id}/steps": {"inputs": STEPS},
    "/v1/steps": {"items": [{"session_id": name, "inputs": STEPS[::2]} for name in "st"]},
    "/v1/sessions/{session_id}/forecast": {"horizon": 10_000, "samples": 10},
    "/v1/sessions/{session_id}/generate": {"horizon": 10_000},
    "/v1/sessions/{session_id}/rewind": {"step": HISTORY - 1},
    "/v1/sessions/{session_id}/migrate": {},
}
COMPUTES_NOTHING = {"/v1/sessions/{session_id}/fork"}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr("onward.service.engine.batching.batcher.DISCONNECT_CHECK_S", 0.0)
    make_bundle(tmp_path / "models", name="tiny")
    limits = Limits(history=HISTORY)
    store = LmdbStore(tmp_path / "store")
    started = Engine(open_all(tmp_path / "models"), store, limits, seal=SignedTokens(["0123456789abcdef" * 2]))
    started.start()
    for name in "st":
        started.create("public", "tiny", session_id=name)
    started.steps.step("public", "s", STEPS[:HISTORY])
    yield started
    started.close()


@pytest.fixture
def client(engine: Engine) -> FlaskClient:
    return create_app(Settings(), engine).test_client()


@pytest.fixture
def gone() -> Iterator[socket.socket]:
    """The service's side of a connection whose client has closed its own."""
    near, far = socket.socketpair()
    far.close()
    yield near
    near.close()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each batch had that ran."""
    ran: list[int] = []
    run = Executor.run

    def counted(self: Executor, batch: list[WorkItem]) -> None:
        ran.append(len(batch))
        run(self, batch)

    monkeypatch.setattr(Executor, "run", counted)
    return ran


def test_every_route_that_computes_is_looked_at() -> None:
    """A route that is added drops what its client has left, and is in the list here."""
    assert {one.path for one in OPERATIONS if one.method == "POST"} == LONG.keys() | COMPUTES_NOTHING


@pytest.mark.parametrize("path", LONG)
def test_a_client_that_has_left_is_computed_for_no_further(
    client: FlaskClient, engine: Engine, gone: socket.socket, batches: list[int], path: str
) -> None:
    """Hundreds of batches are asked for; a few run, nothing is left in a queue, and no session has moved."""
    target = path.replace("{model}", "tiny").replace("{session_id}", "s")
    answer = client.post(target, json=LONG[path], environ_overrides={"gunicorn.socket": gone})
    if path == "/v1/steps":
        assert json.loads(answer.data)["items"][0]["status"] == 503
    elif path.endswith("/generate"):
        assert b"data:" not in answer.data
    else:
        assert answer.status_code == 503, answer.text
    assert path.endswith("/generate") or b"urn:onward:problem:abandoned" in answer.data
    _nothing_more(engine, batches)


def test_lines_whose_client_has_left_go_no_further(
    client: FlaskClient, engine: Engine, gone: socket.socket, batches: list[int]
) -> None:
    """Of NDJSON the lines that were read together."""
    lines = b"10.0\n" * 20_000
    answer = client.post(
        "/v1/sessions/s/steps", data=lines, content_type=NDJSON, environ_overrides={"gunicorn.socket": gone}
    )
    assert b"urn:onward:problem:abandoned" in answer.data.splitlines()[-1]
    _nothing_more(engine, batches)


def test_a_draw_that_goes_on_stops_before_it_has_come_to_where_it_was(
    client: FlaskClient, engine: Engine, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that leaves while that is drawn again which it has had."""
    body = {"horizon": 100, "seed": 1}
    first = client.post("/v1/sessions/s/generate", json=body)
    last = [line[4:] for line in first.text.splitlines() if line.startswith("id: ")][-1]
    assert len(batches) > 90
    batches.clear()
    near, far = socket.socketpair()
    run = Executor.run

    def leaving(self: Executor, batch: list[WorkItem]) -> None:
        run(self, batch)
        if len(batches) == 3:
            far.close()

    monkeypatch.setattr(Executor, "run", leaving)
    with near, far:
        client.post(
            "/v1/sessions/s/generate",
            json=body,
            headers={"Last-Event-ID": last},
            environ_overrides={"gunicorn.socket": near},
        )
        assert len(batches) == 3
    _nothing_more(engine, batches)


def _nothing_more(engine: Engine, batches: list[int]) -> None:
    ran = len(batches)
    assert ran < 50
    gevent.sleep(0.01)
    engine.predict("tiny", None, [[10]], 0)  # which takes what was dropped out of the queue
    assert len(batches) == ran + 1
    assert sum(batcher.waiting for batcher in engine._batchers.by_model.values()) == 0
    assert engine.sessions.get("public", "s").record.step == HISTORY
    assert engine.sessions.get("public", "t").record.step == 0
