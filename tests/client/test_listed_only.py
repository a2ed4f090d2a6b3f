"""Rankings of listed categories only: of a service by every way in, and in process, beside the model's own rankings."""

import contextlib
import json
import struct
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

import onward
from onward.__main__ import main
from onward.client.results import Generated, Outputs
from onward.errors import InvalidRequest
from tests.client.test_local import bits
from tests.e2e.server import Server
from tests.helpers.analytic_models import markov
from tests.helpers.problem_assertions import assert_problem
from tests.helpers.reference_loop import ZOO, pulse
from tests.helpers.websocket_client import WebSocket

OTHERS = [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.1, 0.4, 0.2, 0.3], [0.3, 0.3, 0.2, 0.2]]
"""After a and after any unlisted category, the category that is not listed is likely; after b it is the last."""
RANKED: dict[str, list[tuple[str | None, float]]] = {
    "a": [(None, 0.4), ("c", 0.3), ("b", 0.2)],
    "b": [("a", 0.4), ("b", 0.3), ("c", 0.2)],
    "c": [("b", 0.4), (None, 0.3), ("c", 0.2)],
}
"""The three likeliest categories after each."""
LISTED = {after: [pair for pair in ranked if pair[0] is not None][:2] for after, ranked in RANKED.items()}
PATH = ["a", "b", "c", "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chain of three ranked categories of which one may stand for others, and one of one category."""
    made = tmp_path_factory.mktemp("models")
    markov(made, OTHERS, "abc", unknown=True, top=3, name="chain")
    markov(made, [[0.6, 0.2, 0.2]] * 3, "ab", unknown=True, top=1, name="one")
    markov(made, [[0.2] * 5] * 5, (10, 20, 30, 40, 50), name="even")
    (made / "pulse").symlink_to(ZOO / "pulse")
    return made


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("service"), ONWARD_MODELS=str(folder), ONWARD_SECRET="s" * 32) as server:
        yield server


def pairs(outputs: Outputs, row: int | None = None) -> list[tuple[str | None, float]]:
    top, scores = (outputs[name] if row is None else outputs[name][row] for name in ("top", "log_probability"))
    return [(name, round(float(np.exp(score)), 5)) for name, score in zip(top, scores, strict=True)]


def test_sessions_in_process_and_of_a_service(folder: Path, served: Server) -> None:
    """Steps, streams and forecasts have the two likeliest listed categories, with the model's log-probabilities."""
    local = onward.load(folder / "chain/1", listed_only=True).session(inputs=["c"])
    with (
        onward.Client(served.url, listed_only=True) as client,
        onward.Client(served.url) as plain,
        client.session("chain", inputs=["c"]) as remote,
    ):
        for session in (local, remote):
            assert session.prediction is not None
            assert pairs(session.prediction) == LISTED["c"]
            for category in PATH:
                assert pairs(session.step(category)) == LISTED[category]
            several = session.steps(PATH)
            assert [pairs(several, row) for row in range(4)] == [LISTED[category] for category in PATH]
            assert [pairs(prediction) for prediction in session.stream(PATH)] == [LISTED[name] for name in PATH]
            assert session.forecast(3, inputs=["a"])["top"].tolist() == [["c"], ["b"], ["a"]]
        whole = plain.attach(remote.id).steps(PATH)
        assert [pairs(whole, row) for row in range(4)] == [RANKED[category] for category in PATH]
        assert plain.attach(remote.id).forecast(1, inputs=["a"])["top"].tolist() == [[None]]
        local.steps(PATH)
        asked: list[dict[str, Any]] = [{"samples": 300, "seed": 4}, {"samples": 5, "seed": 1, "paths": True}]
        for options in asked:
            mine, theirs = (session.forecast(4, **options) for session in (local, remote))
            for name, values in mine.items():
                assert [row.tolist() for row in values] == [row.tolist() for row in theirs[name]]
            assert mine["top"][0].tolist() == ["a", "b"]
        assert bits(local.fork().step("a")) == bits(remote.fork().step("a"))
        accuracy = [session.info().accuracy for session in (local, remote)]
        assert accuracy[0] == accuracy[1], "rankings are counted as the model has them"
        generated = [list(session.generate(50, seed=3, logprobs=2, inputs=["a"])) for session in (local, remote)]
        assert list(map(astuple, generated[0])) == list(map(astuple, generated[1]))
        before = "a"
        for step in generated[0][:-1]:
            assert isinstance(step, Generated)
            assert step.top == tuple(name for name, _ in LISTED[before])
            assert step.log_probabilities == pytest.approx([np.log(value) for _, value in LISTED[before]])
            before = str(step.token)
        for session in (local, remote):
            with pytest.raises(InvalidRequest, match="logprobs: the model outputs the likeliest 2 that are listed"):
                list(session.generate(2, logprobs=3))


