"""A store that is damaged, or whose writer is stopped, is named, once; it is no reason to start workers for ever."""

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

import httpx

from onward.service.server.crashes import MOST
from tests.e2e.server import START_S, Server


def filled(server: Server) -> None:
    items = [{"session_id": f"s{number}", "inputs": [500]} for number in range(1000)]
    with server.client() as client:
        for item in items:
            assert client.post("/v1/models/pulse/sessions", json=item).status_code == 201


def asked_until_it_ends(server: Server) -> int:
    """Reads sessions until the service has given up; its exit status."""
    until = time.monotonic() + START_S
    while not server.over():
        assert time.monotonic() < until, "".join(server.log)
        with contextlib.suppress(httpx.HTTPError), server.client() as client:
            for number in range(0, 1000, 50):
                client.get(f"/v1/sessions/s{number}")
    return server.ended()


def test_a_store_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    """At the start with one line; under a running service by the first worker that starts anew; whole, it serves on."""
    data = tmp_path / "store" / "data.mdb"
    server = Server(tmp_path)
    with server:
        filled(server)
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
        assert asked_until_it_ends(server) == 3
        log = "".join(server.log)
        assert f"cannot start: the session store does not answer: {data.parent}: data.mdb is cut short" in log
        assert "lmdb.py" in log  # where the worker was when it died
        assert log.count("Booting worker") < 2 + MOST
        data.write_bytes(whole)
        server.start()
        with server.client() as client:
            assert client.post("/v1/sessions/s999/steps", json={"inputs": [500], "step": 1}).json()["step"] == 2


def test_workers_that_crash_again_and_again_end_the_service(tmp_path: Path) -> None:
    """Whatever the cause: the message names the store. Workers that are killed from outside do not count."""
    with Server(tmp_path) as server:
        dead: set[int] = set()
        for number in [signal.SIGKILL] * (MOST + 1) + [signal.SIGSEGV] * MOST:
            until = time.monotonic() + START_S
            while not (workers := set(server.ready_workers()) - dead):
                assert time.monotonic() < until, "".join(server.log)
            dead.add(worker := workers.pop())
            os.kill(worker, number)
        assert server.ended() == 3
        log = "".join(server.log)
        assert f"{MOST} workers crashed within 60 s; the session store lmdb://{tmp_path}/store may be damaged" in log


def test_a_stopped_writer_leaves_the_others_answering(tmp_path: Path) -> None:
    """Steps are refused with when to come again, health and reads are answered; then all goes on."""
    with Server(tmp_path) as server, server.client() as client:
        client.post("/v1/models/pulse/sessions", json={"session_id": "s"})
        writer = os.open(tmp_path / "store" / "write.lock", os.O_RDWR)
        fcntl.flock(writer, fcntl.LOCK_EX)  # as a worker has it that is stopped in a write
        refused = client.post("/v1/sessions/s/steps", json={"inputs": [500]})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "another process has been in a write to it" in refused.json()["detail"]
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/sessions/s").json()["step"] == 0
        os.close(writer)
        assert client.post("/v1/sessions/s/steps", json={"inputs": [500]}).json()["step"] == 1
