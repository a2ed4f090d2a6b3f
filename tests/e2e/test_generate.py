"""Generation over real connections: events are streamed, any worker can resume it, and it ends with its client."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from onward.model.repository import open_bundle
from tests.e2e.server import Server, open_files
from tests.helpers.problem_assertions import assert_problem
from tests.helpers.reference_loop import ZOO, BareLoop, pulse
from tests.helpers.sse_reader import ReceivedEvent, read

URL = "/v1/sessions/text/generate"
TOKENS: dict[str, Any] = {"horizon": 30, "inputs": "The ", "temperature": 0.8, "top_p": 0.9, "seed": 7}


@pytest.fixture(scope="module", autouse=True)
def _sessions(server: Server) -> None:
    with server.client() as client:
        for session, model in (("text", "characters"), ("pulse", "pulse")):
            assert client.post(f"/v1/models/{model}/sessions", json={"session_id": session}).status_code == 201


def generate(
    client: httpx.Client, session: str, headers: dict[str, str] | None = None, **body: Any
) -> list[ReceivedEvent]:
    response = client.post(f"/v1/sessions/{session}/generate", json=body, headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream"), response.text
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
    return read(response.text)


def parts(response: httpx.Response) -> Iterator[str]:
    """Yields each event as soon as it is complete."""
    rest = ""
    for text in response.iter_text():
        *complete, rest = (rest + text).split("\n\n")
        yield from (f"{event}\n\n" for event in complete if event.startswith("id:"))


def test_tokens_have_the_log_probabilities_of_a_bare_loop(client: httpx.Client) -> None:
    """The log-probability of each token is that of a loop fed the prompt and the earlier tokens."""
    *steps, end = generate(client, "text", **TOKENS)
    loop, names = BareLoop(ZOO / "characters/1"), open_bundle(ZOO / "characters/1").manifest.categories
    outputs = {
        name: rows[-1] for name, rows in loop.run([[names.index(character)] for character in TOKENS["inputs"]]).items()
    }
    for ahead, event in enumerate(steps, 1):
        token = names.index(event.data["token"])
        (log_probability,) = outputs["log_probability"][outputs["top"] == token]
        assert event.data == {"ahead": ahead, "token": names[token], "log_probability": float(log_probability)}
        outputs = loop.step([token])
    text = "".join(event.data["token"] for event in steps)
    assert (end.name, end.data) == ("done", {"reason": "horizon", "seed": 7, "step": 0, "text": text})


def test_numbers_follow_the_distributions_of_a_bare_loop(client: httpx.Client) -> None:
    """Standardised by the loop, the numbers are the normal numbers of the generator times the temperature."""
    rows = pulse(5)
    *steps, _ = generate(client, "pulse", horizon=40, inputs=rows, seed=3, temperature=0.5)
    loop = BareLoop(ZOO / "pulse/1")
    outputs = {name: values[-1] for name, values in loop.run(rows).items()}
    drawn = []
    for event in steps:
        drawn.append((event.data["values"][0] - outputs["mean"][0]) / outputs["std"][0])
        outputs = loop.step(event.data["values"])
    normal = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(0,))).standard_normal(40)
    assert drawn == pytest.approx(normal / 2, abs=1e-3)
    assert client.get("/v1/sessions/pulse").json()["step"] == 0


def test_a_generation_resumes_in_another_process(tmp_path: Path) -> None:
    """After a SIGKILL of its worker or of the whole service, another worker sends exactly the remaining events."""
    with Server(tmp_path) as server:
        with server.client() as client:
            client.post("/v1/models/characters/sessions", json={"session_id": "text", "inputs": "A "})
            whole = generate(client, "text", **TOKENS)
        for cut in (1, 17, 30):
            with server.client() as client, client.stream("POST", URL, json=TOKENS) as response:
                stream = parts(response)
                events = read("".join(itertools.islice(stream, cut)))
                if cut == 17:
                    server.kill()
                else:
                    server.kill_worker(holder(server, response))
            assert events == whole[:cut]
            if cut == 17:
                server.start()
            with server.client() as client:
                assert generate(client, "text", {"Last-Event-ID": events[-1].id}, **TOKENS) == whole[cut:]


def test_a_connection_is_usable_after_a_generation(client: httpx.Client) -> None:
    """A step, a generation, refusals and steps again succeed on a single connection."""
    assert client.post("/v1/models/pulse/sessions", json={"session_id": "one"}).status_code == 201
    assert client.post("/v1/sessions/one/steps", json={"inputs": [500]}).json()["step"] == 1
    events = generate(client, "one", horizon=3)
    assert [event.name for event in events] == ["message"] * 3 + ["done"]
    assert client.post("/v1/sessions/one/steps", json={"inputs": [500]}).json()["step"] == 2
    moved = client.post("/v1/sessions/one/generate", json={"horizon": 3}, headers={"Last-Event-ID": events[0].id})
    assert_problem(moved, "draw-moved", "Last-Event-ID")
    assert_problem(client.post("/v1/sessions/none/generate", json={"horizon": 3}), "unknown-session", "session_id")
    assert client.post("/v1/sessions/one/steps", json={"inputs": [500]}).json()["step"] == 3


def test_a_generation_ends_with_its_client(server: Server) -> None:
    """The worker closes a connection that was cut, so that it has stopped computing, and serves other clients."""
    with server.client() as client:
        with client.stream("POST", URL, json={"horizon": 10_000}) as response:
            stream = parts(response)
            next(stream)
            worker = holder(server, response)
            during = sockets(worker)
        deadline = time.monotonic() + 20
        while len(sockets(worker) & during) == len(during):
            assert time.monotonic() < deadline, "the connection is still open"
        assert client.get("/v1/sessions/text").json()["step"] == 0
    assert not any("Traceback" in line for line in server.log), "".join(server.log)


def holder(server: Server, response: httpx.Response) -> int:
    return server.holder(response.extensions["network_stream"].get_extra_info("socket"))


def sockets(worker: int) -> set[str]:
    return {name for name in open_files(worker) if name.startswith("socket:")}
