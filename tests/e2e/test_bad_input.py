"""Bad input is answered with the right status and a problem that names the field, and the session does not change."""

import gzip
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from onward.service.app import OPERATIONS
from onward.service.http import openapi, response_schemas
from onward.service.http.operations import Operation
from tests.e2e.server import Server
from tests.helpers.problem_assertions import assert_problem
from tests.helpers.reference_loop import INPUTS, ZOO, BareLoop, assert_same_bits
from tests.helpers.websocket_client import KEY

JSON = {"Content-Type": "application/json"}
STEPS, FORECAST = "/v1/sessions/fixed/steps", "/v1/sessions/fixed/forecast"
CREATE, PREDICT = "/v1/models/pulse/sessions", "/v1/models/pulse/predict"
INVALID = "invalid-request"


@pytest.fixture(scope="module")
def _session(server: Server) -> None:
    with server.client() as client:
        body = {"session_id": "fixed", "inputs": INPUTS["pulse"](5)}
        assert client.post("/v1/models/pulse/sessions", json=body).status_code == 201
        assert client.post("/v1/models/weather/sessions", json={"session_id": "wide"}).status_code == 201


@pytest.fixture(autouse=True)
def _unchanged_session(server: Server, _session: None) -> Iterator[None]:
    """Asserts around every test that the session has not changed."""
    with server.client() as client:
        before = client.get("/v1/sessions/fixed").text
        yield
        assert client.get("/v1/sessions/fixed").text == before


