"""A request body that ends before its announced length changes nothing, on every route that reads a body.

The routes are those of the table of operations. Each body is cut at many offsets, and the connection ends in each of
the ways in which TCP can end.
"""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from onward.service.app import OPERATIONS
from onward.service.http.operations import NDJSON
from tests.e2e.server import Server, open_files
from tests.helpers.reference_loop import ZOO, BareLoop, assert_same_bits

JSON = "application/json"
MOST_OFFSETS = 150
"""A longer body is cut at each of its first and last 40 bytes, and at even distances between them."""
SETTLED_S = 60

BODIES: dict[str, tuple[str, Any, int]] = {
    "POST /v1/models/{model}/predict": ("/v1/models/pulse/predict", {"inputs": [[500], [501]], "horizon": 2}, 200),
    "POST /v1/models/{model}/step": ("/v1/models/pulse/step", {"inputs": [500.25]}, 200),
    "POST /v1/models/{model}/sessions": ("/v1/models/pulse/sessions", {"session_id": "born", "inputs": [5]}, 201),
    "PUT /v1/models/{model}/sessions/{session_id}": ("/v1/models/pulse/sessions/put", {"inputs": [5, 6]}, 201),
    "POST /v1/models/{model}/sessions/{session_id}/steps": (
        "/v1/models/pulse/sessions/stepped/steps",
        {"inputs": [515.25]},
        201,
    ),
    "POST /v1/sessions/{session_id}/fork": ("/v1/sessions/s/fork", {"session_id": "forked"}, 201),
    "POST /v1/sessions/{session_id}/rewind": ("/v1/sessions/s/rewind", {"step": 2}, 200),
    "POST /v1/sessions/{session_id}/migrate": ("/v1/sessions/s/migrate", {"version": 1}, 200),
    "PUT /v1/sessions/{session_id}/state": ("/v1/sessions/restored/state", None, 201),
    "POST /v1/sessions/{session_id}/steps": ("/v1/sessions/s/steps", {"inputs": [515.25], "step": 3}, 200),
    "POST /v1/steps": ("/v1/steps", {"items": [{"session_id": "s", "inputs": [500, 515.25]}]}, 200),
    "POST /v1/sessions/{session_id}/forecast": ("/v1/sessions/s/forecast", {"horizon": 3, "inputs": [515.25]}, 200),
    "POST /v1/sessions/{session_id}/generate": ("/v1/sessions/s/generate", {"horizon": 3, "seed": 5}, 200),
}
"""A valid request for each operation that reads a body: its path, its body, and the status of its response."""

End = Callable[[socket.socket], bytes]


def close(connection: socket.socket) -> bytes:
    """Closes the connection without reading a response."""
    connection.close()
    return b""


def half_close(connection: socket.socket) -> bytes:
    """Ends the sending side of the connection and reads the response."""
    connection.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: connection.recv(65536), b""))


