"""A damaged store is named in the log once and does not restart workers for ever; a suspended writer blocks no read."""

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

import httpx

from onward.service.server.crashes import MOST
from tests.e2e.server import START_S, Server


def fill(server: Server) -> None:
    items = [{"session_id": f"s{number}", "inputs": [500]} for number in range(1000)]
    with server.client() as client:
        for item in items:
            assert client.post("/v1/models/pulse/sessions", json=item).status_code == 201


def read_until_it_ends(server: Server) -> int:
    """Reads sessions until the service has given up; returns its exit status."""
    until = time.monotonic() + START_S
    while not server.has_ended():
        assert time.monotonic() < until, "".join(server.log)
        with contextlib.suppress(httpx.HTTPError), server.client() as client:
            for number in range(0, 1000, 50):
                client.get(f"/v1/sessions/s{number}")
    return server.exit_status()


def test_a_truncated_store_is_refused(tmp_path: Path) -> None:
    """A truncated store is refused with one line at the start, and under a running service by the next new worker.

    Once the file is restored, the service continues with its sessions.
    """
    data = tmp_path / "store" / "data.mdb"
    server = Server(tmp_path)
    with server:
        fill(server)
        assert server.stop() == 0
        whole = data.read_bytes()
        os.truncate(data, 2**18)
        printed = server.refusal()
        assert printed.startswith("onward: the session store cannot be opened: ")
        assert f"{data.parent}: data.mdb is cut short: it has {2**18} bytes" in printed
        assert printed.count("\n") == 1
        data.write_bytes(whole)
        server.start()
        os.truncate(data, 2**18)
        assert read_until_it_ends(server) == 3
        log = "".join(server.log)
        assert f"cannot start: the session store does not answer: {data.parent}: data.mdb is cut short" in log
        assert "lmdb.py" in log  # where the worker was when it died
        assert log.count("Booting worker") < 2 + MOST
        data.write_bytes(whole)
        server.start()
        with server.client() as client:
            assert client.post("/v1/sessions/s999/steps", json={"inputs": [500], "step": 1}).json()["step"] == 2


def test_repeated_crashes_of_workers_end_the_service(tmp_path: Path) -> None:
    """The message names the store, whatever the cause of the crashes; workers killed with SIGKILL do not count."""
    with Server(tmp_path) as server:
        dead: set[int] = set()
        for number in [signal.SIGKILL] * (MOST + 1) + [signal.SIGSEGV] * MOST:
            until = time.monotonic() + START_S
            while not (workers := set(server.ready_workers()) - dead):
                assert time.monotonic() < until, "".join(server.log)
            dead.add(worker := workers.pop())
            os.kill(worker, number)
        assert server.exit_status() == 3
        log = "".join(server.log)
        assert f"{MOST} workers crashed within 60 s; the session store lmdb://{tmp_path}/store may be damaged" in log


def test_the_service_answers_while_a_writer_is_suspended(tmp_path: Path) -> None:
    """Steps are refused with a Retry-After, health checks and reads are answered; steps work once the lock is free."""
    with Server(tmp_path) as server, server.client() as client:
        client.post("/v1/models/pulse/sessions", json={"session_id": "s"})
        writer = os.open(tmp_path / "store" / "write.lock", os.O_RDWR)
        fcntl.flock(writer, fcntl.LOCK_EX)  # as a worker that is suspended in a write holds it
        refused = client.post("/v1/sessions/s/steps", json={"inputs": [500]})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "another process has been in a write to it" in refused.json()["detail"]
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/sessions/s").json()["step"] == 0
        os.close(writer)
        assert client.post("/v1/sessions/s/steps", json={"inputs": [500]}).json()["step"] == 1
