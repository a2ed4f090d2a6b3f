"""An acknowledged step is never lost and never applied twice, whatever is killed."""

import random
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server
from tests.reference import INPUTS, ZOO, BareLoop, assert_same_bits

STEPS, WORKER_KILLS_EVERY, SERVICE_KILLS = 500, 50, (175, 325)


class Stubborn:
    """A client that retries the same request, with the same id, until it is answered."""

    def __init__(self, server: Server) -> None:
        self.server, self.retries = server, 0

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        for _ in range(200):
            try:
                with httpx.Client(base_url=self.server.url, timeout=10) as client:
                    answer = client.post(path, json=body)
            except httpx.TransportError:
                self.retries += 1
                continue
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found
        raise AssertionError(f"no answer to {path} after {self.retries} retries")


@pytest.mark.parametrize("model", ["pulse", "weather"])
def test_500_steps_survive_killed_workers_and_a_killed_service(tmp_path: Path, model: str) -> None:
    """Every prediction equals, bit for bit, that of one loop that was never interrupted."""
    chance = random.Random(model)
    inputs = INPUTS[model](STEPS)
    expected = BareLoop(ZOO / model / "1").run(inputs)
    killed = 0
    with Server(tmp_path) as server:
        client = Stubborn(server)
        with server.client() as first:
            assert first.post(f"/v1/models/{model}/sessions", json={"session_id": "s"}).status_code == 201
        for step, row in enumerate(inputs):
            killers = []
            if step % WORKER_KILLS_EVERY == WORKER_KILLS_EVERY - 1:
                victim = chance.choice(server.workers())
                killers.append(
                    threading.Thread(target=server.kill_worker, args=(victim,))
                )  # while the request is on its way
                killed += 1
            if step in SERVICE_KILLS:
                server.kill()
                server.start()
            for killer in killers:
                killer.start()
            answer = client.post("/v1/sessions/s/steps", {"inputs": [row], "request_id": f"r{step}"})
            for killer in killers:
                killer.join()
            assert answer["step"] == step + 1
            assert_same_bits(answer, expected, slice(step, step + 1))
    assert killed == STEPS // WORKER_KILLS_EVERY


def test_a_service_killed_while_it_answers_loses_nothing(tmp_path: Path) -> None:
    """A retry with the same id, over a kill -9 of everything, gets the first answer: the step counts once."""
    inputs = INPUTS["pulse"](2)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    with Server(tmp_path) as server:
        with server.client() as client:
            client.post("/v1/models/pulse/sessions", json={"session_id": "s"})
            body = {"inputs": inputs, "request_id": "once"}
            first = client.post("/v1/sessions/s/steps", json=body).json()
        server.kill()
        server.start()
        with server.client() as client:
            again = client.post("/v1/sessions/s/steps", json=body).json()
            assert client.get("/v1/sessions/s").json()["step"] == 2
    assert again == first
    assert_same_bits(again, expected)


def test_sigterm_ends_cleanly_and_the_session_goes_on(tmp_path: Path) -> None:
    """A stop by an operator exits 0, aborts no worker, and keeps what was acknowledged."""
    inputs = INPUTS["pulse"](4)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    server = Server(tmp_path)
    with server:
        with server.client() as client:
            client.post("/v1/models/pulse/sessions", json={"session_id": "s"})
            client.post("/v1/sessions/s/steps", json={"inputs": inputs[:2]})
        assert server.stop() == 0
        log = "".join(server.log)
        assert "SIGABRT" not in log, log
        assert "Traceback" not in log, log
        server.start()
        with server.client() as client:
            answer = client.post("/v1/sessions/s/steps", json={"inputs": inputs[2:]}).json()
    assert_same_bits(answer, expected, slice(2, 4))
