"""A models folder that changes, and the checks of what the service serves then."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.models import request, wait_until_same
from tests.e2e.server import Server
from tests.helpers.reference_loop import ZOO, pulse

MODEL, FIRST = "pulse", 1
PROBES = 8
RESPONSE_S = 60


class Repository:
    """The zoo with versions of `pulse` that are added and removed, all with the same graph; the first one stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ZOO, folder)
        self.complete = {FIRST}
        """The versions that can serve."""
        self._last = FIRST
        self._changes = cycle([self._add, self._half_copy, self._add, self._break, self._remove])

    def change(self) -> None:
        next(self._changes)()

    def _add(self) -> None:
        self._copy(self._next(), lambda graph: graph)
        self.complete.add(self._last)

    def _half_copy(self) -> None:
        self._copy(self._next(), lambda graph: graph[: len(graph) // 2])

    def _break(self) -> None:
        """Damages in place the graph of a version that may be served."""
        graph = self._of(self._newest()) / "model.onnx"
        graph.write_bytes(graph.read_bytes()[:-1])

    def _remove(self) -> None:
        shutil.rmtree(self._of(self._newest()))

    def _newest(self) -> int:
        newest = max(self.complete - {FIRST})
        self.complete.remove(newest)
        return newest

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _copy(self, version: int, content: Callable[[bytes], bytes]) -> None:
        bundle, first = self._of(version), self._of(FIRST)
        bundle.mkdir()
        (bundle / "model.onnx").write_bytes(content((first / "model.onnx").read_bytes()))
        manifest = (first / "manifest.json").read_text()
        (bundle / "manifest.json").write_text(manifest.replace('"version": 1,', f'"version": {version},', 1))

    def _of(self, version: int) -> Path:
        return self.folder / MODEL / str(version)


def reload(server: Server) -> None:
    """Returns once the master has read the models again; its workers follow later."""
    before = reloads(server)
    os.kill(server.pid, signal.SIGHUP)
    until = time.monotonic() + RESPONSE_S
    while reloads(server) == before:
        assert time.monotonic() < until, "".join(server.log[-30:])
        time.sleep(0.02)


def reloads(server: Server) -> int:
    return sum("Models, generation" in line for line in list(server.log))


def check_change(server: Server, repository: Repository, kill: Callable[[], int | None]) -> None:
    """Changes the folder and kills a worker: a reload, and nothing before it, makes all workers serve the change."""
    generation, served = wait_until_same(server)
    repository.change()
    killed = kill()
    assert wait_until_same(server, without=killed) == (generation, served)
    version = max(served[MODEL])
    probes = [_create_session(server, version) for _ in range(PROBES)]
    reload(server)
    after, served_after = wait_until_same(server, later_than=generation)
    assert set(served_after[MODEL]) == repository.complete, (after, served_after, repository.complete)
    for _ in range(PROBES):
        _create_session(server, max(repository.complete))
    for session in probes:
        status, answer = _request_until_answered(
            server, f"/v1/sessions/{session}/steps", {"inputs": pulse(1), "step": 0}
        )
        served_still = version in repository.complete
        assert status == (200 if served_still else 409), answer
        assert served_still or answer["type"] == "urn:onward:problem:model-gone", answer


def _create_session(server: Server, version: int) -> str:
    """Creates a session without naming a version; asserts that it is on this version, and returns its id."""
    status, answer = _request_until_answered(server, f"/v1/models/{MODEL}/sessions", {})
    assert (status, answer["version"]) == (201, version), answer
    return str(answer["session_id"])


def _request_until_answered(server: Server, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Repeats a request while the service is not available; returns the status and the body of the response."""
    address = urlsplit(server.url)
    until = time.monotonic() + RESPONSE_S
    while True:
        with closing(HTTPConnection(address.hostname or "", address.port, timeout=10)) as connection:
            try:
                status, answer = request(connection, "POST", path, body)
            except (OSError, HTTPException) as error:
                status, answer = 503, error
        if status != 503:
            return status, answer
        assert time.monotonic() < until, answer
