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
_SERVES = re.compile(r"\[(\d+)\] \[INFO\] Serves the models of generation (\d+)")


def generations(server: Server) -> dict[int, int]:
    """By process, the generation of models that each worker has said to serve, ended ones among them."""
    return {int(found[1]): int(found[2]) for line in list(server.log) if (found := _SERVES.search(line))}


def settled(server: Server, generation: int, without: int | None = None) -> list[int]:
    """The workers, once there are two and both serve that generation. without: a process that was killed."""
    until = time.monotonic() + SETTLED_S
    while True:
        workers, serve = server.workers(), generations(server)
        if len(workers) == 2 and without not in workers and {serve.get(worker) for worker in workers} == {generation}:
            return workers
        assert time.monotonic() < until, "".join(server.log)
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
