"""Which models each worker process of a real service serves, and requests to one of them."""

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
    """By process, what each worker has said to serve, ended ones among them."""
    found = {}
    for match in filter(None, map(_SERVES.search, list(server.log))):
        models = [name_and_versions.split() for name_and_versions in match[3].split(", ")]
        found[int(match[1])] = int(match[2]), {name: [*map(int, versions)] for name, *versions in models}
    return found


def settled(server: Server, generation: int, without: int | None = None) -> list[int]:
    """The workers, once there are two and both serve that generation. without: a process that was killed."""
    workers, (served, _) = _settled(server, generation, without)
    assert served == generation
    return workers


def settled_somehow(server: Server, *, later_than: int = 0, without: int | None = None) -> Served:
    """What both workers serve, once there are two that serve the same generation."""
    return _settled(server, later_than + 1, without)[1]


def _settled(server: Server, least: int, without: int | None) -> tuple[list[int], Served]:
    until = time.monotonic() + SETTLED_S
    while True:
        workers, serve = server.workers(), generations(server)
        told = [serve.get(worker, (0, {})) for worker in workers]
        if len(workers) == 2 and without not in workers and told[0] == told[1] and told[0][0] >= least:
            return workers, told[0]
        assert time.monotonic() < until, "".join(server.log[-100:])
        time.sleep(0.02)


def ask(server: Server, worker: int, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and answer of this worker: over a new connection, as many as it takes until it accepts one."""
    address = urlsplit(server.url)
    while True:
        with closing(HTTPConnection(address.hostname or "", address.port, timeout=30)) as connection:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            if server.holder(connection.sock) == worker:
                return request(connection, method, path, body)


def request(connection: HTTPConnection, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
