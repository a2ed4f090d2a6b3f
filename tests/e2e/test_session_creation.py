"""Sessions that are created by a step or a PUT, over every protocol of the service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server
from tests.helpers.problem_assertions import assert_problem
from tests.helpers.reference_loop import pulse
from tests.helpers.websocket_client import WebSocket


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("creating")) as started:
        yield started


@pytest.fixture(scope="module", params=["fast-path", "flask"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[httpx.Client]:
    """A client whose steps the fast path answers, and one with a header that makes Flask answer them."""
    with server.client() as opened:
        if request.param == "flask":
            opened.headers["X-Unknown"] = "1"
        opened.headers["X-Request-Id"] = request.param
        yield opened


def fresh(client: httpx.Client, name: str) -> str:
    """Returns an id that no other test uses."""
    return f"{name}-{client.headers['X-Request-Id']}"


def steps(client: httpx.Client, session_id: str, body: dict[str, Any], model: str = "pulse") -> httpx.Response:
    return client.post(f"/v1/models/{model}/sessions/{session_id}/steps", json=body)


def test_one_request_is_enough(client: httpx.Client) -> None:
    """The first step is answered with 201 and the address of the session, a retry and later steps with 200."""
    name, inputs = fresh(client, "one"), pulse(3)
    first = steps(client, name, {"inputs": inputs[:2], "request_id": "r1"})
    assert (first.status_code, first.headers["Location"]) == (201, f"/v1/sessions/{name}")
    retry = steps(client, name, {"inputs": inputs[:2], "request_id": "r1"})
    then = steps(client, name, {"inputs": inputs[2:], "step": 2})
    assert (retry.status_code, retry.json()) == (200, first.json())
    assert (then.status_code, then.json()["step"]) == (200, 3)
    client.post("/v1/models/pulse/sessions", json={"session_id": f"{name}-b"})
    expected = client.post(f"/v1/sessions/{name}-b/steps", json={"inputs": inputs}).json()
    assert then.json()["predictions"]["mean"] == expected["predictions"]["mean"][2:]


def test_what_cannot_be_created_is_a_problem(client: httpx.Client) -> None:
    """An unknown model, another model than that of the session, an impossible step and bad inputs are refused."""
    name = fresh(client, "refused")
    assert_problem(steps(client, name, {"inputs": [[1]]}, "none"), "unknown-model")
    assert_problem(steps(client, name, {"inputs": [[1]], "step": 5}), "unknown-session")
    assert_problem(steps(client, name, {"inputs": [[1, 2]]}), "invalid-request")
    assert client.get(f"/v1/sessions/{name}").status_code == 404
    assert steps(client, name, {"inputs": [[1]]}).status_code == 201
    assert_problem(steps(client, name, {"inputs": [[1, 2, 3, 4]]}, "weather"), "session-exists")
    client.delete(f"/v1/sessions/{name}")
    assert_problem(steps(client, name, {"inputs": [[1]], "step": 1}), "session-ended")
    assert steps(client, name, {"inputs": [[1]]}).status_code == 201


def test_items_and_columns_name_models(client: httpx.Client) -> None:
    """An item creates its session; one that names no model does not."""
    a, b, c, d = (fresh(client, name) for name in "abcd")
    items = [
        {"session_id": a, "inputs": [[500]], "model": "pulse"},
        {"session_id": a, "inputs": [[501]]},
        {"session_id": b, "inputs": [[500]]},
    ]
    answered = client.post("/v1/steps", json={"items": items}).json()["items"]
    assert [(item["status"], item.get("step")) for item in answered] == [(201, 1), (200, 2), (404, None)]
    columns = {"session_ids": [c, d, b], "inputs": [[[1]], [[1, 2, 3, 4]], [[1]]], "models": ["pulse", "weather", None]}
    results = client.post("/v1/steps", json=columns).json()
    assert (results["statuses"], results["steps"]) == ([201, 201, 404], [1, 1, None])
    refused = client.post("/v1/steps", json={"session_ids": [c], "inputs": [[1]], "models": ["pulse", "pulse"]})
    assert_problem(refused, "invalid-request")
    assert refused.json()["errors"][0]["field"] == "models"
    assert client.post("/v1/steps", json={"items": [items[0] | {"model": "No Model"}]}).status_code == 422


def test_lines_create_their_session_once(client: httpx.Client) -> None:
    name = fresh(client, "lines")
    url, kind = f"/v1/models/pulse/sessions/{name}/steps", {"Content-Type": "application/x-ndjson"}
    answered = [json.loads(line) for line in client.post(url, content="500\n501\n", headers=kind).text.splitlines()]
    again = [json.loads(line) for line in client.post(url, content="502\n", headers=kind).text.splitlines()]
    assert [line["step"] for line in answered + again] == [1, 2, 3]
    assert client.post(f"/v1/models/none/sessions/{name}-n/steps", content="1\n", headers=kind).status_code == 404
    late = client.post(f"/v1/models/pulse/sessions/{name}-n/steps?step=4", content="1\n", headers=kind)
    assert_problem(late, "unknown-session")


def test_a_stream_creates_its_session_but_not_anew(server: Server, client: httpx.Client) -> None:
    """A stream of texts or bytes creates its session; if the session is deleted, it has ended for that stream."""
    for kind, message in (("texts", {"inputs": [[500]]}), ("bytes", bytes(8) + b"\0\0\xfa\x43")):
        name = fresh(client, kind)
        with WebSocket(server.url, name, model="pulse") as stream:
            stream.send(message, message)
            stream.receive()
            stream.receive()
            assert client.get(f"/v1/sessions/{name}").json()["step"] == 2
            client.delete(f"/v1/sessions/{name}")
            stream.send(message)
            assert stream.receive()["status"] == 410
    with pytest.raises(ConnectionError, match="404"):
        WebSocket(server.url, fresh(client, "none"), model="none")


def test_put_creates_or_confirms(client: httpx.Client) -> None:
    """A PUT is answered with 201, a repeated one with 200, and a different one with 409 and the difference."""
    name = fresh(client, "put")
    url, body = f"/v1/models/pulse/sessions/{name}", {"ttl_s": 60, "inputs": [[500], [501]], "interval": 0.9}
    first, again = client.put(url, json=body), client.put(url, json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.headers["Location"] == again.headers["Location"] == f"/v1/sessions/{name}"
    assert client.put(url).status_code == 200
    assert client.get(f"/v1/sessions/{name}").json()["step"] == 2
    refused = client.put(url, json={"ttl_s": 61})
    assert_problem(refused, "session-exists")
    assert "has a ttl_s of 60" in refused.json()["detail"]
    assert_problem(client.put(url, json={"session_id": name}), "invalid-request")
    assert client.put("/v1/models/pulse/sessions/no%20id").status_code == 422


def test_repeated_puts_create_one_session(server: Server, tmp_path: Path) -> None:
    """Only the first PUT over two connections creates the session, whichever worker answers."""
    del tmp_path
    with server.client() as first, server.client() as second:
        codes = [each.put("/v1/models/pulse/sessions/same").status_code for _ in range(5) for each in (first, second)]
    assert codes == [201] + [200] * 9
