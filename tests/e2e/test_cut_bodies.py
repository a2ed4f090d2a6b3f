"""A request body that ends before its announced length changes nothing, on every route that reads a body.

The routes are those of the table of operations. Each body is cut after every number of bytes, and the connection ends
in each of the ways in which TCP can end.
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
"""A longer body is cut at every byte of its first part and of its last, and evenly between."""
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
"""A valid request for each operation that reads a body: its path, its body, and the status of its answer."""

End = Callable[[socket.socket], bytes]


def closed(connection: socket.socket) -> bytes:
    """The client closes the connection, and never sees an answer."""
    connection.close()
    return b""


def half_closed(connection: socket.socket) -> bytes:
    """The client sends no more, and reads the answer."""
    connection.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: connection.recv(65536), b""))


def reset(connection: socket.socket) -> bytes:
    """The client's machine sends a reset, as where the process was killed with unread data."""
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
    """A session that has made three steps, of which the last two can be taken back."""
    created = client.post("/v1/models/pulse/sessions", json={"session_id": name})
    assert created.status_code == 201
    for value in (500, 501, 502):
        assert client.post(f"/v1/sessions/{name}/steps", json={"inputs": [value]}).status_code == 200


def cut(server: Server, target: str, media: str, body: bytes, sent: int, end: End) -> bytes:
    """The answer to a request of which only so many bytes of its body are sent before the connection ends."""
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


def sockets(server: Server) -> int:
    return sum(file.startswith("socket:") for worker in server.workers() for file in open_files(worker))


def settle(server: Server, before: int) -> None:
    """Returns when the workers have closed what was opened since: they have done with those requests."""
    until = time.monotonic() + SETTLED_S
    while sockets(server) > before:
        assert time.monotonic() < until, "connections whose client has gone are open still"


def everything(client: httpx.Client) -> list[str]:
    names = [one["session_id"] for one in client.get("/v1/sessions").json()["sessions"]]
    return [client.get(f"/v1/sessions/{name}").text for name in names]


def test_each_operation_with_a_body_has_a_request_here() -> None:
    """A new route cannot be forgotten."""
    assert set(BODIES) == {f"{one.method} {one.path}" for one in OPERATIONS if one.body is not None}


@pytest.mark.parametrize("operation", BODIES)
def test_a_cut_body_changes_nothing(server: Server, operation: str) -> None:
    """Wherever it is cut, and however the connection ends; then the whole request is answered as ever."""
    path, content, status = BODIES[operation]
    method = operation.partition(" ")[0]
    with server.client() as client:
        client.delete("/v1/sessions?prefix=")
        begin(client, "s")
        body = json.dumps(content or client.get("/v1/sessions/s/state").json()).encode()
        before, files = everything(client), sockets(server)
        for sent in offsets(body):
            for end in (closed, half_closed, reset):
                answer = cut(server, f"{method} {path}", JSON, body, sent, end)
                if end is half_closed:
                    assert answer.startswith(b"HTTP/1.1 400 "), (sent, answer)
                    assert b"urn:onward:problem:bad-request" in answer
        settle(server, files)
        assert everything(client) == before
        whole = client.request(method, path, content=body, headers={"Content-Type": JSON})
        assert whole.status_code == status, whole.text


@pytest.mark.parametrize("operation", [f"{one.method} {one.path}" for one in OPERATIONS if one.line is not None])
def test_a_cut_line_is_not_applied(server: Server, operation: str) -> None:
    """Whole lines are applied. The line under way is dropped, even where what came of it is a number by itself."""
    path = operation.partition(" ")[2].replace("{model}", "pulse")
    body, values = b'515.25\n[516]\n{"ppg": 517}\n\n518.5', [[515.25], [516.0], [517.0]]
    loop = BareLoop(ZOO / "pulse/1")
    loop.run([[500.0], [501.0], [502.0]])
    expected = loop.run(values)
    with server.client() as client:
        for end in (closed, half_closed, reset):
            client.delete("/v1/sessions?prefix=")
            files, reached = sockets(server), {}
            for sent in range(len(body)):
                name = f"s{sent}"
                begin(client, name)
                reached[name] = 3 + min(len(values), body[:sent].count(b"\n"))
                answer = cut(server, f"POST {path.format(session_id=name)}?step=3", NDJSON, body, sent, end)
                if end is half_closed:
                    *steps, last = (json.loads(line) for line in answer.split(b"\r\n") if line.startswith(b"{"))
                    assert [step["step"] for step in steps] == list(range(4, reached[name] + 1)), (sent, answer)
                    for place, step in enumerate(steps):
                        assert_same_bits(step, expected, slice(place, place + 1))
                    assert last["type"] == "urn:onward:problem:bad-request"
                    assert f"{sent} of {len(body)} bytes came" in last["detail"]
                    assert (last["line"], last["step"]) == (body[:sent].count(b"\n") + 1, reached[name])
            settle(server, files)
            for name, step in reached.items():
                now = client.get(f"/v1/sessions/{name}").json()["step"]
                # lines after an answer that could not be delivered are not applied
                assert now == step if end is half_closed else 3 <= now <= step, (name, now, step)
