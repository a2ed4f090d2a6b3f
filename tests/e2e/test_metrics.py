"""GET /metrics of a real service: the sums of both workers, exact, and what drift looks like in them."""

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
    """What a worker answers in a later turn than the one in which it has answered the last step."""
    client.get("/healthz")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = re.findall(r"^(onward_\S+) (\S+)$", answer.text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


def through_both(server: Server, path: str, bodies: list[dict[str, object]]) -> None:
    """Sent to the workers in turns, over connections of which each worker holds one; both have counted them then."""
    address = urlsplit(server.url)
    held: dict[int, HTTPConnection] = {}
    with ExitStack() as opened:
        while len(held) < 2:
            connection = HTTPConnection(address.hostname or "", address.port, timeout=30)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            if (worker := server.holder(connection.sock)) in held:
                connection.close()
            else:
                held[worker] = opened.enter_context(closing(connection))
        for turn, body in enumerate(bodies):
            connection = list(held.values())[turn % 2]
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
        for connection in [*held.values()] * 2:  # a turn later than the last answer
            connection.request("GET", "/healthz")
            connection.getresponse().read()


def test_sums_are_those_of_both_workers(tmp_path: Path) -> None:
    """Each input counts once, wherever it was answered, also after a worker has ended; seeds and retries do not."""
    with Server(tmp_path) as server, server.client() as client:
        inputs = pulse(STEPS)
        client.post("/v1/models/pulse/sessions", json={"session_id": "a", "inputs": inputs[:50]})
        bodies: list[dict[str, object]] = [
            {"inputs": [one], "request_id": f"r{at}"} for at, one in enumerate(inputs[50:])
        ]
        through_both(server, "/v1/sessions/a/steps", [*bodies, *bodies[-2:]])
        told, session = metrics(client), client.get("/v1/sessions/a").json()
        of = '{model="pulse",target="ppg",version="1"}'
        count = told[f"onward_predicted_inputs_total{of}"]
        assert count == told['onward_scored_inputs_total{model="pulse",version="1"}'] == STEPS - 50
        seeded = client.post("/v1/models/pulse/sessions", json={"session_id": "b", "inputs": inputs[:50]}).json()
        assert seeded["step"] == 50
        before, after = client.get("/v1/sessions/b").json(), session
        for name, metric in (("mae", "absolute_error_total"), ("coverage", "inside_interval_total")):
            whole = after["accuracy"]["ppg"][name] * STEPS - before["accuracy"]["ppg"][name] * 50
            assert told[f"onward_{metric}{of}"] == pytest.approx(whole)
        surprise = after["surprise"]["mean"] * STEPS - before["surprise"]["mean"] * 50
        assert told['onward_surprise_sum{model="pulse",version="1"}'] == pytest.approx(surprise)
        files = sorted(folder(server).glob("*.db"))
        for turn in range(3):
            server.kill_worker(server.workers()[0])
            with server.client() as again:
                assert metrics(again) == told
            through_both(server, "/v1/sessions/a/steps", [{"inputs": [one]} for one in inputs[2 * turn : 2 * turn + 2]])
            with server.client() as again:  # the new one counts on in the files of the killed one
                told = metrics(again)
            assert told[f"onward_predicted_inputs_total{of}"] == count + 2 * turn + 2
        assert sorted(folder(server).glob("*.db")) == files


def folder(server: Server) -> Path:
    """Where its workers count."""
    (found,) = Path("/dev/shm").glob(f"onward-metrics-{server.pid}-*")
    return found


def test_a_killed_service_leaves_nothing_for_long(tmp_path: Path) -> None:
    """The next to start removes what it left, and nothing of another that is alive; a stopped one leaves nothing."""
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


def test_a_model_on_data_that_drifted_shows_it(tmp_path: Path) -> None:
    """The ratio of errors to naive errors grows and fewer inputs lie inside the interval; a damaged record counts."""
    model = make_bundle(tmp_path / "models")
    state, series, rng = model.layout.initial(1), [], np.random.default_rng(0)
    for _ in range(STEPS):
        said = model.last_prediction(state)
        value = (said["mean"] + said["std"] * rng.normal()).astype(np.float32)
        _, state = model.run_row(value, state)
        series.append(value[0].tolist())
    drifted = (draw(1, STEPS)[0] * 0.1 + 30).tolist()
    with Server(tmp_path, ONWARD_MODELS=str(tmp_path / "models")) as server, server.client() as client:
        of, sums = '{model="tiny",target="x",version="1"}', []
        for name, inputs in (("as-trained", series), ("drifted", drifted)):
            client.post("/v1/models/tiny/sessions", json={"session_id": name})
            before = metrics(client)
            assert client.post(f"/v1/sessions/{name}/steps", json={"inputs": inputs}).status_code == 200
            sums.append({key: value - before.get(key, 0) for key, value in metrics(client).items()})
        mase = [one[f"onward_absolute_error_total{of}"] / one[f"onward_naive_absolute_error_total{of}"] for one in sums]
        inside = [one[f"onward_inside_interval_total{of}"] / one[f"onward_predicted_inputs_total{of}"] for one in sums]
        assert mase[0] < 1.1 < 3 < mase[1]
        assert inside[1] < 0.1 < 0.7 < inside[0]
        store = LmdbStore(tmp_path / "store")
        damage(store, records.key("public", "drifted"))
        store.close()
        assert client.get("/v1/sessions/drifted").status_code == 500
        assert metrics(client)["onward_damaged_records_total"] == 1