def test_calls_without_a_session(folder: Path, served: Server) -> None:
    """Predictions of sequences, bulk steps, steps that create a session, and steps whose state the client holds."""
    with onward.Client(served.url, listed_only=True) as client:
        local = onward.load(folder / "chain/1", listed_only=True)
        for (result,) in (local.predict([["c", "a"]], 3), client.predict("chain", [["c", "a"]], 3)):
            assert [pairs(result.predictions, row) for row in range(2)] == [LISTED["c"], LISTED["a"]]
            assert result.forecast is not None
            assert result.forecast["top"].tolist() == [["c"], ["b"], ["a"]]
        assert pairs(client.held("chain", ["a"]).predictions.last) == LISTED["a"]
        assert pairs(client.step("chain", "made", ["a"]).last) == LISTED["a"]
        for answer, category in zip(client.step_many([("made", ["b"]), ("made", ["c"])]), "bc", strict=True):
            assert isinstance(answer, onward.Predictions)
            assert pairs(answer.last) == LISTED[category]


def test_every_message_of_a_service(served: Server) -> None:
    """Lines, columns, and texts and binary messages of a WebSocket have the same rankings."""
    query = "?listed_only=true"
    with httpx.Client(base_url=served.url) as http:
        made = http.post(f"/v1/models/chain/sessions{query}", json={"session_id": "m", "inputs": ["c"]})
        assert made.json()["prediction"]["top"] == ["b", "c"]
        assert http.put(f"/v1/models/chain/sessions/m{query}").json()["prediction"]["top"] == ["b", "c"]
        ndjson = {"content-type": "application/x-ndjson"}
        lines = http.post(f"/v1/sessions/m/steps{query}", content='"a"\n"b"\n', headers=ndjson).text.splitlines()
        assert [json.loads(line)["predictions"]["top"] for line in lines] == [[["c", "b"]], [["a", "b"]]]
        for sessions in (["m"], ["m", "nobody"], ["m", "m"]):
            columns = {"session_ids": sessions, "inputs": [["a"]] * len(sessions)}
            answer = http.post(f"/v1/steps{query}", json=columns).json()
            assert answer["predictions"]["top"][0] == [["c", "b"]]
        retried = [
            http.post(f"/v1/sessions/m/steps{given}", json={"inputs": ["a"], "request_id": "r"}).json()
            for given in (query, "", "?listed_only=false", query)
        ]
        assert [answer["predictions"]["top"][0] for answer in retried] == [
            ["c", "b"], [None, "c", "b"], [None, "c", "b"], ["c", "b"]
        ], "a retry has the rankings that it asks for"  # fmt: skip
        assert len({answer["step"] for answer in retried}) == 1
        assert_problem(http.post("/v1/sessions/m/steps?listed_only=yes", json={"inputs": ["a"]}), *INVALID)
        assert_problem(http.post("/v1/sessions/m/fork?listed_only=true", json={}), *INVALID)
    with contextlib.closing(WebSocket(served.url, "m", query=query)) as stream:
        stream.send({"inputs": ["a"]}, bytes(8) + struct.pack("<f", 0), {"inputs": ["b", "c"], "request_id": "q"})
        assert stream.receive()["predictions"]["top"] == [["c", "b"]]
        numbers = np.frombuffer(stream.receive()[8:], np.float32)
        assert numbers[:2].tolist() == [2, 1]
        assert np.exp(numbers[2:4]) == pytest.approx([0.3, 0.2])
        assert stream.receive()["predictions"]["top"] == [["a", "b"], ["b", "c"]]


