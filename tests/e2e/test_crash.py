"""An acknowledged step is never lost and never applied twice, whatever is killed."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.server import Server
from tests.helpers.reference_loop import INPUTS, ZOO, BareLoop, assert_same_bits

STEPS_URL = "/v1/sessions/s/steps"
STEPS = 500


class Client:
    """A keep-alive connection on a bare socket, so that a test knows which process has a request, and when."""

    def __init__(self, server: Server) -> None:
        self.server = server
        address = urlsplit(server.url)
        self.connection = socket.create_connection((address.hostname, address.port), timeout=30)
        self.connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")  # from here on a worker has accepted it
        self.receive()
        self.worker = server.holder(self.connection)

    def send(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = f"POST {STEPS_URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        self.connection.sendall(head.encode() + data)

    def receive(self) -> dict[str, Any] | None:
        """Returns the body of the response; None if the connection ends without one."""
        data = b""
        try:
            while (parts := data.partition(b"\r\n\r\n"))[1] == b"" or len(parts[2]) < content_length(parts[0]):
                if not (received := self.connection.recv(65536)):
                    return None
                data += received
        except ConnectionError:
            return None
        assert data.startswith(b"HTTP/1.1 200"), data
        response: dict[str, Any] = json.loads(parts[2])
        return response

    def close(self) -> None:
        self.connection.close()


def content_length(head: bytes) -> int:
    found = re.search(rb"(?i)content-length: (\d+)", head)
    assert found, head
    return int(found[1])


def wait_until_committed(server: Server, step: int) -> None:
    """Returns once the session, read over another connection, has reached that step."""
    with server.client() as client:
        while client.get("/v1/sessions/s").json()["step"] != step:
            pass


Interruption = Callable[[Server, Client, dict[str, Any], int], None]


def before_it_is_read(server: Server, client: Client, body: dict[str, Any], step: int) -> None:
    """Suspends the worker that has the connection, sends it the request, and kills it before it reads the request."""
    del step
    os.kill(client.worker, signal.SIGSTOP)
    client.send(body)
    server.kill_worker(client.worker)


def after_it_is_committed(server: Server, client: Client, body: dict[str, Any], step: int) -> None:
    """Kills the worker after it has committed the step and before the client has read a byte of the response."""
    client.send(body)
    wait_until_committed(server, step + 1)
    server.kill_worker(client.worker)
    client.close()


def whole_service_after_it_is_committed(server: Server, client: Client, body: dict[str, Any], step: int) -> None:
    """Kills the whole service after the step is committed."""
    client.send(body)
    wait_until_committed(server, step + 1)
    server.kill()
    client.close()
    server.start()


def whole_service_before_it_is_read(server: Server, client: Client, body: dict[str, Any], step: int) -> None:
    del step
    os.kill(client.worker, signal.SIGSTOP)
    client.send(body)
    server.kill()
    server.start()


def interruptions() -> dict[int, Interruption]:
    """Returns interruptions by step: the worker is killed every 50 steps, and the whole service twice."""
    plan: dict[int, Interruption] = {}
    for number, step in enumerate(range(49, STEPS, 50)):
        plan[step] = (before_it_is_read, after_it_is_committed)[number % 2]
    return plan | {175: whole_service_after_it_is_committed, 325: whole_service_before_it_is_read}


@pytest.mark.parametrize("model", ["pulse", "weather"])
def test_500_steps_survive_killed_workers_and_a_killed_service(tmp_path: Path, model: str) -> None:
    """Every prediction equals that of an uninterrupted loop bit for bit, and each kill costs one retry."""
    inputs = INPUTS[model](STEPS)
    expected = BareLoop(ZOO / model / "1").run(inputs)
    plan, retries = interruptions(), 0
    with Server(tmp_path) as server:
        with server.client() as first:
            assert first.post(f"/v1/models/{model}/sessions", json={"session_id": "s"}).status_code == 201
        client = Client(server)
        for step, row in enumerate(inputs):
            body = {"inputs": [row], "request_id": f"r{step}"}
            if step in plan:
                plan[step](server, client, body, step)
                client.close()
                client = Client(server)
                retries += 1
            client.send(body)
            response = client.receive()
            assert response is not None
            assert response["step"] == step + 1
            assert_same_bits(response, expected, slice(step, step + 1))
        client.close()
    assert retries == STEPS // 50 + 2


def test_a_worker_killed_in_a_long_call_leaves_the_session_unchanged(tmp_path: Path) -> None:
    """If a worker dies in a call of many chunks, nothing of the call is applied, and a retry applies all of it."""
    inputs = INPUTS["pulse"](68_000)
    with Server(tmp_path) as server:
        with server.client() as first:
            first.post("/v1/models/pulse/sessions", json={"session_id": "s"})
        client = Client(server)
        body = {"inputs": inputs, "request_id": "long"}
        client.send(body)
        started, until = cpu_s(client.worker), time.monotonic() + 30
        while cpu_s(client.worker) - started < 0.2:  # of a second's work or more
            assert time.monotonic() < until
        server.kill_worker(client.worker)
        assert client.receive() is None
        client.close()
        with server.client() as http_client:
            assert http_client.get("/v1/sessions/s").json()["step"] == 0
        client = Client(server)
        client.send(body)
        response = client.receive()
        client.close()
        assert response is not None
        assert response["step"] == 68_000
        last = {name: value[-1:] for name, value in BareLoop(ZOO / "pulse/1").run(inputs).items()}
        ends = {name: rows[-1:] for name, rows in response["predictions"].items()}
        assert_same_bits({"predictions": ends, "surprise": response["surprise"][-1:]}, last)


def cpu_s(pid: int) -> float:
    """Returns the seconds of processor time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_sigterm_ends_cleanly_and_sessions_survive(tmp_path: Path) -> None:
    """After SIGTERM the service exits with 0, aborts no worker, and has stored what it acknowledged."""
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