BODIES: dict[str, tuple[str | bytes, str, str]] = {
    "wrong width": ('{"inputs": [[1, 2]]}', INVALID, "inputs[0]"),
    "one wrong width among many": ('{"inputs": [[1], [1, 2], [1]]}', INVALID, "inputs[1]"),
    "no steps": ('{"inputs": []}', INVALID, "inputs"),
    "an empty step": ('{"inputs": [[]]}', INVALID, "inputs[0]"),
    "no inputs": ("{}", INVALID, "inputs"),
    "null": ('{"inputs": null}', INVALID, "inputs"),
    "text for inputs": ('{"inputs": "500"}', INVALID, "inputs"),
    "text in a number": ('{"inputs": [["500"]]}', INVALID, "inputs[0][0]"),
    "text after a number": ('{"inputs": [500, "500"]}', INVALID, "inputs[1][0]"),
    "null in a number": ('{"inputs": [[500], [null]]}', INVALID, "inputs[1][0]"),
    "a boolean": ('{"inputs": [[true]]}', INVALID, "inputs[0][0]"),
    "mixed forms": ('{"inputs": [[1], 2]}', INVALID, "inputs[1]"),
    "NaN": ('{"inputs": [[NaN]]}', INVALID, "inputs[0][0]"),
    "Infinity": ('{"inputs": [[1], [-Infinity]]}', INVALID, "inputs[1][0]"),
    "1e400": ('{"inputs": [[1e400]]}', INVALID, "inputs[0][0]"),
    "1e39, beyond 32 bits": ('{"inputs": [[1], [1e39]]}', INVALID, "inputs[1][0]"),
    "3e38, beyond the model": ('{"inputs": [[3e38]]}', "not-finite", "inputs"),
    "unknown feature": ('{"inputs": [{"bpm": 1}]}', INVALID, "inputs[0].bpm"),
    "missing feature": ('{"inputs": [{"ppg": 1}, {}]}', INVALID, "inputs[1].ppg"),
    "unknown key": ('{"inputs": [[1]], "stp": 5}', INVALID, "stp"),
    "step as text": ('{"inputs": [[1]], "step": "5"}', INVALID, "step"),
    "negative step": ('{"inputs": [[1]], "step": -1}', INVALID, "step"),
    "enormous step": ('{"inputs": [[1]], "step": 99999999999999999999}', INVALID, "step"),
    "another step": ('{"inputs": [[1]], "step": 4}', "step-conflict", "step"),
    "request id with a newline": ('{"inputs": [[1]], "request_id": "a\\nb"}', INVALID, "request_id"),
    "request id too long": (f'{{"inputs": [[1]], "request_id": "{"a" * 129}"}}', INVALID, "request_id"),
    "malformed JSON": ('{"inputs": [[1]', "malformed-json", "body"),
    "empty body": ("", "malformed-json", "body"),
    "not UTF-8": (b'{"inputs": [["\xff"]]}', "malformed-json", "body"),
    "a list": ("[1]", INVALID, "body"),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_bad_body_names_its_field(client: httpx.Client, case: str) -> None:
    body, name, field = BODIES[case]
    problem = assert_problem(client.post(STEPS, content=body, headers=JSON), name, field)
    if name == "step-conflict":
        assert problem["expected_step"] == 5


def test_a_body_over_the_size_limit_is_refused(client: httpx.Client) -> None:
    """A body of 10 MB is refused, with a Content-Length and in chunks."""
    body = b'{"inputs": [' + b"[500]," * 1_700_000 + b"[500]]}"
    assert len(body) > 10_000_000
    assert_problem(client.post(STEPS, content=body, headers=JSON), "body-too-large", "body")
    chunks = (body[i : i + 65536] for i in range(0, len(body), 65536))
    assert_problem(client.post(STEPS, content=chunks, headers=JSON), "body-too-large", "body")


def test_a_session_can_be_created_without_a_body(client: httpx.Client) -> None:
    """An empty body is accepted with and without a content type, and a body without a length is read."""
    assert client.post(CREATE).status_code == 201
    assert client.post(CREATE, headers=JSON).status_code == 201
    assert client.post(CREATE, content=iter([b'{"ttl_s": 7}']), headers=JSON).json()["ttl_s"] == 7
    assert_problem(client.post(CREATE, content=iter([b'{"ttl_s": 7}'])), "unsupported-media-type", "Content-Type")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", None])
def test_another_content_type_is_refused(client: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post(STEPS, content=b'{"inputs": [[1]]}', headers=headers)
    assert_problem(response, "unsupported-media-type", "Content-Type")


CALLS: dict[str, tuple[str, str, Any, str, str]] = {
    "unknown model": ("POST", "/v1/models/pulsar/sessions", {}, "unknown-model", "model"),
    "unknown model, predict": ("POST", "/v1/models/pulsar/predict", {"inputs": [[[1]]]}, "unknown-model", "model"),
    "unknown model, get": ("GET", "/v1/models/pulsar", None, "unknown-model", "model"),
    "unknown version": ("POST", CREATE, {"version": 7}, "unknown-version", "version"),
    "unknown version, get": ("GET", "/v1/models/pulse?version=7", None, "unknown-version", "version"),
    "version as text": ("GET", "/v1/models/pulse?version=one", None, INVALID, "version"),
    "version 0": ("POST", CREATE, {"version": 0}, INVALID, "version"),
    "unknown session": ("POST", "/v1/sessions/nobody/steps", {"inputs": [[1]]}, "unknown-session", "session_id"),
    "unknown session, get": ("GET", "/v1/sessions/nobody", None, "unknown-session", "session_id"),
    "unknown session, delete": ("DELETE", "/v1/sessions/nobody", None, "unknown-session", "session_id"),
    "unknown session, forecast": (
        "POST",
        "/v1/sessions/nobody/forecast",
        {"horizon": 1},
        "unknown-session",
        "session_id",
    ),
    "taken session": ("POST", CREATE, {"session_id": "fixed"}, "session-exists", "session_id"),
    "wrong method": ("PUT", STEPS, {"inputs": [[1]]}, "method-not-allowed", "method"),
    "no such path": ("GET", "/v2/health", None, "not-found", "path"),
    "negative ttl": ("POST", CREATE, {"ttl_s": -1}, INVALID, "ttl_s"),
    "zero ttl": ("POST", CREATE, {"ttl_s": 0}, INVALID, "ttl_s"),
    "ttl as text": ("POST", CREATE, {"ttl_s": "60"}, INVALID, "ttl_s"),
    "seeded with the wrong width": ("POST", CREATE, {"inputs": [[1, 2]]}, INVALID, "inputs[0]"),
    "horizon 0": ("POST", FORECAST, {"horizon": 0}, INVALID, "horizon"),
    "horizon 1e9": ("POST", FORECAST, {"horizon": 1_000_000_000}, INVALID, "horizon"),
    "horizon 1e99": ("POST", FORECAST, {"horizon": 10**99}, INVALID, "horizon"),
    "horizon 1.5": ("POST", FORECAST, {"horizon": 1.5}, INVALID, "horizon"),
    "id with a slash, in a body": ("POST", CREATE, {"session_id": "a/b"}, INVALID, "session_id"),
    "id of 10 kB, in a body": ("POST", CREATE, {"session_id": "a" * 10_000}, INVALID, "session_id"),
    "empty id, in a body": ("POST", CREATE, {"session_id": ""}, INVALID, "session_id"),
    "id with a slash, in a path": ("POST", "/v1/sessions/a/b/steps", {"inputs": [[1]]}, "not-found", "path"),
    "id with a quoted slash": ("POST", "/v1/sessions/a%2Fb/steps", {"inputs": [[1]]}, "not-found", "path"),
    "id that none can have": ("POST", "/v1/sessions/a b/steps", {"inputs": [[1]]}, INVALID, "session_id"),
    "id of 1 kB, in a path": ("GET", f"/v1/sessions/{'a' * 1000}", None, INVALID, "session_id"),
    "unknown parameter": ("GET", "/v1/sessions?limitt=5", None, INVALID, "limitt"),
    "page of 0": ("GET", "/v1/sessions?limit=0", None, INVALID, "limit"),
    "page after no id": ("GET", "/v1/sessions?after=%00", None, INVALID, "after"),
    "no sequences": ("POST", PREDICT, {"inputs": []}, INVALID, "inputs"),
    "an empty sequence": ("POST", PREDICT, {"inputs": [[[1]], []]}, INVALID, "inputs[1]"),
    "a sequence too wide": ("POST", PREDICT, {"inputs": [[[1]], [[1], [2, 3]]]}, INVALID, "inputs[1][1]"),
    "too many sequences": ("POST", PREDICT, {"inputs": [[[1]]] * 1025}, INVALID, "inputs"),
    "predict, horizon 1e9": ("POST", PREDICT, {"inputs": [[[1]]], "horizon": 10**9}, INVALID, "horizon"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_bad_call_names_its_field(client: httpx.Client, case: str) -> None:
    method, path, body, name, field = CALLS[case]
    response = client.request(method, path, json=body) if body is not None else client.request(method, path)
    assert_problem(response, name, field)
    if name == "method-not-allowed":
        assert response.headers["allow"] == "OPTIONS, POST"


def test_an_id_of_10_kb_in_a_path_is_a_problem(server: Server) -> None:
    """A request that gunicorn refuses before the application sees it has a response of the same form."""
    response = raw(server, b"GET /v1/sessions/" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 414 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["type"] == "urn:onward:problem:uri-too-long"
    assert json.loads(body)["errors"][0]["field"] == "path"


def test_bytes_that_are_not_http_are_a_problem(server: Server) -> None:
    head, _, body = raw(server, b"HELLO\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["type"] == "urn:onward:problem:bad-request"


@pytest.mark.parametrize("target", [b"GET /healthz", b"POST " + STEPS.encode(), b"GET /nothing"])
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1\r\n", 400), (b"HTTP/1.1\r\nHost: x\r\nHost: x\r\n", 400), (b"HTTP/1.1\r\nHost: x y\r\n", 400),
        (b"HTTP/1.1\r\nHost: x/y\r\n", 400), (b"HTTP/1.1\r\nHost:\r\n", None),
        (b"HTTP/1.1\r\nHost: [::1]:80\r\n", None), (b"HTTP/1.1\r\nHost: a_b\r\n", None),
        (b"HTTP/1.0\r\n", None), (b"HTTP/1.0\r\nHost: x\r\nHost: y\r\n", 400),
    ],
)  # fmt: skip
def test_a_request_without_a_valid_host_is_refused(
    server: Server, target: bytes, head: bytes, status: int | None
) -> None:
    """RFC 9112, section 3.2, demands it of every server; with a valid Host header the operation itself responds."""
    request = (
        target + b" " + head + b"Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    )
    response_head, _, body = raw(server, request).partition(b"\r\n\r\n")
    assert (response_head.split()[1] == b"400") is (status == 400), response_head
    if status == 400:
        assert b"Content-Type: application/problem+json" in response_head
        assert json.loads(body)["type"] == "urn:onward:problem:bad-request"
        assert "Host" in json.loads(body)["detail"].title()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_a_head_that_is_too_long_is_refused_as_described(server: Server, operation: Operation) -> None:
    """A path or headers that are too long are answered as the OpenAPI document describes, for every operation."""
    described = openapi.document(OPERATIONS)["paths"][operation.path][operation.method.lower()]["responses"]
    target = f"{operation.method} {operation.path}".encode()
    for status, head in (
        (b"414", target + b"?" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"431", target + b" HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10_000 + b"\r\n\r\n"),
    ):
        response_head, _, body = raw(server, head).partition(b"\r\n\r\n")
        assert response_head.split()[1] == status
        response_schemas.Problem.model_validate_json(body)
        assert list(described[status.decode()]["content"]) == ["application/problem+json"]
        assert b"Content-Type: application/problem+json" in response_head


def test_responses_without_a_body_have_no_media_type(server: Server, client: httpx.Client) -> None:
    """Werkzeug would send text/html for them by default."""
    assert client.post("/v1/models/pulse/sessions", json={"session_id": "empty"}).status_code == 201
    key = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY
    handshake = raw(server, b"GET /v1/sessions/empty/stream HTTP/1.1\r\nHost: x\r\n" + key + b"\r\n\r\n", close=True)
    assert handshake.startswith(b"HTTP/1.1 101 ")
    assert b"content-type" not in handshake.lower()
    for method, status in (("OPTIONS", 200), ("DELETE", 204)):
        response = client.request(method, "/v1/sessions/empty")
        assert (response.status_code, response.headers.get("Content-Type")) == (status, None)


HEAD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD % CREATE.encode() + b"Content-Length: 60\r\n\r\n",
        HEAD % STEPS.encode() + b'Content-Length: 60\r\n\r\n{"inputs": [[500]]}',
        HEAD % STEPS.encode() + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n{"inputs": [[500]]}\r\n0\r\n\r\n',
        HEAD % STEPS.encode() + b'Transfer-Encoding: chunked\r\n\r\n13\r\n{"inputs": [[500]]}XX0\r\n\r\n',
    ],
    ids=["no body", "a shorter body that is JSON", "no chunk size", "no end of a chunk"],
)
def test_an_incomplete_body_is_refused(server: Server, client: httpx.Client, request_bytes: bytes) -> None:
    """The request of a client that died while sending creates no session and advances none."""
    before = client.get("/v1/models").text
    head, _, body = raw(server, request_bytes, close=True).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), head
    assert json.loads(body)["type"] == "urn:onward:problem:bad-request"
    assert json.loads(body)["errors"][0]["field"] == "body"
    assert client.get("/v1/models").text == before


def test_a_compressed_body_is_refused(client: httpx.Client) -> None:
    """The problem names the content encoding and does not report malformed JSON."""
    body = gzip.compress(b'{"inputs": [[1]]}')
    response = client.post(STEPS, content=body, headers=JSON | {"Content-Encoding": "gzip"})
    assert_problem(response, "unsupported-media-type", "Content-Encoding")


@pytest.mark.parametrize("item", ['""', '[""]', '{"ppg": ""}'])
def test_only_the_first_of_many_faults_is_reported(client: httpx.Client, item: str) -> None:
    """The first fault is enough for the client, and collecting the others would delay all requests of the worker."""
    problem = assert_problem(
        client.post(STEPS, content=f'{{"inputs": [{",".join([item] * 400_000)}]}}', headers=JSON), INVALID
    )
    assert len(problem["errors"]) == 1


def raw(server: Server, request: bytes, *, close: bool = False) -> bytes:
    """Sends the bytes unchanged; returns the whole response. `close` then ends the sending side."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request)
        if close:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_same_request_id_with_other_inputs_is_refused(client: httpx.Client) -> None:
    """A reused request id is distinguished from a retry."""
    client.post("/v1/models/pulse/sessions", json={"session_id": "reuse"})
    first = client.post("/v1/sessions/reuse/steps", json={"inputs": [[1]], "request_id": "r"})
    assert first.status_code == 200
    again = client.post("/v1/sessions/reuse/steps", json={"inputs": [[2]], "request_id": "r"})
    assert_problem(again, "request-reused", "request_id")
    assert client.get("/v1/sessions/reuse").json()["step"] == 1


def test_a_deleted_session_is_reported_until_its_id_is_created_again(client: httpx.Client) -> None:
    """Every use is answered with 410, the reason and the time; a session created again begins at step 0."""
    client.post("/v1/models/pulse/sessions", json={"session_id": "gone", "inputs": [[500]]})
    assert client.delete("/v1/sessions/gone").status_code == 204
    for method, path, body in (
        ("POST", "/v1/sessions/gone/steps", {"inputs": [[1]]}),
        ("POST", "/v1/sessions/gone/forecast", {"horizon": 1}),
        ("GET", "/v1/sessions/gone", None),
        ("DELETE", "/v1/sessions/gone", None),
    ):
        problem = assert_problem(client.request(method, path, json=body), "session-ended", "session_id")
        assert problem["reason"] == "deleted"
        assert problem["ended_at"].endswith("Z")
    assert "gone" not in [session["session_id"] for session in client.get("/v1/sessions").json()["sessions"]]
    assert client.post("/v1/models/pulse/sessions", json={"session_id": "gone"}).json()["step"] == 0


def test_an_expired_session_is_reported(client: httpx.Client) -> None:
    """An expired session is answered with 410 and the reason once it is due; steps keep a session alive."""
    inputs = INPUTS["pulse"](20)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    client.post("/v1/models/pulse/sessions", json={"session_id": "idle", "ttl_s": 0.4})
    client.post("/v1/models/pulse/sessions", json={"session_id": "busy", "ttl_s": 2})
    until = time.monotonic() + 2.5
    step = 0
    while (idle := client.get("/v1/sessions/idle")).status_code == 200 or time.monotonic() < until:
        if step < len(inputs) and time.monotonic() > until - 2.5 + 0.12 * step:
            response = client.post("/v1/sessions/busy/steps", json={"inputs": [inputs[step]]})
            assert_same_bits(response.json(), expected, slice(step, step + 1))
            step += 1
    assert step == len(inputs)
    problem = assert_problem(idle, "session-ended")
    assert problem["reason"] == "expired"
    assert_problem(client.post("/v1/sessions/idle/steps", json={"inputs": [[1]]}), "session-ended")
    assert client.get("/v1/sessions/busy").json()["step"] == len(inputs)
