"""Commands give a model the plan of the next row of a file, of a live stream and of future covariates."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onward
from tests.e2e.server import Server
from tests.helpers.recorded_bundles import make_bundle

PLAN, Y = [1.0, 2.0, 4.0, 8.0, 16.0], [3.0, 5.0, 9.0, 17.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `tiny`, whose plan has a lead, and a file with a future row."""
    folder = tmp_path_factory.mktemp("leads")
    make_bundle(folder / "models", features=("y", "plan"), targets=("y",), cell="gru", units=4)
    file = folder / "models/tiny/1/manifest.json"
    manifest = json.loads(file.read_text())
    manifest["features"][1] |= {"role": "known", "lead": 1}
    file.write_text(json.dumps(manifest | {"data": {}}))
    rows = [f"{plan},{y}" for plan, y in zip(PLAN, [*Y, ""], strict=True)]
    (folder / "table.csv").write_text("\n".join(["plan,y", *rows]) + "\n")
    (folder / "short.csv").write_text("\n".join(["plan,y", *rows[:4]]) + "\n")
    (folder / "future.csv").write_text("plan\n16\n32\n64\n")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Server]:
    with Server(folder, ONWARD_MODELS=str(folder / "models")) as server:
        yield server


def command(served: Server, *arguments: str, stdin: str = "") -> tuple[list[dict[str, Any]], str]:
    """Returns the lines of JSON of a command, and what it writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "onward", *arguments, "--url", served.url, "--json"],
        capture_output=True, text=True, check=True, input=stdin,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_commands_give_the_plan_of_the_next_row(folder: Path, served: Server) -> None:
    """A file, a live stream and a forecast have the predictions of steps by hand with the next plan."""
    session = onward.load(folder / "models/tiny/1").session()
    expected = session.steps([[y, plan] for y, plan in zip(Y, PLAN[1:], strict=True)])["mean"]
    (predicted,), notes = command(served, "predict", str(folder / "table.csv"), "--model", "tiny")
    assert notes == ""
    np.testing.assert_array_equal(np.array(predicted["predictions"]["mean"], np.float32), expected)
    text = (folder / "table.csv").read_text()
    streamed, notes = command(served, "stream", "-", "--model", "tiny", "--session", "s", stdin=text)
    means = np.array([step["predictions"]["mean"] for step in streamed], np.float32)
    np.testing.assert_array_equal(means, expected)
    ahead, _ = command(served, "forecast", "--session", "s", "--horizon", "3", "--future", str(folder / "future.csv"))
    by_hand = session.forecast(3, future=[[32.0], [64.0]])["mean"]
    np.testing.assert_array_equal(np.array(ahead[0]["forecast"]["mean"], np.float32), by_hand)


def test_a_last_row_without_a_next_plan_is_no_step(folder: Path, served: Server) -> None:
    """The commands say so on stderr, with the way out."""
    (predicted,), notes = command(served, "predict", str(folder / "short.csv"), "--model", "tiny")
    assert predicted["step"] == 3
    way_out = "the last row is no step: a step has the plan of the next row; for a step of it, append a row with plan"
    assert way_out in notes
    text = (folder / "short.csv").read_text()
    streamed, notes = command(served, "stream", "-", "--model", "tiny", stdin=text)
    assert len(streamed) == 3
    assert notes.count(way_out) == 1


def test_the_service_says_which_inputs_have_a_lead(served: Server) -> None:
    """The description of a model has the lead of each input."""
    with onward.Client(served.url) as client:
        assert [(item["name"], item["lead"]) for item in client.model("tiny")["inputs"]] == [("y", 0), ("plan", 1)]
