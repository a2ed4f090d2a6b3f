"""A worker stops computing for a client that has disconnected, for each kind of expensive request."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from onward.training.export.export_bundle import PARITY_STEPS, export
from tests.e2e.server import Server
from tests.helpers.random_bundles import make_network
from tests.helpers.recorded_bundles import draw
from tests.helpers.websocket_client import BINARY, frame, handshake

STEP = draw(1, 1).round(2)[0, 0].tolist()
MANY = [STEP] * 50_000
BUSY_S, QUIET_S, MOST_S = 0.3, 1.0, 60.0
"""The client disconnects once its request has cost BUSY_S of CPU time. The worker is idle once it has used none for
QUIET_S; it must be idle within MOST_S, which is less than any of these requests takes in full.
"""
JSON, LINES = "application/json", "application/x-ndjson"

REQUESTS = {
    "predict": ("/v1/models/large/predict", {"inputs": [[STEP]] * 10, "horizon": 9999}, JSON),
    "create": ("/v1/models/large/sessions", {"inputs": MANY}, JSON),
    "a step without a session": ("/v1/models/large/step", {"inputs": MANY}, JSON),
    "a step on the fast path": ("/v1/sessions/s/steps", {"inputs": MANY}, JSON),
    "a step by Flask": ("/v1/sessions/s/steps?", {"inputs": MANY}, JSON),
    "many on the fast path": ("/v1/steps", {"session_ids": ["s", "t"], "inputs": [MANY[::2]] * 2}, JSON),
    "lines": ("/v1/sessions/s/steps", "\n".join(map(json.dumps, MANY[:5000])), LINES),
    "forecast": ("/v1/sessions/s/forecast", {"horizon": 10_000, "samples": 10}, JSON),
    "generate": ("/v1/sessions/s/generate", {"horizon": 10_000}, JSON),
    "a WebSocket": ("/v1/sessions/s/stream", None, ""),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with one worker and a model for which each of these requests takes minutes."""
    folder = tmp_path_factory.mktemp("left")
    export(
        make_network(layers=2, units=1024),
        bundle=folder / "models" / "large" / "1",
        sample=draw(7, PARITY_STEPS),
    )
    settings = {"ONWARD_WORKERS": "1", "ONWARD_TIMEOUT_S": "600", "ONWARD_SECRET": "0123456789abcdef" * 2}
    with Server(folder, ONWARD_MODELS=str(folder / "models"), **settings) as running:
        with running.client() as client:
            for name in "st":
                assert client.post("/v1/models/large/sessions", json={"session_id": name}).status_code == 201
        yield running


@pytest.mark.parametrize("name", REQUESTS)
def test_a_worker_stops_computing_for_a_disconnected_client(server: Server, name: str) -> None:
    (worker,) = server.workers()
    path, body, media = REQUESTS[name]
    address = urlsplit(server.url)
    reached, before = steps(server), cpu_s(worker)
    with socket.create_connection((address.hostname, address.port), timeout=MOST_S) as connection:
        if media:
            text = body if isinstance(body, str) else json.dumps(body)
            head = (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\nContent-Length: {len(text)}\r\n"
            )
            connection.sendall(f"{head}\r\n{text}".encode())
        else:
            connection.sendall(handshake(path))
            assert b" 101 " in connection.recv(4096)
            connection.sendall(frame(draw(1, len(MANY)).astype("<f4").tobytes(), BINARY))
        wait_until(lambda: cpu_s(worker) - before >= BUSY_S)
    wait_until(lambda: is_idle(worker))
    assert steps(server) == reached or (media == LINES and steps(server)["s"] < 5000)


def steps(server: Server) -> dict[str, int]:
    """Returns the step that each session has reached."""
    with server.client() as client:
        return {name: client.get(f"/v1/sessions/{name}").json()["step"] for name in "st"}


def cpu_s(process: int) -> float:
    """Returns the CPU time in seconds that the process and its threads have used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_idle(process: int) -> bool:
    """True if the process uses less than a twentieth of a CPU for QUIET_S; its housekeeping needs a little."""
    before = cpu_s(process)
    time.sleep(QUIET_S)
    return cpu_s(process) - before < QUIET_S / 20


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + MOST_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
