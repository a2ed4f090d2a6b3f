"""A connection that is cut at any byte, either way, loses no step and doubles none, whatever the protocol.

A proxy passes so many bytes of a small exchange and then cuts both sides. The client goes on as the documents say, and
in the end has every answer, each once, bit for bit those of a bare loop.
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
FURTHER = 1
"""Every how many bytes a cut is tried."""

Answers = dict[int, dict[str, Any]]
"""By place in the exchange."""


class Cut:
    """One connection through a proxy that passes `budget` bytes, both ways together, and then cuts."""

    def __init__(self, url: str, budget: int) -> None:
        address = urlsplit(url)
        self._near, self.client = socket.socketpair()
        self._far = socket.create_connection((address.hostname, address.port), timeout=30)
        self.client.settimeout(30)
        self._left, self._lock = budget, threading.Lock()
        self._threads = [
            threading.Thread(target=self._pass, args=pair)
            for pair in ((self._near, self._far), (self._far, self._near))
        ]
        for thread in self._threads:
            thread.start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                with self._lock:
                    allowed = data[: self._left]
                    self._left -= len(allowed)
                other.sendall(allowed)
                if len(allowed) < len(data) or not self._left:
                    break
        for end in (self._near, self._far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @property
    def whole(self) -> bool:
        """Whether all was passed that was sent."""
        return self._left > 0

    def close(self) -> None:
        self.client.close()
        for thread in self._threads:
            thread.join()
        self._near.close()
        self._far.close()


def received(client: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while data := client.recv(65536):
            yield data


def posted(body: Any, path: str, media: str = "application/json") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def whole(said: bytes) -> tuple[bytes, bytes] | None:
    """The body of the first answer, and what follows it; None where it is not whole."""
    head, found, rest = said.partition(b"\r\n\r\n")
    if not found:
        return None
    assert head.startswith(b"HTTP/1.1 200 "), said
    length = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
    return (rest[:length], rest[length:]) if len(rest) >= length else None


def by_steps(cut: Cut, client: httpx.Client, name: str) -> Answers:
    """One request after another; what has no answer is posted again."""
    answers: Answers = {}
    with contextlib.suppress(OSError):
        for place, body in enumerate(BODIES):
            cut.client.sendall(posted(body, f"/v1/sessions/{name}/steps"))
            said = b""
            for data in received(cut.client):
                said += data
                if (found := whole(said)) is not None:
                    answers[place] = json.loads(found[0])
                    break
            else:
                break
    for place, body in enumerate(BODIES):
        if place not in answers:
            answers[place] = client.post(f"/v1/sessions/{name}/steps", json=body).json()
    return answers


def in_bulk(cut: Cut, client: httpx.Client, name: str) -> Answers:
    """All in one call; without an answer, the call is made again."""
    body = {"items": [{"session_id": name, **one} for one in BODIES]}
    with contextlib.suppress(OSError):
        cut.client.sendall(posted(body, "/v1/steps"))
    said = b""
    for data in received(cut.client):
        said += data
        if whole(said) is not None:
            break
    found = whole(said)
    told = json.loads(found[0]) if found else client.post("/v1/steps", json=body).json()
    return dict(enumerate(told["items"]))


def by_stream(cut: Cut, client: httpx.Client, name: str) -> Answers:
    """All messages at once; what is not answered is sent again, with its request_id, over another connection."""
    answers: Answers = {}
    with contextlib.suppress(OSError):
        cut.client.sendall(handshake(f"/v1/sessions/{name}/stream"))
        head, frames = b"", Frames()
        for data in received(cut.client):
            if b"\r\n\r\n" not in head:
                head += data
                if b"\r\n\r\n" not in head:
                    continue
                cut.client.sendall(b"".join(frame(json.dumps(body).encode()) for body in BODIES))
                data = head.partition(b"\r\n\r\n")[2]  # noqa: PLW2901
            for _, payload in frames.feed(data):
                answers[len(answers)] = json.loads(payload)
            if len(answers) == len(BODIES):
                break
    for place, body in enumerate(BODIES):
        if place not in answers:
            answers[place] = client.post(f"/v1/sessions/{name}/steps", json=body).json()
    return answers


def by_lines(cut: Cut, client: httpx.Client, name: str) -> Answers:
    """All lines at once; the session's step says how many were applied, and the rest is sent with it."""
    lines = [json.dumps(row).encode() + b"\n" for row in INPUTS]
    answers: Answers = {}
    with contextlib.suppress(OSError):
        cut.client.sendall(posted(b"".join(lines), f"/v1/sessions/{name}/steps?step=0", "application/x-ndjson"))
    said = b""
    for data in received(cut.client):
        said += data
        if said.endswith(b"0\r\n\r\n"):
            break
    for line in re.findall(rb'(\{"step":.*\})\n', said):
        answers[len(answers)] = json.loads(line)
    reached = client.get(f"/v1/sessions/{name}").json()["step"]
    while reached < len(lines):
        rest = b"".join(lines[reached:])
        answer = client.post(
            f"/v1/sessions/{name}/steps",
            params={"step": reached},
            content=rest,
            headers={"Content-Type": "application/x-ndjson"},
        )
        told = [json.loads(line) for line in answer.text.splitlines()]
        if "expected_step" in told[0]:  # lines of before were on their way still
            reached = told[0]["expected_step"]
        else:
            answers |= {one["step"] - 1: one for one in told}
            reached = told[-1]["step"]
    return answers


