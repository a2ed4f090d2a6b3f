"""A service whose models folder changes serves what it read at the start or at the last reload."""

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.models import request, request_from, wait_until_serving
from tests.e2e.server import Server
from tests.helpers.recorded_bundles import draw, make_bundle
from tests.helpers.reference_loop import BareLoop, assert_same_bits

ROWS: list[list[float]] = draw(1, 40)[0].tolist()
CREATE = "/v1/models/tiny/sessions"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with `tiny/1`, which tests change, and `other/1`."""
    make_bundle(tmp_path / "models", seed=1)
    make_bundle(tmp_path / "models", name="other", seed=3)
    return tmp_path / "models"


class Sequence:
    """A session, compared with a bare loop of the bundle that it began on."""

    def __init__(self, server: Server, name: str, loop: BareLoop) -> None:
        self._server, self.name, self._loop, self._step = server, name, copy(loop), 0

    def begin(self, worker: int, version: int) -> None:
        """Creates the session without naming a version; asserts that it is on this version."""
        status, answer = request_from(self._server, worker, "POST", CREATE, {"session_id": self.name})
        assert (status, answer["version"]) == (201, version), answer

    def step_and_compare(self, worker: int) -> None:
        rows = ROWS[self._step : self._step + 3]
        status, answer = self.step(worker)
        assert status == 200, answer
        assert_same_bits(answer, self._loop.run(rows))
        self._step += 3
        assert answer["step"] == self._step

    def step(self, worker: int) -> tuple[int, Any]:
        body = {"inputs": ROWS[self._step : self._step + 3]}
        return request_from(self._server, worker, "POST", f"/v1/sessions/{self.name}/steps", body)


def add(models: Path) -> None:
    make_bundle(models, seed=2, version=2)


def replace(models: Path) -> None:
    """Replaces the bundle in place, so that the files keep their names and inodes."""
    made = models.parent / "made"
    make_bundle(made, seed=2)
    for name in ("model.onnx", "manifest.json"):
        (models / "tiny/1" / name).write_bytes((made / "tiny/1" / name).read_bytes())


def remove(models: Path) -> None:
    shutil.rmtree(models / "tiny")


def break_off(models: Path) -> None:
    """Truncates the graph, as an unfinished copy would."""
    graph = models / "tiny/1/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])


def unmount(models: Path) -> None:
    models.rename(models.parent / "elsewhere")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "added": (add, "tiny/2 is new"),
    "replaced": (replace, "tiny/1 has changed"),
    "removed": (remove, "tiny/1 is gone"),
    "broken off": (break_off, "tiny/1 has changed"),
    "unmounted": (unmount, "no such folder of models"),
}
"""Changes of the folder, and what the log reports of each at the reload."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_worker_that_starts_later_serves_what_the_others_serve(tmp_path: Path, repository: Path, change: str) -> None:
    """All workers use the first graph until a reload, whatever happens to the folder."""
    loop = BareLoop(repository / "tiny/1")
    make, logged = CHANGES[change]
    with Server(tmp_path, ONWARD_MODELS=str(repository)) as server:
        workers = wait_until_serving(server, 1)
        old = Sequence(server, "old", loop)
        old.begin(workers[0], 1)
        make(repository)
        server.kill_worker(workers[0])
        workers = wait_until_serving(server, 1, without=workers[0])
        for number, worker in enumerate(workers):
            fresh = Sequence(server, f"s{number}", loop)
            fresh.begin(worker, 1)
            for anywhere in workers * 2:
                old.step_and_compare(anywhere)
                fresh.step_and_compare(anywhere)
        states = [request_from(server, worker, "GET", "/readyz")[1] for worker in workers]
        assert (
            states
            == [{"status": "ready", "models": {"other": [1], "tiny": [1]}, "refused": [], "unserved_sessions": {}}] * 2
        )
        os.kill(server.pid, signal.SIGHUP)
        workers = wait_until_replaced(server, workers) if change == "unmounted" else wait_until_serving(server, 2)
        check_reloaded(server, workers, change, old, tmp_path)
        server.stop()
        assert any(logged in line for line in server.log)


def wait_until_replaced(server: Server, before: list[int]) -> list[int]:
    """Waits until all earlier workers are replaced; returns the new ones. The generation stays, as nothing was read."""
    for worker in before:
        workers = wait_until_serving(server, 1, without=worker)
    return workers


