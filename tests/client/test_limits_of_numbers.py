"""A model with limits refuses numbers beyond them, from any client and in any form, and nothing moves."""

import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

import onward
from onward.__main__ import main
from onward.errors import InvalidRequest
from tests.e2e.server import Server
from tests.helpers.analytic_models import ar1
from tests.helpers.problem_assertions import assert_problem
from tests.helpers.websocket_client import WebSocket

WHAT = "31 (x) is beyond the limits of this feature, -5 to 30.5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `ar1`, whose feature x has limits."""
    made = tmp_path_factory.mktemp("limits")
    ar1(made / "models", 0.8, 0.5)
    file = made / "models/ar1/1/manifest.json"
    manifest = json.loads(file.read_text())
    manifest["features"][0]["limits"] = [-5, 30.5]
    file.write_text(json.dumps(manifest))
    return made


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Server]:
    with Server(folder, ONWARD_MODELS=str(folder / "models")) as server:
        yield server


Use = Callable[[Any], Any]
FORMS: dict[str, tuple[str, Use]] = {
    "one step": ("inputs[0][0]", lambda session: session.step(31.0)),
    "by name": ("inputs[0][0]", lambda session: session.step({"x": 31})),
    "steps": ("inputs[2][0]", lambda session: session.steps([[-5], [30.5], [31]])),
    "an array": ("inputs[1][0]", lambda session: session.steps(np.array([[1.0], [31.0]], np.float32))),
    "many steps": ("inputs[5000][0]", lambda session: session.steps([1.0] * 5000 + [31.0])),
    "before a forecast": ("inputs[0][0]", lambda session: session.forecast(2, inputs=[31.0])),
    "before a generation": ("inputs[0][0]", lambda session: list(session.generate(2, inputs=[31.0]))),
}


@pytest.mark.parametrize("form", FORMS)
def test_sessions_refuse_it_in_process_and_of_a_service(form: str, folder: Path, served: Server) -> None:
    """Both raise the same error, which names the value and the limits, and the sessions stay where they were."""
    field, use = FORMS[form]
    local = onward.load(folder / "models/ar1/1").session(inputs=[30.5, -5])
    with onward.Client(served.url) as client, client.session("ar1", inputs=[30.5, -5]) as remote:
        for session in (local, remote):
            with pytest.raises(InvalidRequest) as refused:
                use(session)
            assert refused.value.errors == [{"field": field, "message": WHAT}]
            assert session.info().step == 2


def test_calls_without_a_session_refuse_it(folder: Path, served: Server) -> None:
    model = onward.load(folder / "models/ar1/1")
    with onward.Client(served.url) as client:
        calls: list[Callable[[], Any]] = [
            lambda: model.predict([[1.0], [2.0, 31.0]]),
            lambda: client.predict("ar1", [[1.0], [2.0, 31.0]]),
            lambda: client.session("ar1", inputs=[31.0]),
            lambda: model.session(inputs=[31.0]),
        ]
        for call in calls:
            with pytest.raises(InvalidRequest, match=r"inputs.*: 31 \(x\) is beyond the limits of this feature"):
                call()
        assert list(client.sessions("ar1")) == []


def test_every_message_refuses_it(served: Server) -> None:
    """HTTP, NDJSON, bulk, and messages of both kinds over a WebSocket; the steps beside it are applied."""
    with httpx.Client(base_url=served.url) as http:
        assert http.post("/v1/models/ar1/sessions", json={"session_id": "s"}).status_code == 201
        path = "/v1/sessions/s/steps"
        assert_problem(http.post(path, json={"inputs": [31]}), "invalid-request", "inputs[0][0]")
        lines = http.post(path, content="1\n31\n2\n", headers={"content-type": "application/x-ndjson"}).text.split("\n")
        assert json.loads(lines[0])["step"] == 1
        assert (json.loads(lines[1])["line"], json.loads(lines[1])["errors"][0]["message"]) == (2, WHAT)
        items = [{"session_id": "s", "inputs": [value]} for value in (31, 3)]
        bulk = http.post("/v1/steps", json={"items": items}).json()["items"]
        assert [item["status"] for item in bulk] == [422, 200]
        columns = {"session_ids": ["s", "s"], "inputs": [[31], [3]]}
        assert http.post("/v1/steps", json=columns).json()["statuses"] == [422, 200]
        with contextlib.closing(WebSocket(served.url, "s")) as stream:
            stream.send({"inputs": [31]}, bytes(8) + struct.pack("<f", 31), bytes(8) + struct.pack("<f", 30.5))
            assert [stream.receive()["errors"][0]["message"] for _ in range(2)] == [WHAT, WHAT]
            assert struct.unpack_from("<Q", stream.receive()) == (4,)
        assert http.get("/v1/models/ar1").json()["inputs"][0]["limits"] == [-5.0, 30.5]


@pytest.mark.parametrize("command", ["predict", "predict in process", "stream"])
def test_commands_over_files_refuse_it(command: str, folder: Path, served: Server, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("x\n1\n2\n31\n4\n")
    model = ["--bundle", str(folder / "models/ar1/1")] if "process" in command else ["--model", "ar1"]
    arguments = [command.split(maxsplit=1)[0], str(tmp_path / "x.csv"), *model]
    done = CliRunner().invoke(main, arguments, env={"ONWARD_URL": served.url})
    assert done.exit_code == 1
    assert f"{WHAT} [invalid-request]" in done.stderr
    assert len(done.stdout.splitlines()) == (2 if command == "stream" else 0)
