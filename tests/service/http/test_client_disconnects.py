"""The service stops computing for a client that has closed its connection, on every route and for every request."""

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
from onward.service.engine.batching.batch_row import BatchRow
from onward.service.engine.batching.executor import Executor
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
def closed_connection() -> Iterator[socket.socket]:
    """The service's side of a connection whose client has closed its own."""
    local, remote = socket.socketpair()
    remote.close()
    yield local
    local.close()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each batch that ran."""
    sizes: list[int] = []
    run = Executor.run

    def counted(self: Executor, batch: list[BatchRow]) -> None:
        sizes.append(len(batch))
        run(self, batch)

    monkeypatch.setattr(Executor, "run", counted)
    return sizes


def test_every_route_that_computes_is_in_the_list() -> None:
    """A new route must drop the work of a client that has left, and must be added to `LONG`."""
    assert {operation.path for operation in OPERATIONS if operation.method == "POST"} == LONG.keys() | COMPUTES_NOTHING


@pytest.mark.parametrize("path", LONG)
def test_computation_stops_when_the_client_has_left(
    client: FlaskClient, engine: Engine, closed_connection: socket.socket, batches: list[int], path: str
) -> None:
    """The request needs hundreds of batches: only a few run, no work stays in a queue, and no session advances."""
    target = path.replace("{model}", "tiny").replace("{session_id}", "s")
    response = client.post(target, json=LONG[path], environ_overrides={"gunicorn.socket": closed_connection})
    if path == "/v1/steps":
        assert json.loads(response.data)["items"][0]["status"] == 503
    elif path.endswith("/generate"):
        assert b"data:" not in response.data
    else:
        assert response.status_code == 503, response.text
    assert path.endswith("/generate") or b"urn:onward:problem:abandoned" in response.data
    _assert_no_more_batches(engine, batches)


def test_ndjson_lines_stop_when_the_client_has_left(
    client: FlaskClient, engine: Engine, closed_connection: socket.socket, batches: list[int]
) -> None:
    """NDJSON lines that were read together are dropped together."""
    lines = b"10.0\n" * 20_000
    response = client.post(
        "/v1/sessions/s/steps",
        data=lines,
        content_type=NDJSON,
        environ_overrides={"gunicorn.socket": closed_connection},
    )
    assert b"urn:onward:problem:abandoned" in response.data.splitlines()[-1]
    _assert_no_more_batches(engine, batches)


def test_a_resumed_generation_stops_during_its_replay_when_the_client_leaves(
    client: FlaskClient, engine: Engine, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client leaves while the service recomputes the events that the client has already received."""
    body = {"horizon": 100, "seed": 1}
    first = client.post("/v1/sessions/s/generate", json=body)
    last = [line[4:] for line in first.text.splitlines() if line.startswith("id: ")][-1]
    assert len(batches) > 90
    batches.clear()
    local, remote = socket.socketpair()
    run = Executor.run

    def leaving(self: Executor, batch: list[BatchRow]) -> None:
        run(self, batch)
        if len(batches) == 3:
            remote.close()

    monkeypatch.setattr(Executor, "run", leaving)
    with local, remote:
        client.post(
            "/v1/sessions/s/generate",
            json=body,
            headers={"Last-Event-ID": last},
            environ_overrides={"gunicorn.socket": local},
        )
        assert len(batches) == 3
    _assert_no_more_batches(engine, batches)


def _assert_no_more_batches(engine: Engine, batches: list[int]) -> None:
    count = len(batches)
    assert count < 50
    gevent.sleep(0.01)
    engine.predict("tiny", None, [[10]], 0)  # takes the dropped work items out of the queue
    assert len(batches) == count + 1
    assert sum(batcher.scheduler.waiting for batcher in engine._batchers.by_model.values()) == 0
    assert engine.sessions.get("public", "s").record.step == HISTORY
    assert engine.sessions.get("public", "t").record.step == 0