def check_reloaded(server: Server, workers: list[int], change: str, old: Sequence, tmp_path: Path) -> None:
    """Asserts what every worker serves after the reload, and how it answers the session that began before."""
    for number, worker in enumerate(workers):
        bundle = {"added": "models/tiny/2", "replaced": "models/tiny/1", "unmounted": "elsewhere/tiny/1"}.get(change)
        if bundle is not None:
            fresh = Sequence(server, f"after{number}", BareLoop(tmp_path / bundle))
            fresh.begin(worker, 2 if change == "added" else 1)
            for anywhere in workers:
                fresh.step_and_compare(anywhere)
        else:
            status, problem = request_from(server, worker, "POST", CREATE, {})
            assert (status, problem["type"]) == (404, "urn:onward:problem:unknown-model")
        ready = request_from(server, worker, "GET", "/readyz")[1]
        assert ready["unserved_sessions"] == ({} if bundle else {"tiny/1": 3})
        assert [bundle_error["file"] for bundle_error in ready["refused"]] == ["tiny/1/model.onnx"] * (
            change == "broken off"
        )
        if change in {"added", "unmounted"}:
            old.step_and_compare(worker)
            continue
        status, problem = old.step(worker)
        assert (status, problem["type"]) == (409, "urn:onward:problem:model-gone")
        why = {"replaced": "replaced", "removed": "not served here", "broken off": "refused (checksum is"}[change]
        assert why in problem["detail"]


@dataclass
class Load:
    """Clients that create sessions and step them over new connections, until `ends` is set."""

    server: Server
    loops: dict[int, BareLoop]
    ends: threading.Event = field(default_factory=threading.Event)
    answers: Counter[str] = field(default_factory=Counter)
    began: list[tuple[float, int]] = field(default_factory=list)
    """The time of the request for each session, and the version of the session."""
    wrong: list[str] = field(default_factory=list)

    def run(self, client: int) -> None:
        number = 0
        while not self.ends.is_set():
            number += 1
            self.session(f"c{client}-{number}")

    def session(self, name: str) -> None:
        requested = time.monotonic()
        created = self.deliver(CREATE, {"session_id": name})
        self.began.append((requested, created["version"]))
        loop = copy(self.loops[created["version"]])
        for step in range(5):
            rows = ROWS[step : step + 1]
            body = {"inputs": rows, "request_id": f"r{step}"}
            answer = self.deliver(f"/v1/sessions/{name}/steps", body)
            try:
                assert_same_bits(answer, loop.run(rows))
            except AssertionError as error:
                self.wrong.append(f"{name} on {created['version']} at {step}: {error}")

    def deliver(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Repeats a request until it succeeds; an existing session was created by a request whose response was lost."""
        address = urlsplit(self.server.url)
        while True:
            with closing(HTTPConnection(address.hostname or "", address.port, timeout=30)) as connection:
                try:
                    status, answer = request(connection, "POST", path, body)
                    if status == 409 and path == CREATE:
                        status, answer = request(connection, "GET", f"/v1/sessions/{body['session_id']}", None)
                except (OSError, HTTPException) as error:
                    self.answers[type(error).__name__] += 1
                    continue
            if status in {200, 201}:
                self.answers["done"] += 1
                return dict(answer)
            self.answers[answer["type"]] += 1
            assert status == 503, answer


def test_a_reload_under_load_mixes_no_versions(tmp_path: Path, repository: Path) -> None:
    """A session stays on its version, and after the reload all new sessions are on the new version.

    During the reload workers of both generations answer; an old worker refuses a version that it does not serve, with
    an error that can be retried.
    """
    loops = {1: BareLoop(repository / "tiny/1")}
    with Server(tmp_path, ONWARD_MODELS=str(repository)) as server:
        before = wait_until_serving(server, 1)
        add(repository)
        loops[2] = BareLoop(repository / "tiny/2")
        load = Load(server, loops)
        clients = [threading.Thread(target=load.run, args=(number,)) for number in range(4)]
        for client in clients:
            client.start()
        try:
            sessions(load, 20)
            server.kill_worker(before[0])
            wait_until_serving(server, 1, without=before[0])
            sessions(load, 20)
            assert {version for _, version in load.began} == {1}
            os.kill(server.pid, signal.SIGHUP)
            wait_until_serving(server, 2)
            over = time.monotonic()
            sessions(load, 40)
        finally:
            load.ends.set()
            for client in clients:
                client.join(60)
        status, ready = request_from(server, server.workers()[0], "GET", "/readyz")
        assert (status, ready["models"]["tiny"]) == (200, [1, 2])
    assert not load.wrong, load.wrong[:3]
    assert {version for at, version in load.began if at > over} == {2}
    last = max(at for at, version in load.began if version == 1)
    first = min(at for at, version in load.began if version == 2)
    print(f"sessions began on both versions for {last - first:.2f} s; {dict(load.answers)}")  # noqa: T201


def sessions(load: Load, count: int) -> None:
    """Returns once `count` more sessions have begun."""
    goal, until = len(load.began) + count, time.monotonic() + 60
    while len(load.began) < goal:
        assert time.monotonic() < until, load.answers
        time.sleep(0.02)
