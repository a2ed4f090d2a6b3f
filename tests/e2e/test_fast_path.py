"""The fast path and Flask send equal responses to the same bytes, however the bytes are divided."""

import json
import re
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.server import Server
from tests.helpers.reference_loop import INPUTS, ROOT

FIRST = {model: inputs(3) for model, inputs in INPUTS.items()}
Pair = tuple[Server, Server]
STEP = b'{"inputs": [[500.5]]}'


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two services with the same sessions and one worker each, with the fast path and with Flask alone."""
    folder = tmp_path_factory.mktemp("fast-path")
    with (
        Server(folder / "on", ONWARD_WORKERS="1", ONWARD_MAX_BODY_BYTES="4096") as on,
        Server(folder / "off", ONWARD_WORKERS="1", ONWARD_MAX_BODY_BYTES="4096", ONWARD_LANE="0") as off,
    ):
        yield on, off


def begin(server: Server) -> None:
    """Creates the sessions of the requests anew."""
    with server.client() as client:
        for name, model in (("a", "pulse"), ("b", "pulse"), ("w", "weather"), ("gone", "pulse")):
            client.delete(f"/v1/sessions/{name}")
            if name != "gone":
                body = {"session_id": name, "inputs": FIRST[model]}
                assert client.post(f"/v1/models/{model}/sessions", json=body).status_code == 201


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def responses(server: Server, pieces: list[bytes]) -> bytes:
    """Sends each piece once the worker has read the one before; returns the responses without dates and times."""
    with connect(server) as connection:
        try:
            for index, piece in enumerate(pieces):
                if index:
                    wait_for_event_loop(server)
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError, OSError):
            pass  # the server has closed the connection after its last response
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except ConnectionResetError:
            pass
    received = re.sub(rb'"ended_at":"[^"]*"', b"", received)
    return re.sub(rb"\r\nDate: [^\r]*", b"", received)


def wait_for_event_loop(server: Server) -> None:
    """Returns when the event loop of the worker has made a turn, so that it has read what was sent before."""
    with connect(server) as probe:
        for _ in range(2):  # the first request may be answered in the turn in which a piece arrives
            probe.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            while not probe.recv(65536).endswith(b"}"):
                pass


def request(
    path: bytes = b"/v1/sessions/a/steps", body: bytes = STEP, *headers: bytes, length: bytes | None = None
) -> bytes:
    length = b"%d" % len(body) if length is None else length
    lines = [b"POST %s HTTP/1.1" % path, b"Host: x", b"Content-Type: application/json", b"Content-Length: " + length]
    return b"\r\n".join([*lines, *headers, b"", body])


def test_the_fast_path_is_on_and_the_log_says_when_it_is_off(pair: Pair, tmp_path: Path) -> None:
    """The fast path is on by default; an unsupported gunicorn setting turns it off, and the log says why once."""
    assert "answered by Flask" not in "".join(pair[0].log + pair[1].log)
    with Server(tmp_path, GUNICORN_CMD_ARGS="--access-logfile -") as logging:
        with logging.client() as client:
            client.post("/v1/models/pulse/sessions", json={"session_id": "a"})
            assert client.post("/v1/sessions/a/steps", json={"inputs": [500]}).json()["step"] == 1
        assert logging.stop() == 0
        log = "".join(logging.log)
        assert log.count("Steps are answered by Flask, more slowly: gunicorn is configured with accesslog") == 1
        assert '"POST /v1/sessions/a/steps HTTP/1.1" 200' in log


def test_the_responses_do_not_depend_on_where_the_bytes_are_cut(pair: Pair) -> None:
    """Two steps and other requests, pipelined and sent in two pieces, have the same responses for every cut."""
    step = request(b"/v1/sessions/b/steps", b'{"inputs": [[500.5]], "request_id": "once"}')
    whole = step + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + request(b"/v1/sessions/b/steps", b"[1]") + step
    for server in pair:
        begin(server)
    received = {responses(server, [whole[:cut], whole[cut:]]) for server in pair for cut in range(1, len(whole))}
    assert len(received) == 1
    assert re.findall(rb"HTTP/1.1 (\d+)", received.pop()) == [b"200", b"200", b"422", b"200"]


BODIES = st.sampled_from([
    STEP, b'{"inputs":[500]}', b'{"inputs":[[1],[2.5],[3e2]]}', b'{"inputs":[{"ppg":500}]}', b'{"inputs":[[1,2,3,4]]}',
    b'{"inputs":[["500"]]}', b'{"inputs":[[true]]}', b'{"inputs":[[NaN]]}', b'{"inputs":[[1e400]]}',
    b'{"inputs":[[3e38]]}', b'{"inputs":[]}', b'{"inputs":[[]]}', b'{"inputs":[[1],2]}', b'{"inputs":null}', b"{}", b"",
    b"[]", b"{", b"\xff",
    b'{"inputs":[[1]],"step":3}', b'{"inputs":[[1]],"step":"3"}', b'{"inputs":[[1]],"step":99999999999999999999}',
    b'{"inputs":[[1]],"step":true}', b'{"inputs":[[1]],"request_id":"r"}', b'{"inputs":[[2]],"request_id":"r"}',
    b'{"inputs":[[1]],"request_id":"r\\n"}', b'{"inputs":[[1]],"request_id":null,"step":null}',
    b'{"inputs":[[1]],"x":1}',
    b'{"inputs":[' + b"[5]," * 2000 + b"[5]]}",
    b'{"items":[{"session_id":"a","inputs":[1]},{"session_id":"no","inputs":[1]},{"session_id":"a","inputs":[[2]]}]}',
    b'{"items":[{"session_id":"a","inputs":[1],"step":0},{"session_id":"w","inputs":[[1,2,3,4]]}]}', b'{"items":[]}',
    b'{"session_ids":["a","b"],"inputs":[[1],[2]]}',
    b'{"session_ids":["a","w"],"inputs":[[1],[2]],"steps":[null,null]}',
    b'{"session_ids":["a"],"inputs":[[1],[2]]}', b'{"items":[{"session_id":"a/b","inputs":[1]}]}',
])  # fmt: skip
PATHS = st.sampled_from([
    b"/v1/sessions/a/steps", b"/v1/sessions/b/steps", b"/v1/sessions/w/steps", b"/v1/steps", b"/v1/sessions/none/steps",
    b"/v1/sessions/gone/steps", b"/v1/sessions/a%62/steps", b"/v1/sessions/a b/steps", b"/v1/sessions/a/steps?x=1",
    b"/v1/sessions/a/steps/", b"/v1/sessions/-/steps", b"/v1/sessions//steps", b"/healthz", b"/v1/models/pulse/predict",
])  # fmt: skip
EXTRA = st.sampled_from([
    b"Accept: */*", b"Connection: keep-alive", b"Connection: Keep-Alive", b"connection: close", b"Connection: upgrade",
    b"Upgrade: h2c", b"Expect: 100-continue", b"Expect: more", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Content-Encoding: gzip", b"Content-Encoding: identity", b"X_Under: score", b"Cookie: a=b", b"Host: y",
    b"Odd", b" : ",
    b"Content-Length: 3", b"X-Forwarded-Proto: https", b"X-Forwarded-For: 1.2.3.4", b"Authorization: Bearer x",
    b"X-Forwarded-Proto: ftp", b"Content-Type: text/plain", b"X: \x01", b"X: " + b"y" * 9000,
])  # fmt: skip
LENGTHS = st.sampled_from([None, None, None, None, None, 3, -3, b"abc", b"-1", b"+5", b"0x5", b"", b"5,5", b"9" * 20])
TYPES = st.sampled_from([
    b"application/json", b"application/json", b"application/json; charset=utf-8", b"Application/JSON", b"text/plain",
    b"application/json;charset=latin-1", b"application/jsonp", b"",
])  # fmt: skip
HOSTS = st.sampled_from([b"x", b"127.0.0.1:8000", b"[::1]", b"a_b", b"", b"x y"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body, length = draw(BODIES), draw(LENGTHS)
    content_length = length if isinstance(length, bytes) else b"%d" % max(0, len(body) + (length or 0))
    headers = [b"Host: " + draw(HOSTS), b"Content-Type: " + draw(TYPES), b"Content-Length: " + content_length]
    headers = draw(st.permutations([*headers, *draw(st.lists(EXTRA, max_size=2))]))
    if draw(st.integers(0, 9)) == 0:
        headers = headers[1:]
    case = draw(st.sampled_from(["strip", "strip", "lower", "upper"]))
    headers = [
        getattr(name, case)() + colon + value for name, colon, value in (header.partition(b":") for header in headers)
    ]
    method = draw(st.sampled_from([b"POST"] * 6 + [b"GET", b"PUT", b"post"]))
    version = draw(st.sampled_from([b"1.1"] * 6 + [b"1.0", b"2.0"]))
    start = draw(st.sampled_from([b""] * 6 + [b"\r\n"]))
    return start + b"\r\n".join([b"%s %s HTTP/%s" % (method, draw(PATHS), version), *headers, b"", body])


@settings(max_examples=100, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.floats(0, 1), max_size=2))
def test_any_bytes_have_equal_responses(pair: Pair, sent: list[bytes], cuts: list[float]) -> None:
    """Valid and invalid pipelined requests, cut anywhere, have the same statuses, headers and bodies."""
    whole = b"".join(sent)
    bounds = [0, *sorted(int(cut * len(whole)) for cut in cuts), len(whole)]
    pieces = [piece for start, end in pairwise(bounds) if (piece := whole[start:end])]
    for server in pair:
        begin(server)
    on, off = (responses(server, pieces) for server in pair)
    assert on == off


def test_a_connection_alternates_between_fast_path_and_flask(pair: Pair) -> None:
    """A single keep-alive connection can create, step, read and delete a session."""
    with pair[0].client() as client:
        assert client.post("/v1/models/pulse/sessions", json={"session_id": "turns"}).status_code == 201
        for step in range(1, 4):
            assert client.post("/v1/sessions/turns/steps", json={"inputs": [[500]]}).json()["step"] == step
            assert client.get("/v1/sessions/turns").json()["step"] == step
        big = {"inputs": [[500]] * 1000}
        assert client.post("/v1/sessions/turns/steps", json=big).status_code == 413
        chunks: Iterator[bytes] = iter([json.dumps({"inputs": [[500]]}).encode()])
        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/sessions/turns/steps", content=chunks, headers=headers).json()["step"] == 4
        assert client.post("/v1/sessions/turns/steps", json={"inputs": [[500]]}).json()["step"] == 5
        assert client.delete("/v1/sessions/turns").status_code == 204
        gone: httpx.Response = client.post("/v1/sessions/turns/steps", json={"inputs": [[500]]})
        assert gone.json()["reason"] == "deleted"


def test_a_long_response_to_a_slow_reader_is_complete(server: Server, client: httpx.Client) -> None:
    """A response that exceeds the socket buffers reaches a slow reader as it reaches a quick one, byte for byte."""
    inputs = [INPUTS["weather"](8)] * 10_000
    calls = []
    for name in ("quick", "slow"):
        client.post("/v1/models/weather/sessions", json={"session_id": name}).raise_for_status()
        calls.append({"session_ids": [name] * len(inputs), "inputs": inputs})
    quick = client.post("/v1/steps", json=calls[0]).raise_for_status().content
    address = urlsplit(server.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((address.hostname, address.port))
        slow = HTTPConnection("x")
        slow.sock = connection
        slow.request("POST", "/v1/steps", json.dumps(calls[1]), {"Content-Type": "application/json"})
        response = slow.getresponse()
        received = b"".join(iter(lambda: response.read(1000), b""))
    assert len(quick) > 2**23
    assert received == quick


def test_without_the_parser_flask_answers_and_the_log_says_so_once(tmp_path: Path) -> None:
    """The service works without gunicorn-h1c, with the same responses, and logs once that they are slower."""
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["gunicorn_h1c"] = None\n')
    with Server(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}") as server, server.client() as client:
        session = client.post("/v1/models/pulse/sessions").json()["session_id"]
        assert client.post(f"/v1/sessions/{session}/steps", json={"inputs": [[500.5]]}).json()["step"] == 1
        assert server.stop() == 0
        assert "".join(server.log).count("Steps are answered by Flask, more slowly: gunicorn-h1c is not installed") == 1
