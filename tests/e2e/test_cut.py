"""A connection that is cut at any byte, in either direction, loses no step and applies none twice, in every protocol.

A proxy passes a number of bytes of a small exchange and then cuts both sides. The client continues as the
documentation tells it, and in the end has each response once, equal to that of a bare loop bit for bit.
"""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.server import Server
from tests.helpers import sse_reader
from tests.helpers.reference_loop import ZOO, BareLoop, assert_same_bits, pulse
from tests.helpers.websocket_client import Frames, frame, handshake

INPUTS = pulse(2)
EXPECTED = BareLoop(ZOO / "pulse/1").run(INPUTS)
BODIES = [{"inputs": [row], "request_id": f"r{number}"} for number, row in enumerate(INPUTS)]
CUT_INTERVAL_BYTES = 1
"""The distance between two cuts that are tried."""

Responses = dict[int, dict[str, Any]]
"""The responses by the index of their request in the exchange."""


class CutConnection:
    """A connection through a proxy that passes `budget` bytes, both ways together, and then cuts."""

    def __init__(self, url: str, budget: int) -> None:
        address = urlsplit(url)
        self._near, self.client = socket.socketpair()
        self._far = socket.create_connection((address.hostname, address.port), timeout=30)
        self.client.settimeout(30)
        self._budget, self._lock = budget, threading.Lock()
        self._threads = [
            threading.Thread(target=self._pass, args=pair)
            for pair in ((self._near, self._far), (self._far, self._near))
        ]
        for thread in self._threads:
            thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    allowed = data[: self._budget]
                    self._budget -= len(allowed)
                sink.sendall(allowed)
                if len(allowed) < len(data) or not self._budget:
                    break
        for end in (self._near, self._far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @property
    def complete(self) -> bool:
        """True if everything was passed that was sent."""
        return self._budget > 0

    def close(self) -> None:
        self.client.close()
        for thread in self._threads:
            thread.join()
        self._near.close()
        self._far.close()


def receive(client: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while data := client.recv(65536):
            yield data


def post_request(body: Any, path: str, media: str = "application/json") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def first_body(received: bytes) -> bytes | None:
    """Returns the body of the first response; None if it is not complete."""
    head, separator, rest = received.partition(b"\r\n\r\n")
    if not separator:
        return None
    assert head.startswith(b"HTTP/1.1 200 "), received
    length = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
    return rest[:length] if len(rest) >= length else None


def by_steps(cut: CutConnection, client: httpx.Client, name: str) -> Responses:
    """Posts one request after another; posts a request again if it has no response."""
    responses: Responses = {}
    with contextlib.suppress(OSError):
        for index, body in enumerate(BODIES):
            cut.client.sendall(post_request(body, f"/v1/sessions/{name}/steps"))
            received = b""
            for data in receive(cut.client):
                received += data
                if (content := first_body(received)) is not None:
                    responses[index] = json.loads(content)
                    break
            else:
                break
    for index, body in enumerate(BODIES):
        if index not in responses:
            responses[index] = client.post(f"/v1/sessions/{name}/steps", json=body).json()
    return responses


def in_bulk(cut: CutConnection, client: httpx.Client, name: str) -> Responses:
    """Sends all steps in one call; repeats the call if it has no response."""
    body = {"items": [{"session_id": name, **step} for step in BODIES]}
    with contextlib.suppress(OSError):
        cut.client.sendall(post_request(body, "/v1/steps"))
    received = b""
    for data in receive(cut.client):
        received += data
        if first_body(received) is not None:
            break
    content = first_body(received)
    response = json.loads(content) if content else client.post("/v1/steps", json=body).json()
    return dict(enumerate(response["items"]))


def by_stream(cut: CutConnection, client: httpx.Client, name: str) -> Responses:
    """Sends all messages at once; repeats those without a response, with their request_id, over another connection."""
    responses: Responses = {}
    with contextlib.suppress(OSError):
        cut.client.sendall(handshake(f"/v1/sessions/{name}/stream"))
        head, frames = b"", Frames()
        for data in receive(cut.client):
            if b"\r\n\r\n" not in head:
                head += data
                if b"\r\n\r\n" not in head:
                    continue
                cut.client.sendall(b"".join(frame(json.dumps(body).encode()) for body in BODIES))
                data = head.partition(b"\r\n\r\n")[2]  # noqa: PLW2901
            for _, payload in frames.feed(data):
                responses[len(responses)] = json.loads(payload)
            if len(responses) == len(BODIES):
                break
    for index, body in enumerate(BODIES):
        if index not in responses:
            responses[index] = client.post(f"/v1/sessions/{name}/steps", json=body).json()
    return responses


def by_lines(cut: CutConnection, client: httpx.Client, name: str) -> Responses:
    """Sends all lines at once; sends those again that the step of the session shows as not applied."""
    lines = [json.dumps(row).encode() + b"\n" for row in INPUTS]
    responses: Responses = {}
    with contextlib.suppress(OSError):
        cut.client.sendall(post_request(b"".join(lines), f"/v1/sessions/{name}/steps?step=0", "application/x-ndjson"))
    received = b""
    for data in receive(cut.client):
        received += data
        if received.endswith(b"0\r\n\r\n"):
            break
    for line in re.findall(rb'(\{"step":.*\})\n', received):
        responses[len(responses)] = json.loads(line)
    reached = client.get(f"/v1/sessions/{name}").json()["step"]
    while reached < len(lines):
        rest = b"".join(lines[reached:])
        response = client.post(
            f"/v1/sessions/{name}/steps",
            params={"step": reached},
            content=rest,
            headers={"Content-Type": "application/x-ndjson"},
        )
        results = [json.loads(line) for line in response.text.splitlines()]
        if "expected_step" in results[0]:  # lines of the first request were still being applied
            reached = results[0]["expected_step"]
        else:
            responses |= {result["step"] - 1: result for result in results}
            reached = results[-1]["step"]
    return responses


Protocol = Callable[[CutConnection, httpx.Client, str], Responses]


@pytest.mark.parametrize("protocol", [by_steps, in_bulk, by_stream, by_lines])
def test_a_cut_at_any_byte_loses_and_doubles_nothing(server: Server, client: httpx.Client, protocol: Protocol) -> None:
    """Wherever the cut is, the session has made each step once, and every response that arrived is right."""
    budget, over = 0, False
    while not over:
        name = f"{protocol.__name__}-{budget}"
        assert client.post("/v1/models/pulse/sessions", json={"session_id": name}).status_code == 201
        cut = CutConnection(server.url, budget)
        responses = protocol(cut, client, name)
        over = cut.complete
        cut.close()
        assert client.get(f"/v1/sessions/{name}").json()["step"] == len(INPUTS), budget
        assert protocol is by_lines or set(responses) == {0, 1}
        for index, response in responses.items():
            assert response["step"] == index + 1, (budget, response)
            assert_same_bits(response, EXPECTED, slice(index, index + 1))
        budget += CUT_INTERVAL_BYTES
    assert budget > 400


def test_a_generation_cut_at_any_byte_continues(server: Server, client: httpx.Client) -> None:
    """A client that sends the id of the last complete event receives each event of an uninterrupted generation once."""
    path, body = "/v1/sessions/s/generate", {"horizon": 3, "seed": 7}
    assert client.post("/v1/models/pulse/sessions", json={"session_id": "s"}).status_code == 201
    expected = [(event.name, event.data) for event in sse_reader.read(client.post(path, json=body).text)]
    assert [kind for kind, _ in expected] == ["message"] * 3 + ["done"]
    budget, over = 0, False
    while not over:
        cut = CutConnection(server.url, budget)
        with contextlib.suppress(OSError):
            cut.client.sendall(post_request(body, path))
        received = b""
        for data in receive(cut.client):
            received += data
            if received.endswith(b"0\r\n\r\n"):
                break
        over = cut.complete
        cut.close()
        complete = decode_chunks(received.partition(b"\r\n\r\n")[2]).rpartition(b"\n\n")[0]
        events = sse_reader.read(complete.decode() + "\n\n")
        if len(events) < len(expected):
            headers = {"Last-Event-ID": events[-1].id} if events else {}
            events += sse_reader.read(client.post(path, json=body, headers=headers).text)
        assert [(event.name, event.data) for event in events] == expected, budget
        budget += CUT_INTERVAL_BYTES
    assert budget > 400


def decode_chunks(body: bytes) -> bytes:
    """Returns the content of the chunks, as far as it was received, of a body in chunked encoding."""
    content = b""
    while (chunk_head := re.match(rb"([0-9a-f]+)\r\n", body)) and (size := int(chunk_head[1], 16)):
        content += body[chunk_head.end() : chunk_head.end() + size]
        body = body[chunk_head.end() + size + 2 :]
    return content
