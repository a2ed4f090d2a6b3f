"""GET /metrics of a real service returns the exact sums of both workers, and shows drift of the data."""

import json
import re
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from onward.service.store import record as records
from onward.service.store.lmdb import LmdbStore
from tests.contracts.test_stores import damage
from tests.e2e.server import Server
from tests.helpers.recorded_bundles import draw, make_bundle
from tests.helpers.reference_loop import pulse

STEPS = 300


def metrics(client: httpx.Client) -> dict[str, float]:
    """Returns the metrics, asked in an event loop turn after the one that answered the last step."""
    client.get("/healthz")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = re.findall(r"^(onward_\S+) (\S+)$", response.text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


def post_to_both(server: Server, path: str, bodies: list[dict[str, object]]) -> None:
    """Posts the bodies to the two workers in turns, over one connection each; returns when both have counted them."""
    address = urlsplit(server.url)
    connections: dict[int, HTTPConnection] = {}
    with ExitStack() as opened:
        while len(connections) < 2:
            connection = HTTPConnection(address.hostname or "", address.port, timeout=30)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            if (worker := server.holder(connection.sock)) in connections:
                connection.close()
            else:
                connections[worker] = opened.enter_context(closing(connection))
        for turn, body in enumerate(bodies):
            connection = list(connections.values())[turn % 2]
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            response.read()
        for connection in [*connections.values()] * 2:  # one event loop turn after the last response
            connection.request("GET", "/healthz")
            connection.getresponse().read()


def test_metrics_are_the_sums_of_both_workers(tmp_path: Path) -> None:
    """Every input counts once, in any worker and also after a worker has ended; seeds and retries do not count."""
    with Server(tmp_path) as server, server.client() as client:
        inputs = pulse(STEPS)
        client.post("/v1/models/pulse/sessions", json={"session_id": "a", "inputs": inputs[:50]})
        bodies: list[dict[str, object]] = [
            {"inputs": [row], "request_id": f"r{index}"} for index, row in enumerate(inputs[50:])
        ]
        post_to_both(server, "/v1/sessions/a/steps", [*bodies, *bodies[-2:]])
        sums, session = metrics(client), client.get("/v1/sessions/a").json()
        labels = '{model="pulse",target="ppg",version="1"}'
        count = sums[f"onward_predicted_inputs_total{labels}"]
        assert count == sums['onward_scored_inputs_total{model="pulse",version="1"}'] == STEPS - 50
        seeded = client.post("/v1/models/pulse/sessions", json={"session_id": "b", "inputs": inputs[:50]}).json()
        assert seeded["step"] == 50
        before, after = client.get("/v1/sessions/b").json(), session
        for name, metric in (("mae", "absolute_error_total"), ("coverage", "inside_interval_total")):
            whole = after["accuracy"]["ppg"][name] * STEPS - before["accuracy"]["ppg"][name] * 50
            assert sums[f"onward_{metric}{labels}"] == pytest.approx(whole)
        surprise = after["surprise"]["mean"] * STEPS - before["surprise"]["mean"] * 50
        assert sums['onward_surprise_sum{model="pulse",version="1"}'] == pytest.approx(surprise)
        files = sorted(folder(server).glob("*.db"))
        for turn in range(3):
            server.kill_worker(server.workers()[0])
            with server.client() as again:
                assert metrics(again) == sums
            post_to_both(server, "/v1/sessions/a/steps", [{"inputs": [row]} for row in inputs[2 * turn : 2 * turn + 2]])
            with server.client() as again:  # the new worker continues in the files of the killed one
                sums = metrics(again)
            assert sums[f"onward_predicted_inputs_total{labels}"] == count + 2 * turn + 2
        assert sorted(folder(server).glob("*.db")) == files


def folder(server: Server) -> Path:
    """Returns the folder in which the workers of this service count."""
    (path,) = Path("/dev/shm").glob(f"onward-metrics-{server.pid}-*")
    return path


def test_the_folder_of_a_killed_service_is_removed_by_the_next(tmp_path: Path) -> None:
    """The next start removes it, but nothing of a running service; a stopped service leaves no folder."""
    with Server(tmp_path / "a") as killed, Server(tmp_path / "b") as alive:
        left, stays = folder(killed), folder(alive)
        killed.kill()
        assert left.exists()
        killed.start()
        assert not left.exists()
        assert folder(killed).exists()
        with alive.client() as client:
            assert stays.exists()
            assert "onward_damaged_records_total 0.0" in client.get("/metrics").text
        assert alive.stop() == 0
        assert not stays.exists()


def test_metrics_show_drift_of_the_data(tmp_path: Path) -> None:
    """The ratio of errors to naive errors grows, fewer inputs lie in the interval, and a damaged record is counted."""
    model = make_bundle(tmp_path / "models")
    state, series, rng = model.layout.initial(1), [], np.random.default_rng(0)
    for _ in range(STEPS):
        prediction = model.last_prediction(state)
        value = (prediction["mean"] + prediction["std"] * rng.normal()).astype(np.float32)
        _, state = model.run_row(value, state)
        series.append(value[0].tolist())
    drifted = (draw(1, STEPS)[0] * 0.1 + 30).tolist()
    with Server(tmp_path, ONWARD_MODELS=str(tmp_path / "models")) as server, server.client() as client:
        labels, sums = '{model="tiny",target="x",version="1"}', []
        for name, inputs in (("as-trained", series), ("drifted", drifted)):
            client.post("/v1/models/tiny/sessions", json={"session_id": name})
            before = metrics(client)
            assert client.post(f"/v1/sessions/{name}/steps", json={"inputs": inputs}).status_code == 200
            sums.append({key: value - before.get(key, 0) for key, value in metrics(client).items()})
        mase = [
            total[f"onward_absolute_error_total{labels}"] / total[f"onward_naive_absolute_error_total{labels}"]
            for total in sums
        ]
        inside = [
            total[f"onward_inside_interval_total{labels}"] / total[f"onward_predicted_inputs_total{labels}"]
            for total in sums
        ]
        assert mase[0] < 1.1 < 3 < mase[1]
        assert inside[1] < 0.1 < 0.7 < inside[0]
        store = LmdbStore(tmp_path / "store")
        damage(store, records.key("public", "drifted"))
        store.close()
        assert client.get("/v1/sessions/drifted").status_code == 500
        assert metrics(client)["onward_damaged_records_total"] == 1
