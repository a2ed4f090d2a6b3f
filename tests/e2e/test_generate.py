"""Draws over real connections: told as they are drawn, gone on with at any worker, and ended with their client."""

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


def ask(client: httpx.Client, session: str, headers: dict[str, str] | None = None, **body: Any) -> list[ReceivedEvent]:
    answer = client.post(f"/v1/sessions/{session}/generate", json=body, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream"), answer.text
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
    return read(answer.text)


def parts(answer: httpx.Response) -> Iterator[str]:
    """Events as they come, each whole."""
    rest = ""
    for text in answer.iter_text():
        *whole, rest = (rest + text).split("\n\n")
        yield from (f"{one}\n\n" for one in whole if one.startswith("id:"))


def test_tokens_are_drawn_by_what_a_bare_loop_says(client: httpx.Client) -> None:
    """Each token's log-probability is the loop's, after the prompt and the tokens before it; and the text is theirs."""
    *steps, end = ask(client, "text", **TOKENS)
    loop, names = BareLoop(ZOO / "characters/1"), open_bundle(ZOO / "characters/1").manifest.categories
    said = {name: rows[-1] for name, rows in loop.run([[names.index(one)] for one in TOKENS["inputs"]]).items()}
    for ahead, one in enumerate(steps, 1):
        place = names.index(one.data["token"])
        told = said["log_probability"][said["top"] == place]
        assert one.data == {"ahead": ahead, "token": names[place], "log_probability": float(told[0])}
        said = loop.step([place])
    text = "".join(one.data["token"] for one in steps)
    assert (end.name, end.data) == ("done", {"reason": "horizon", "seed": 7, "step": 0, "text": text})


def test_numbers_are_drawn_around_what_a_bare_loop_says(client: httpx.Client) -> None:
    """Standardised by it, they are the generator's own normal numbers, at half the heat half of them."""
    rows = pulse(5)
    *steps, _ = ask(client, "pulse", horizon=40, inputs=rows, seed=3, temperature=0.5)
    loop = BareLoop(ZOO / "pulse/1")
    said = {name: values[-1] for name, values in loop.run(rows).items()}
    drawn = []
    for one in steps:
        drawn.append((one.data["values"][0] - said["mean"][0]) / said["std"][0])
        said = loop.step(one.data["values"])
    normal = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(0,))).standard_normal(40)
    assert drawn == pytest.approx(normal / 2, abs=1e-3)
    assert client.get("/v1/sessions/pulse").json()["step"] == 0


def test_a_draw_goes_on_in_another_process(tmp_path: Path) -> None:
    """Cut after any event, by a kill -9 of its worker or of the whole service: the others tell the very rest."""
    with Server(tmp_path) as server:
        with server.client() as client:
            client.post("/v1/models/characters/sessions", json={"session_id": "text", "inputs": "A "})
            whole = ask(client, "text", **TOKENS)
        for cut in (1, 17, 30):
            with server.client() as client, client.stream("POST", URL, json=TOKENS) as answer:
                coming = parts(answer)
                told = read("".join(itertools.islice(coming, cut)))
                if cut == 17:
                    server.kill()
                else:
                    server.kill_worker(holder(server, answer))
            assert told == whole[:cut]
            if cut == 17:
                server.start()
            with server.client() as client:
                assert ask(client, "text", {"Last-Event-ID": told[-1].id}, **TOKENS) == whole[cut:]


def test_a_connection_goes_on_after_a_draw(client: httpx.Client) -> None:
    """A step before it, a draw, a refusal and a step again, on one connection."""
    assert client.post("/v1/models/pulse/sessions", json={"session_id": "one"}).status_code == 201
    assert client.post("/v1/sessions/one/steps", json={"inputs": [500]}).json()["step"] == 1
    told = ask(client, "one", horizon=3)
    assert [one.name for one in told] == ["message"] * 3 + ["done"]
    assert client.post("/v1/sessions/one/steps", json={"inputs": [500]}).json()["step"] == 2
    moved = client.post("/v1/sessions/one/generate", json={"horizon": 3}, headers={"Last-Event-ID": told[0].id})
    assert_problem(moved, "draw-moved", "Last-Event-ID")
    assert_problem(client.post("/v1/sessions/none/generate", json={"horizon": 3}), "unknown-session", "session_id")
    assert client.post("/v1/sessions/one/steps", json={"inputs": [500]}).json()["step"] == 3


def test_a_draw_ends_with_its_client(server: Server) -> None:
    """The worker lets go of a connection that was cut, so it has stopped drawing for it, and serves others."""
    with server.client() as client:
        with client.stream("POST", URL, json={"horizon": 10_000}) as answer:
            coming = parts(answer)
            next(coming)
            worker = holder(server, answer)
            during = sockets(worker)
        deadline = time.monotonic() + 20
        while len(sockets(worker) & during) == len(during):
            assert time.monotonic() < deadline, "the connection is still there"
        assert client.get("/v1/sessions/text").json()["step"] == 0
    assert not any("Traceback" in line for line in server.log), "".join(server.log)


def holder(server: Server, answer: httpx.Response) -> int:
    return server.holder(answer.extensions["network_stream"].get_extra_info("socket"))


def sockets(worker: int) -> set[str]:
    return {name for name in open_files(worker) if name.startswith("socket:")}
