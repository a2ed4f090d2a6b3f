"""The documents are right: their examples run, they are complete, and their figures are those of the bundles."""

import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onward.__main__ import SERVICE_COMMANDS
from onward.service.app import OPERATIONS
from onward.service.http.problems import ALL
from onward.service.server.start_banner import requests
from onward.service.settings import PREFIX, Settings
from tests.e2e.server import Server
from tests.helpers import sse_reader
from tests.helpers.reference_loop import ROOT, ZOO

README = (ROOT / "README.md").read_text()
API = (ROOT / "docs/api.md").read_text()
HOME = "http://127.0.0.1:8000"
SECRET = "0123456789abcdef0123456789abcdef"


def commands(text: str) -> list[str]:
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def run(command: str, url: str, folder: Path = Path()) -> tuple[int, Any]:
    """The status and the parsed JSON of a documented curl command, or the text of another body.

    With -N, a list of the streamed lines, or of the data of the events.
    """
    printed, piped, curl = command.rpartition(" | ")
    data = subprocess.run(shlex.split(printed), capture_output=True, check=True).stdout if piped else None
    arguments = [part.replace(HOME, url) for part in shlex.split(curl)]
    assert arguments[0] == "curl"
    assert arguments[1] in {"-s", "-sN"}
    command_line = [*arguments, "-w", "\n%{http_code}"]
    output = subprocess.run(command_line, input=data, capture_output=True, check=True, cwd=folder).stdout.decode()
    body, _, status = output.rpartition("\n")
    if arguments[1] == "-sN":
        lines = [json.loads(line) for line in body.splitlines() if line.startswith("{")]
        return int(status), lines or [event.data for event in sse_reader.read(body)]
    return int(status), json.loads(body) if body[:1] in {"{", "["} else body or None


def test_the_readmes_first_screen_runs(tmp_path: Path) -> None:
    """The requests work in order and carry state; the last may be repeated, also after a kill -9."""
    with Server(tmp_path) as server:
        answers = [run(command, server.url) for command in commands(README)]
        assert [status for status, _ in answers] == [201, 200, 200]
        assert len(answers[1][1]["forecast"]["mean"]) == 5
        assert answers[2][1]["step"] == 3
        assert run(commands(README)[-1], server.url) == answers[2]
        server.kill()
        server.start()
        assert run(commands(README)[-1], server.url) == answers[2]


def test_every_example_of_the_api_runs(tmp_path: Path) -> None:
    """Examples succeed in order, and every operation has an example."""
    with Server(tmp_path, ONWARD_SECRET=SECRET, ONWARD_HISTORY="100") as server:
        answers = [run(command, server.url, tmp_path) for command in commands(API)]
    statuses = [status for status, _ in answers]
    assert set(statuses) <= {200, 201, 204}, statuses
    streams = [events for command, (_, events) in zip(commands(API), answers, strict=True) if "/generate" in command]
    assert [events[-1]["reason"] for events in streams] == ["horizon"] * len(streams)
    for operation in OPERATIONS:
        path = operation.path.replace("{model}", "pulse").replace("{session_id}", "ward-3")
        if operation.status == 101:
            assert path in API
        elif path != "/":
            shown = re.escape(path).replace("ward\\-3", r"ward-\d")
            assert any(re.search(rf"{HOME}{shown}(?![\w/])", command) for command in commands(API)), path


CALLS = {
    "GET /v1/models": "client.models(", "GET /v1/models/{model}": "client.model(",
    "POST /v1/models/{model}/predict": "client.predict(", "POST /v1/models/{model}/step": "client.held(",
    "POST /v1/models/{model}/sessions": "client.session(", "GET /v1/sessions": "client.sessions(",
    "PUT /v1/models/{model}/sessions/{session_id}": "client.ensure(",
    "POST /v1/models/{model}/sessions/{session_id}/steps": "client.step(",
    "DELETE /v1/sessions": "client.delete_sessions(", "POST /v1/steps": "client.step_many(",
    "GET /v1/sessions/{session_id}": ".info(", "DELETE /v1/sessions/{session_id}": ".delete(",
    "POST /v1/sessions/{session_id}/steps": ".step(", "POST /v1/sessions/{session_id}/forecast": ".forecast(",
    "POST /v1/sessions/{session_id}/fork": ".fork(", "POST /v1/sessions/{session_id}/rewind": ".rewind(",
    "POST /v1/sessions/{session_id}/migrate": ".migrate(", "GET /v1/sessions/{session_id}/state": ".export(",
    "PUT /v1/sessions/{session_id}/state": "client.restore(", "GET /healthz": "client.alive(",
    "GET /readyz": "client.ready(",
}  # fmt: skip
"""The client's call of each operation."""