def reset(connection: socket.socket) -> bytes:
    """Sends a TCP reset, as happens when a process is killed with unread data."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    return b""


@pytest.fixture(scope="module", params=["1", "0"], ids=["fast path", "flask"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    settings = {"ONWARD_LANE": request.param, "ONWARD_SECRET": "0123456789abcdef" * 2, "ONWARD_HISTORY": "8"}
    with Server(folder, **settings) as running:
        yield running


def begin(client: httpx.Client, name: str) -> None:
    """Creates a session that has made three steps, of which the last two can be rewound."""
    created = client.post("/v1/models/pulse/sessions", json={"session_id": name})
    assert created.status_code == 201
    for value in (500, 501, 502):
        assert client.post(f"/v1/sessions/{name}/steps", json={"inputs": [value]}).status_code == 200


def cut(server: Server, target: str, media: str, body: bytes, sent: int, end: End) -> bytes:
    """Sends a request with only `sent` bytes of its body, and ends the connection; returns the response."""
    method, _, path = target.partition(" ")
    address = urlsplit(server.url)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(head.encode() + body[:sent])
        return end(connection)


def offsets(body: bytes) -> list[int]:
    every = len(body) // MOST_OFFSETS + 1
    edges = {*range(min(40, len(body))), *range(max(0, len(body) - 40), len(body))}
    return sorted(edges | set(range(0, len(body), every)))


def count_sockets(server: Server) -> int:
    return sum(file.startswith("socket:") for worker in server.workers() for file in open_files(worker))


def settle(server: Server, before: int) -> None:
    """Returns when the workers have closed the connections opened since, so that they have finished those requests."""
    until = time.monotonic() + SETTLED_S
    while count_sockets(server) > before:
        assert time.monotonic() < until, "connections whose client has disconnected are still open"


def all_sessions(client: httpx.Client) -> list[str]:
    names = [session["session_id"] for session in client.get("/v1/sessions").json()["sessions"]]
    return [client.get(f"/v1/sessions/{name}").text for name in names]


def test_each_operation_with_a_body_has_a_request() -> None:
    """A new route with a body fails this test until it has a request in BODIES."""
    assert set(BODIES) == {f"{route.method} {route.path}" for route in OPERATIONS if route.body is not None}


@pytest.mark.parametrize("operation", BODIES)
def test_a_cut_body_changes_nothing(server: Server, operation: str) -> None:
    """The service changes nothing, wherever the body is cut and however the connection ends."""
    path, content, status = BODIES[operation]
    method = operation.partition(" ")[0]
    with server.client() as client:
        client.delete("/v1/sessions?prefix=")
        begin(client, "s")
        body = json.dumps(content or client.get("/v1/sessions/s/state").json()).encode()
        before, files = all_sessions(client), count_sockets(server)
        for sent in offsets(body):
            for end in (close, half_close, reset):
                response = cut(server, f"{method} {path}", JSON, body, sent, end)
                if end is half_close:
                    assert response.startswith(b"HTTP/1.1 400 "), (sent, response)
                    assert b"urn:onward:problem:bad-request" in response
        settle(server, files)
        assert all_sessions(client) == before
        whole = client.request(method, path, content=body, headers={"Content-Type": JSON})
        assert whole.status_code == status, whole.text


@pytest.mark.parametrize(
    "operation", [f"{route.method} {route.path}" for route in OPERATIONS if route.line is not None]
)
def test_a_cut_line_is_not_applied(server: Server, operation: str) -> None:
    """Complete lines are applied. The last, incomplete line is dropped, even if its beginning is a valid number."""
    path = operation.partition(" ")[2].replace("{model}", "pulse")
    body, values = b'515.25\n[516]\n{"ppg": 517}\n\n518.5', [[515.25], [516.0], [517.0]]
    loop = BareLoop(ZOO / "pulse/1")
    loop.run([[500.0], [501.0], [502.0]])
    expected = loop.run(values)
    with server.client() as client:
        for end in (close, half_close, reset):
            client.delete("/v1/sessions?prefix=")
            files, reached = count_sockets(server), {}
            for sent in range(len(body)):
                name = f"s{sent}"
                begin(client, name)
                reached[name] = 3 + min(len(values), body[:sent].count(b"\n"))
                response = cut(server, f"POST {path.format(session_id=name)}?step=3", NDJSON, body, sent, end)
                if end is half_close:
                    *steps, last = (json.loads(line) for line in response.split(b"\r\n") if line.startswith(b"{"))
                    assert [step["step"] for step in steps] == list(range(4, reached[name] + 1)), (sent, response)
                    for index, step in enumerate(steps):
                        assert_same_bits(step, expected, slice(index, index + 1))
                    assert last["type"] == "urn:onward:problem:bad-request"
                    assert f"{sent} of {len(body)} bytes came" in last["detail"]
                    assert (last["line"], last["step"]) == (body[:sent].count(b"\n") + 1, reached[name])
            settle(server, files)
            for name, step in reached.items():
                now = client.get(f"/v1/sessions/{name}").json()["step"]
                # lines after a response that could not be delivered are not applied
                assert now == step if end is half_close else 3 <= now <= step, (name, now, step)
