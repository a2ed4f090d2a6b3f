"""Steps as NDJSON: uploads of any length are answered as they arrive, and an error names the step reached."""

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from onward.model.repository import open_bundle
from tests.e2e.server import Server
from tests.e2e.test_websocket import begin, resident
from tests.helpers import plain_onnxruntime
from tests.helpers.reference_loop import ZOO, BareLoop, assert_same_bits, pulse

HEADERS = {"Content-Type": "application/x-ndjson"}
LINES = 1_000_000
FOLLOWING = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""The next request on the connection, and its last."""


def post(client: httpx.Client, name: str, text: str | Iterator[bytes], **query: str) -> list[dict[str, Any]]:
    answer = client.post(f"/v1/sessions/{name}/steps", content=text, headers=HEADERS, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def connected(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def test_a_million_lines_in_flat_memory(tmp_path: Path) -> None:
    """An upload by curl from a pipe costs its worker less than 20 MB and equals a pass of ONNX Runtime bit for bit."""
    real = np.array(pulse(60_000), np.float32)
    values = np.tile(real, (LINES // len(real) + 1, 1))[:LINES]
    (tmp_path / "in.ndjson").write_text("".join(f"[{value:.0f}]\n" for (value,) in values.tolist()))
    with Server(tmp_path, ONWARD_WORKERS="1") as server, server.client() as client:
        begin(client, "s")
        post(client, "s", "500\n" * 2000)
        begin(client, "s")
        (worker,) = server.workers()
        before = peak = resident(worker)
        command = ["curl", "-sN", "-X", "POST", "-T", "-", "-H", "Content-Type: application/x-ndjson"]
        with (tmp_path / "in.ndjson").open() as sent, (tmp_path / "out.ndjson").open("w+") as received:
            upload = subprocess.Popen(
                [*command, f"{server.url}/v1/sessions/s/steps?step=0"], stdin=sent, stdout=received
            )
            while upload.poll() is None:
                peak = max(peak, resident(worker))
                try:
                    upload.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
            assert upload.returncode == 0
            received.seek(0)
            answers = np.array([line_values(json.loads(line)) for line in received], np.float32)
        assert peak - before < 20 * 2**20
        assert client.get("/v1/sessions/s").json()["step"] == LINES
    opened, manifest = plain_onnxruntime.session(ZOO / "pulse/1/model.onnx"), open_bundle(ZOO / "pulse/1").manifest
    state, parts = plain_onnxruntime.zeros(manifest, 1), []
    for start in range(0, LINES, 10_000):
        part = values[start : start + 10_000, np.newaxis]
        outputs, state = plain_onnxruntime.call(opened, part, [len(part)], state)
        parts.append(np.stack([outputs[name].reshape(-1) for name in ("mean", "std", "surprise")], axis=1))
    assert answers.tobytes() == np.concatenate(parts).tobytes()


def line_values(answer: dict[str, Any]) -> list[float]:
    """Returns mean, deviation and surprise of a line."""
    predictions = answer["predictions"]
    return [predictions["mean"][0][0], predictions["std"][0][0], answer["surprise"][0]]


@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("fast_path", ["fast path", "flask"])
def test_a_line_is_answered_before_the_next_is_sent(
    server: Server, client: httpx.Client, framing: str, fast_path: str
) -> None:
    """Lines that have arrived are answered without waiting for more, and the next request is answered after them."""
    name = f"live-{fast_path[:4]}-{framing}"
    begin(client, name)
    inputs = pulse(5)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    lines = [json.dumps(row).encode() + b"\n" for row in inputs]
    sent = [b"%x\r\n%s\r\n" % (len(line), line) for line in lines] if framing == "chunked" else lines
    headers = [f"POST /v1/sessions/{name}/steps HTTP/1.1", "Host: x", "Content-Type: application/x-ndjson"]
    headers.append("Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {len(b''.join(lines))}")
    if fast_path == "flask":
        headers.append("Expect: 100-continue")  # the connection is gunicorn's from here on
    with connected(server) as connection:
        connection.sendall("\r\n".join([*headers, "", ""]).encode())
        received = b""
        for index, line in enumerate(sent[:-1]):
            connection.sendall(line)
            while received.count(b'"surprise"') <= index:
                data = connection.recv(65536)
                assert data, received
                received += data
        connection.sendall(sent[-1] + (b"0\r\n\r\n" if framing == "chunked" else b"") + FOLLOWING)
        received += b"".join(iter(lambda: connection.recv(65536), b""))
    answers = [json.loads(line) for line in received.split(b"\r\n") if line.startswith(b'{"step"')]
    assert len(answers) == len(lines)
    for index, answer in enumerate(answers):
        assert_same_bits(answer, expected, slice(index, index + 1))
    assert received.count(b"HTTP/1.1 200 OK") == (2 if framing == "length" else 1)  # the answer to chunks is the last


def test_an_error_names_its_line_and_the_step_reached(client: httpx.Client) -> None:
    """Lines before the error are applied; an upload that continues from the named step applies no line twice."""
    begin(client, "bad")
    inputs = pulse(50)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    lines = [json.dumps(row) for row in inputs]
    wrong = [*lines[:30], "", "[1, 2]", *lines[30:]]
    answers = post(client, "bad", "\n".join(wrong), step="0")
    last = answers.pop()
    assert (last["status"], last["line"], last["step"]) == (422, 32, 30)
    assert last["errors"] == [{"field": "inputs[0]", "message": "a step is 1 number (ppg); this one has 2"}]
    assert client.get("/v1/sessions/bad").json()["step"] == 30
    (conflict,) = post(client, "bad", "\n".join(lines), step="0")
    assert (conflict["type"], conflict["expected_step"]) == ("urn:onward:problem:step-conflict", 30)
    assert (conflict["line"], conflict["step"]) == (1, 30)
    answers += post(client, "bad", "\n".join(lines[last["step"] :]) + "\n", step=str(last["step"]))
    assert [answer["step"] for answer in answers] == list(range(1, 51))
    for index, answer in enumerate(answers):
        assert_same_bits(answer, expected, slice(index, index + 1))


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ("{", 400), ('"x"', 422), ("[NaN]", 400), ("[1e39]", 422), ("[3e38]\n[3e38]\n[3e38]", 422), ("null", 422),
        ('{"ppg": 1, "more": 2}', 422), ("[[1]]", 422), ("true", 422), ("[]", 422), ("{}", 422), ("x" * 9_000_000, 413),
    ],
)  # fmt: skip
def test_an_invalid_line_ends_the_response(client: httpx.Client, wrong: str, status: int) -> None:
    """Invalid lines of every form end the response; the valid lines before them are applied."""
    begin(client, "no")
    answers = post(client, "no", '[500]\n501\n502.5\n{"ppg": 503}\n' + wrong + "\n[504]\n")
    last = answers.pop()
    assert last["status"] == status
    assert last["line"] >= 5
    assert last["step"] == len(answers) == client.get("/v1/sessions/no").json()["step"]


def test_the_connection_is_usable_after_an_error(server: Server, client: httpx.Client) -> None:
    """The next request, pipelined after the lines, is answered; after unread chunks the connection closes."""
    begin(client, "next")
    head = b"POST /v1/sessions/next/steps HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
    body = b"500\nx\n" + b"501\n" * 50_000
    with connected(server) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body + FOLLOWING)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert [line.split()[1] for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1")] == [b"200", b"200"]
    with connected(server) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\nx\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"Connection: close\r\n" in received
    assert b'"status":400' in received


def test_a_request_for_an_invalid_session_is_refused_at_once(client: httpx.Client) -> None:
    """The response has its own status and comes before a line is read."""
    begin(client, "gone")
    client.delete("/v1/sessions/gone")
    for name, query, status in (("gone", "", 410), ("nobody", "", 404), ("gone", "?step=x", 410), ("a b", "", 422)):
        answer = client.post(f"/v1/sessions/{name}/steps{query}", content="1\n", headers=HEADERS)
        assert answer.status_code == status
    begin(client, "here")
    assert client.post("/v1/sessions/here/steps?step=x", content="1\n", headers=HEADERS).status_code == 422
    assert client.post("/v1/sessions/here/steps?step=0", json={"inputs": [1]}).status_code == 422
    assert post(client, "here", "") == []


def test_a_line_can_be_a_character_or_a_category(client: httpx.Client) -> None:
    """A line is a step, which is a character for a model that reads text."""
    begin(client, "text", "posted", model="characters")
    lines = post(client, "text", '"T"\n["h"]\n{"token": "e"}\n" "\n')
    whole = client.post("/v1/sessions/posted/steps", json={"inputs": "The "}).json()
    assert [line["predictions"]["top"][0] for line in lines] == whole["predictions"]["top"]


def test_a_stop_ends_the_response_with_the_step_reached(tmp_path: Path) -> None:
    """The last record names the line that was not read and the step reached."""
    with Server(tmp_path) as server, server.client() as client:
        begin(client, "stop")

        def lines() -> Iterator[bytes]:
            yield b"500\n"
            assert server._process is not None
            server._process.terminate()
            while True:
                yield b"501\n"

        try:
            answers = post(client, "stop", lines())
        except httpx.WriteError:
            pytest.fail("the answer was cut before it was read")
        assert answers[-1]["type"] == "urn:onward:problem:stopping"
        assert answers[-1]["line"] == len(answers)
        assert answers[-1]["step"] == len(answers) - 1
