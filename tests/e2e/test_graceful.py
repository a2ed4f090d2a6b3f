"""A stop or a reload under load answers every accepted connection and logs no error."""

import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.server import Server

ASK = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
STEP = (
    b"POST /v1/sessions/s/steps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n"
    b'{"inputs": [500]}'
)
CLIENTS, ANSWERED = 8, 100


@pytest.fixture(params=["1", "2"], ids=["one worker", "two workers"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, ONWARD_WORKERS=request.param) as running:
        with running.client() as client:
            assert client.post("/v1/models/pulse/sessions", json={"session_id": "s"}).status_code == 201
        yield running


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def exchange(connection: socket.socket, request: bytes) -> bytes:
    """Sends a request; returns the response up to the end of the connection or of the JSON document."""
    connection.sendall(request)
    response = b""
    while not response.endswith(b"}") and (data := connection.recv(65536)):
        response += data
    return response


def wait_until_accepted(server: Server, connection: socket.socket) -> None:
    """Returns when a worker has accepted the connection."""
    while True:
        try:
            server.holder(connection)
        except AssertionError:
            continue
        return


def wait_until_refused(server: Server) -> None:
    """Returns when the service no longer listens."""
    while True:
        try:
            connect(server).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue


def assert_clean(server: Server) -> None:
    log = "".join(server.log)
    assert "Traceback" not in log, log
    assert "[ERROR]" not in log, log


def test_a_connection_that_was_accepted_is_answered_after_a_stop(server: Server) -> None:
    """A stop answers new and reused connections, with requests of the fast path and of Flask."""
    with connect(server) as fresh, connect(server) as fresh_step, connect(server) as again, connect(server) as step:
        wait_until_accepted(server, fresh)
        wait_until_accepted(server, fresh_step)
        for connection, request in ((again, ASK), (step, STEP)):
            assert exchange(connection, request).startswith(b"HTTP/1.1 200 ")
        os.kill(server.pid, signal.SIGTERM)
        wait_until_refused(server)
        for connection, request in ((fresh, ASK), (fresh_step, STEP), (again, ASK), (step, STEP)):
            response = exchange(connection, request)
            assert response.startswith(b"HTTP/1.1 200 "), response
            assert b"\r\nConnection: close\r\n" in response
    assert server.stop() == 0
    assert_clean(server)


class Load:
    """Clients that open a connection for each request, and the counts of the outcomes."""

    def __init__(self, server: Server) -> None:
        self._server, self._over, self.outcomes = server, threading.Event(), Counter[str]()

    def _run(self, request: bytes) -> None:
        while not self._over.is_set():
            try:
                with connect(self._server) as connection:
                    response = exchange(connection, request)
            except ConnectionRefusedError:
                outcome = "refused"
            except (ConnectionResetError, BrokenPipeError):
                outcome = "reset"
            else:
                outcome = "answered" if response.startswith(b"HTTP/1.1 200 ") else f"not answered: {response[:200]!r}"
            self.outcomes[outcome] += 1

    def wait_for_more(self) -> None:
        """Returns when ANSWERED more requests have been answered."""
        until = self.outcomes["answered"] + ANSWERED
        while self.outcomes["answered"] < until:
            assert any(thread.is_alive() for thread in self._threads)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._threads = [
            threading.Thread(target=self._run, args=(STEP if number % 2 else ASK,)) for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()


def test_fresh_connections_are_answered_through_reloads_and_a_stop(server: Server) -> None:
    """A reload loses no request; a stop answers every accepted connection and refuses or resets later ones."""
    load = Load(server)
    with load.running():
        for _ in range(2):
            load.wait_for_more()
            old = set(server.workers())
            os.kill(server.pid, signal.SIGHUP)
            while old & set(server.workers()):
                load.wait_for_more()
        load.wait_for_more()
        assert set(load.outcomes) == {"answered"}, load.outcomes
        os.kill(server.pid, signal.SIGTERM)
        while not load.outcomes["refused"]:
            assert any(thread.is_alive() for thread in load._threads)
    assert set(load.outcomes) <= {"answered", "refused", "reset"}, load.outcomes
    assert server.stop() == 0
    assert_clean(server)