def python(text: str, url: str) -> list[str]:
    """The Python blocks of a document, with the URL of the service."""
    return [block.replace(HOME, url) for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("document", ["api.md", "client.md"])
def test_every_example_in_python_runs(tmp_path: Path, document: str) -> None:
    """The blocks run in order as one program, which reports no unclosed resource."""
    with Server(tmp_path, ONWARD_SECRET=SECRET, ONWARD_HISTORY="100") as server:
        program = "\n".join(python((ROOT / "docs" / document).read_text(), server.url))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_operation_has_an_example_in_python() -> None:
    """An operation has an example in Python beside its example with curl."""
    blocks = "".join(python(API, HOME))
    operations = {f"{operation.method} {operation.path}" for operation in OPERATIONS}
    assert set(CALLS) <= operations
    assert [name for name, call in CALLS.items() if call not in blocks] == []


def test_every_example_of_the_command_line_runs(tmp_path: Path) -> None:
    """Examples succeed, and every command that talks to a service is on the page."""
    text = (ROOT / "docs/cli.md").read_text()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with Server(tmp_path) as server:
        for command in commands(text):
            name, *arguments = shlex.split(command)
            assert name == "onward"
            done = subprocess.run(
                [sys.executable, "-m", "onward", *arguments], env=environment | {"ONWARD_URL": server.url}, cwd=ROOT,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}: {done.stderr}"
    for name in SERVICE_COMMANDS:
        assert re.search(rf"onward {name}\b|\*\*`{name}\b", text), name


def test_the_banner_shows_requests_that_run(tmp_path: Path) -> None:
    """The requests that `make serve` prints succeed."""
    with Server(tmp_path) as server:
        server.stop()  # completes the output of the server
        shown = [line.strip() for line in server.log if line.strip().startswith("curl")]
        assert len(shown) == 3
        server.start()
        assert [run(command, server.url)[0] for command in shown] == [201, 200, 200]
    assert requests("127.0.0.1:8000", {}) == []


def test_every_setting_is_documented() -> None:
    """The table has the name, the default and the meaning of every setting."""
    rows = re.findall(
        r"^\| `(ONWARD_\w+)` \| (.*?) \| (.*?) \|$", (ROOT / "docs/settings.md").read_text(), re.MULTILINE
    )
    assert {name for name, _, _ in rows} == {PREFIX + name.upper() for name in Settings.model_fields}
    for name, default, meaning in rows:
        setting = Settings.model_fields[name.removeprefix(PREFIX).lower()]
        assert meaning == setting.description
        if name not in {"ONWARD_WORKERS", "ONWARD_STORE", "ONWARD_MODELS"}:
            assert default == str(setting.default)


def test_every_problem_is_documented() -> None:
    """The table has every problem type with its status."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", (ROOT / "docs/problems.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((kind.name, str(kind.status)) for kind in ALL)


@pytest.mark.parametrize("model", ["pulse", "weather"])
def test_the_readmes_figures_are_the_bundles(model: str) -> None:
    """The table of errors has the figures of the manifests, which `onward train` prints."""
    metrics = json.loads((ZOO / model / "1/manifest.json").read_text())["metrics"]
    for target, table in metrics["targets"].items():
        figures = [f"{table[name]['mae']:.4g}" for name in ("model", "last_value", "seasonal_naive")]
        row = rf"^\| {model} \| {target}[^|]* \| " + r" \| ".join(map(re.escape, figures)) + r" \|$"
        assert re.search(row, README, re.MULTILINE), row


def test_the_names_in_the_architecture_exist() -> None:
    """Every path on the page exists, and every dotted name can be imported."""
    text = (ROOT / "docs/architecture.md").read_text()
    paths = set(re.findall(r"`((?:bench|client|docs|model|onward|service|tests|training)/[\w/.]*)`", text))
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []
    names = set(re.findall(r"`(onward\.[\w.]+)`", text))
    assert len(names) > 15
    for name in names:
        pkgutil.resolve_name(name)


def test_links_lead_somewhere() -> None:
    """Every relative link of every document names an existing file."""
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
