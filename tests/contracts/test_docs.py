"""The documents are right: what they show runs, what exists is in them, and their figures are the bundles'."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.app import OPERATIONS
from service.banner import requests
from service.http.problems import ALL
from service.settings import PREFIX, Settings
from tests import events
from tests.e2e.server import Server
from tests.reference import ROOT, ZOO

README = (ROOT / "README.md").read_text()
API = (ROOT / "docs/api.md").read_text()
HOME = "http://127.0.0.1:8000"
SECRET = "0123456789abcdef0123456789abcdef"


def commands(text: str) -> list[str]:
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def run(command: str, url: str, folder: Path = Path()) -> tuple[int, Any]:
    """Status and JSON of a documented curl command; with -N the lines, or the data of the events, that are streamed; of
    what is no JSON, its text.
    """
    said, piped, curl = command.rpartition(" | ")
    data = subprocess.run(shlex.split(said), capture_output=True, check=True).stdout if piped else None
    arguments = [part.replace(HOME, url) for part in shlex.split(curl)]
    assert arguments[0] == "curl"
    assert arguments[1] in {"-s", "-sN"}
    command_line = [*arguments, "-w", "\n%{http_code}"]
    output = subprocess.run(command_line, input=data, capture_output=True, check=True, cwd=folder).stdout.decode()
    body, _, status = output.rpartition("\n")
    if arguments[1] == "-sN":
        lines = [json.loads(line) for line in body.splitlines() if line.startswith("{")]
        return int(status), lines or [event.data for event in events.read(body)]
    return int(status), json.loads(body) if body[:1] in {"{", "["} else body or None


def test_the_readmes_first_screen_runs(tmp_path: Path) -> None:
    """Its requests work in order and carry state; the last may be sent again, over a kill -9, as it says."""
    with Server(tmp_path) as server:
        answers = [run(command, server.url) for command in commands(README)]
        assert [status for status, _ in answers] == [201, 200, 200, 200]
        assert len(answers[2][1]["forecast"]["mean"]) == 5
        assert answers[3][1]["step"] == 3
        assert run(commands(README)[-1], server.url) == answers[3]
        server.kill()
        server.start()
        assert run(commands(README)[-1], server.url) == answers[3]


def test_every_example_of_the_api_runs(tmp_path: Path) -> None:
    """In order, each with success; and every operation has one."""
    with Server(tmp_path, ONWARD_SECRET=SECRET, ONWARD_HISTORY="100") as server:
        answers = [run(command, server.url, tmp_path) for command in commands(API)]
    statuses = [status for status, _ in answers]
    assert set(statuses) <= {200, 201, 204}, statuses
    streams = [told for command, (_, told) in zip(commands(API), answers, strict=True) if "/generate" in command]
    assert [told[-1]["reason"] for told in streams] == ["horizon"] * len(streams)
    for operation in OPERATIONS:
        path = operation.path.replace("{model}", "pulse").replace("{session_id}", "ward-3")
        if operation.status == 101:
            assert path in API
        elif path != "/":
            assert any(re.search(rf"{HOME}{re.escape(path)}(?![\w/])", command) for command in commands(API)), path


def test_the_banner_shows_requests_that_run(tmp_path: Path) -> None:
    """What `make serve` prints to try is right, for whatever models are served."""
    with Server(tmp_path) as server:
        printed = "".join(server.log)
        shown = [line.strip() for line in printed.splitlines() if line.strip().startswith("curl")]
        assert len(shown) == 3
        assert [run(command, server.url)[0] for command in shown] == [201, 200, 200]
    assert requests("127.0.0.1:8000", {}) == []


def test_every_setting_is_documented() -> None:
    """With its name, its default and its meaning, in one table."""
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
    """Each type, with its status."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", (ROOT / "docs/problems.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((kind.name, str(kind.status)) for kind in ALL)


@pytest.mark.parametrize("model", ["pulse", "weather"])
def test_the_readmes_figures_are_the_bundles(model: str) -> None:
    """The table of errors says what the manifests say, which `onward train` printed."""
    metrics = json.loads((ZOO / model / "1/manifest.json").read_text())["metrics"]
    for target, table in metrics["targets"].items():
        figures = [f"{table[name]['mae']:.4g}" for name in ("model", "last_value", "seasonal_naive")]
        row = rf"^\| {model} \| {target}[^|]* \| " + r" \| ".join(map(re.escape, figures)) + r" \|$"
        assert re.search(row, README, re.MULTILINE), row


def test_links_lead_somewhere() -> None:
    """Every relative link of every document names a file that is there."""
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
