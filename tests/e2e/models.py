"""The models that each worker process of a real service serves, and requests to a chosen worker."""

import json
import re
import time
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.server import Server

SETTLED_S = 60
_SERVES = re.compile(r"\[(\d+)\] \[INFO\] Serves the models of generation (\d+): (.*)")

Served = tuple[int, dict[str, list[int]]]
"""A generation, and its models with their versions."""


def generations(server: Server) -> dict[int, Served]:
    """Returns what each worker has logged that it serves, by process id, including workers that have ended."""
    served = {}
    for match in filter(None, map(_SERVES.search, list(server.log))):
        models = [name_and_versions.split() for name_and_versions in match[3].split(", ")]
        served[int(match[1])] = int(match[2]), {name: [*map(int, versions)] for name, *versions in models}
    return served


def wait_until_serving(server: Server, generation: int, without: int | None = None) -> list[int]:
    """Waits until two workers serve that generation; returns them. `without` is a process that was killed."""
    workers, (served, _) = _wait_until_settled(server, generation, without)
    assert served == generation
    return workers


def wait_until_same(server: Server, *, later_than: int = 0, without: int | None = None) -> Served:
    """Waits until two workers serve the same generation; returns what they serve."""
    return _wait_until_settled(server, later_than + 1, without)[1]


def _wait_until_settled(server: Server, least: int, without: int | None) -> tuple[list[int], Served]:
    until = time.monotonic() + SETTLED_S
    while True:
        workers, logged = server.workers(), generations(server)
        served = [logged.get(worker, (0, {})) for worker in workers]
        if len(workers) == 2 and without not in workers and served[0] == served[1] and served[0][0] >= least:
            return workers, served[0]
        assert time.monotonic() < until, "".join(server.log[-100:])
        time.sleep(0.02)


def request_from(
    server: Server, worker: int, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[int, Any]:
    """Returns the status and the body of a response of this worker.

    Opens connections until this worker accepts one.
    """
    address = urlsplit(server.url)
    while True:
        with closing(HTTPConnection(address.hostname or "", address.port, timeout=30)) as connection:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            if server.holder(connection.sock) == worker:
                return request(connection, method, path, body)


def request(connection: HTTPConnection, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())