INVALID = ("invalid-request", "listed_only")


def test_a_ranking_of_one_category_is_refused_before_anything_moves(folder: Path, served: Server) -> None:
    """The likeliest category alone may stand for all others. Bulk items of other models are applied."""
    with pytest.raises(InvalidRequest, match="listed_only: the model outputs the likeliest category alone"):
        onward.load(folder / "one/1", listed_only=True)
    query = "?listed_only=true"
    with httpx.Client(base_url=served.url) as http:
        for name, model in (("o", "one"), ("e", "even")):
            assert http.post(f"/v1/models/{model}/sessions", json={"session_id": name}).status_code == 201
        refused: dict[str, Any] = {
            "/v1/sessions/o/steps": {"inputs": ["a"]}, "/v1/models/one/sessions": {"session_id": "new"},
            "/v1/models/one/sessions/new/steps": {"inputs": ["a"]}, "/v1/models/one/step": {"inputs": ["a"]},
            "/v1/models/one/predict": {"inputs": [["a"]]}, "/v1/sessions/o/generate": {"horizon": 2},
            "/v1/sessions/o/forecast": {"horizon": 2},
        }  # fmt: skip
        for path, body in refused.items():
            assert_problem(http.post(path + query, json=body), *INVALID)
        assert_problem(http.put(f"/v1/models/one/sessions/new{query}"), *INVALID)
        items = [{"session_id": "o", "inputs": ["a"]}, {"session_id": "e", "inputs": [10]}]
        answers = http.post(f"/v1/steps{query}", json={"items": items}).json()["items"]
        assert [answer["status"] for answer in answers] == [422, 200]
        ndjson = {"content-type": "application/x-ndjson"}
        lines = http.post(f"/v1/sessions/o/steps{query}", content='"a"\n"b"\n', headers=ndjson).text.splitlines()
        assert [(answer["line"], answer["step"]) for answer in map(json.loads, lines)] == [(1, 0)]
        assert http.get("/v1/sessions/o").json()["step"] == 0
        assert http.get("/v1/sessions/new").status_code == 404


def test_other_models_answer_as_they_do_without_it(folder: Path, served: Server) -> None:
    """A model that accepts no other categories, and one of numbers, have the same outputs."""
    with onward.Client(served.url) as plain, onward.Client(served.url, listed_only=True) as client:
        for name, inputs in (("even", [10, 20]), ("pulse", pulse(3))):
            with plain.session(name, inputs=inputs) as unchanged, client.session(name, inputs=inputs) as listed:
                assert bits(unchanged.step(inputs[0])) == bits(listed.step(inputs[0]))
                assert bits(unchanged.forecast(3)) == bits(listed.forecast(3))
            local = onward.load(folder / name / "1", listed_only=True)
            assert bits(local.session().steps(inputs)) == bits(onward.load(folder / name / "1").session().steps(inputs))


@pytest.mark.parametrize("command", ["predict", "predict in process", "stream"])
def test_commands(command: str, folder: Path, served: Server, tmp_path: Path) -> None:
    (tmp_path / "x.ndjson").write_text('"c"\n"a"\n')
    model = ["--bundle", str(folder / "chain/1")] if "process" in command else ["--model", "chain"]
    arguments = [command.split(maxsplit=1)[0], str(tmp_path / "x.ndjson"), *model, "--json"]
    for option, width in (([], 3), (["--listed-only"], 2)):
        done = CliRunner().invoke(main, [*arguments, *option], env={"ONWARD_URL": served.url})
        assert done.exit_code == 0, done.output
        last = json.loads(done.stdout.splitlines()[-1])["predictions"]["top"]
        top = last if command == "stream" else last[-1]
        assert top == [name for name, _ in RANKED["a"] if width == 3 or name is not None]