Protocol = Callable[[Cut, httpx.Client, str], Answers]


@pytest.mark.parametrize("protocol", [by_steps, in_bulk, by_stream, by_lines])
def test_a_cut_at_any_byte_loses_and_doubles_nothing(server: Server, client: httpx.Client, protocol: Protocol) -> None:
    """At each, the session has made each step once, and each answer that was had is the right one."""
    budget, over = 0, False
    while not over:
        name = f"{protocol.__name__}-{budget}"
        assert client.post("/v1/models/pulse/sessions", json={"session_id": name}).status_code == 201
        cut = Cut(server.url, budget)
        answers = protocol(cut, client, name)
        over = cut.whole
        cut.close()
        assert client.get(f"/v1/sessions/{name}").json()["step"] == len(INPUTS), budget
        assert protocol is by_lines or set(answers) == {0, 1}
        for place, answer in answers.items():
            assert answer["step"] == place + 1, (budget, answer)
            assert_same_bits(answer, EXPECTED, slice(place, place + 1))
        budget += FURTHER
    assert budget > 400


def test_a_draw_cut_at_any_byte_goes_on(server: Server, client: httpx.Client) -> None:
    """With the id of the last event that came whole: every event comes, once, those of one uncut draw."""
    path, body = "/v1/sessions/s/generate", {"horizon": 3, "seed": 7}
    assert client.post("/v1/models/pulse/sessions", json={"session_id": "s"}).status_code == 201
    expected = [(one.name, one.data) for one in sse_reader.read(client.post(path, json=body).text)]
    assert [kind for kind, _ in expected] == ["message"] * 3 + ["done"]
    budget, over = 0, False
    while not over:
        cut = Cut(server.url, budget)
        with contextlib.suppress(OSError):
            cut.client.sendall(posted(body, path))
        said = b""
        for data in received(cut.client):
            said += data
            if said.endswith(b"0\r\n\r\n"):
                break
        over = cut.whole
        cut.close()
        whole = unchunked(said.partition(b"\r\n\r\n")[2]).rpartition(b"\n\n")[0]
        came = sse_reader.read(whole.decode() + "\n\n")
        if len(came) < len(expected):
            headers = {"Last-Event-ID": came[-1].id} if came else {}
            came += sse_reader.read(client.post(path, json=body, headers=headers).text)
        assert [(one.name, one.data) for one in came] == expected, budget
        budget += FURTHER
    assert budget > 400


def unchunked(body: bytes) -> bytes:
    """What has come of a body in chunks."""
    whole = b""
    while (found := re.match(rb"([0-9a-f]+)\r\n", body)) and (size := int(found[1], 16)):
        whole += body[found.end() : found.end() + size]
        body = body[found.end() + size + 2 :]
    return whole
