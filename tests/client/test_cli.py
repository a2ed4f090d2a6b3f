"""The commands that talk to a service, against a real one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result

import onward
from onward.__main__ import SECTIONS, SERVICE_COMMANDS, main
from onward.client.cli import common
from onward.client.loadtest.loadtest import SessionRecord, replay
from onward.service import settings
from tests.e2e.server import Server
from tests.helpers.reference_loop import ROOT, ZOO, BareLoop, pulse, weather

PULSE = str(ZOO / "pulse/1")
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def client(server: Server) -> Iterator[onward.Client]:
    with onward.Client(server.url) as connected:
        yield connected


def run(server: Server, *arguments: str, **options: Any) -> Result:
    """The command, which must succeed."""
    done = CliRunner().invoke(main, [*arguments], env={"ONWARD_URL": server.url}, **options)
    assert done.exit_code == 0, done.output
    return done


def json_output(server: Server, *arguments: str, **options: Any) -> Any:
    """Returns the JSON output of the command."""
    return json.loads(run(server, *arguments, "--json", **options).stdout)


def test_every_command_is_listed_where_it_belongs() -> None:
    """Every command has a line of help, and no command is listed twice."""
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted({*main.commands, *SERVICE_COMMANDS})
    help_text = CliRunner().invoke(main, ["--help"]).stdout
    for section in SECTIONS:
        assert f"\n{section}:\n" in help_text
    for name in listed:
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_models_and_sessions_are_listed(server: Server, client: onward.Client) -> None:
    assert [entry["name"] for entry in json_output(server, "models")] == ["characters", "pulse", "weather"]
    assert "A heart's pulse wave" in run(server, "models").stdout
    for name in ("cli-a", "cli-b", "other"):
        client.session("pulse", name, inputs=[515.0])
    assert [entry["session_id"] for entry in json_output(server, "sessions", "--prefix", "cli-")] == ["cli-a", "cli-b"]
    lines = run(server, "sessions", "--model", "pulse", "--prefix", "cli-").stdout.splitlines()
    assert lines[0].split()[:4] == ["session", "model", "version", "step"]
    assert [line.split()[:4] for line in lines[1:]] == [["cli-a", "pulse", "1", "1"], ["cli-b", "pulse", "1", "1"]]
    declined = CliRunner().invoke(
        main, ["sessions", "--delete", "--prefix", "cli-"], env={"ONWARD_URL": server.url}, input="n\n"
    )
    assert declined.exit_code == 1
    assert json_output(server, "sessions", "--delete", "--yes", "--prefix", "cli-") == {"ended": 2}
    assert [entry.session_id for entry in client.sessions("pulse")] == ["other"]
    client.delete_sessions(prefix="")


@pytest.mark.parametrize("form", ["csv", "ndjson", "named", "-"])
def test_predict_reads_each_kind_of_file(server: Server, tmp_path: Path, form: str) -> None:
    """CSV with columns that the model does not take, lines of JSON, and stdin; the bits of a bare loop's."""
    rows, names = weather(4), ("precipitation", "temp_max", "temp_min", "wind")
    expected = BareLoop(ZOO / "weather/1").run(rows)
    lines = [json.dumps(row) for row in rows]
    if form == "csv":
        lines = [",".join(("day", *names)), *(",".join(("x", *map(str, row))) for row in rows)]
    elif form == "named":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    file = tmp_path / ("steps.csv" if form == "csv" else "steps.ndjson")
    file.write_text("\n".join(lines) + "\n")
    arguments = ("predict", "-" if form == "-" else str(file), "--model", "weather", "--horizon", "2")
    answer = json_output(server, *arguments, input=file.read_text() if form == "-" else None)
    assert np.array(answer["predictions"]["point"], np.float32).tobytes() == expected["point"].tobytes()
    assert len(answer["forecast"]["point"]) == 2
    done = run(server, *arguments[:-2], input=file.read_text() if form == "-" else None)
    assert len(done.stdout.splitlines()) == 5
    note = "no column date: the rows are in order of time as they are"
    assert (note in done.stderr) == (form in ("csv", "named"))


def test_a_text_is_predicted_by_its_characters(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text('The "assert" state')
    assert json_output(server, "predict", str(file), "--model", "characters")["predictions"]["top"][-1][0] == "m"
    last = run(server, "predict", str(file), "--model", "characters").stdout.splitlines()[-1].split()
    assert last[:2] == ["18", "m"]


def test_a_forecast_of_a_session(server: Server, client: onward.Client) -> None:
    with client.session("pulse", inputs=pulse(3)) as session:
        answer = json_output(server, "forecast", "--session", session.id, "--horizon", "4")
        ahead = session.forecast(4)
        assert answer["step"] == 3
        assert np.array(answer["forecast"]["mean"], np.float32).tobytes() == ahead["mean"].tobytes()
        lines = run(server, "forecast", "--session", session.id, "--horizon", "4").stdout.splitlines()
        assert lines[0].split() == ["ahead", "mean"]
        assert lines[1].split() == ["1", f"{ahead['mean'][0, 0]:.5g}"]


def test_numbers_are_written_so_that_neighbours_differ(capsys: pytest.CaptureFixture[str]) -> None:
    """A column has five digits, or more where its numbers are close to each other; so has a line by itself."""
    common.echo_table(["mean", "std"], [(1.7e9 + row / 4, np.float32(0.123456 + row)) for row in range(3)])
    common.echo_table(["mean", "std"], [(np.float64(1.7e9 + row / 4), np.float64(np.float32(0.1))) for row in range(3)])
    common.echo_line(
        (7, np.float64(1_700_000_001.288), np.float64(np.float32(0.1)), np.float32(514.26953), 0.123456789)
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["1.7e+09", "0.12346"], "a number that is not of a model has five digits"
    assert [line[0] for line in lines[5:8]] == ["1700000000", "1700000000.25", "1700000000.5"]
    assert [line[1] for line in lines[5:8]] == ["0.1"] * 3
    assert lines[8] == ["7", "1700000001.288", "0.1", "514.27", "0.12346"]


def test_load_counts_and_checks(server: Server, client: onward.Client) -> None:
    """Steps, forecasts and creations, each answer replayed in process; every session is ended."""
    arguments = (
        "load",
        "--model",
        "pulse",
        "--sessions",
        "3",
        "--seconds",
        "1",
        "--mix",
        "steps=6,forecasts=2,creates=1",
    )
    answer = json_output(server, *arguments, "--bundle", PULSE)
    assert (answer["wrong"], answer["errors"]) == ([], {})
    counts = {row["kind"]: row["count"] for row in answer["requests"]}
    assert counts["steps"] == answer["checked"] > 0
    assert set(counts) == {"steps", "forecasts", "creates"}
    assert all(row["p50"] <= row["p90"] <= row["p99"] <= row["max"] for row in answer["requests"])
    assert answer["unsent"] == 0
    paced = run(server, *arguments[:5], "--seconds", "1", "--rate", "20").stdout
    assert "0 wrong" in paced
    assert not list(client.sessions())


def test_load_says_what_it_did_not_send(server: Server) -> None:
    """A session cannot keep up with the rate: each request that was due is counted as sent or as unsent."""
    arguments = ("load", "--model", "pulse", "--sessions", "1", "--seconds", "0.5", "--rate", "100001")
    answer = json_output(server, *arguments)
    assert answer["unsent"] > 0
    assert answer["unsent"] + sum(row["count"] for row in answer["requests"]) == 50_001
    assert " requests were due but not sent\n" in run(server, *arguments).stdout


def test_load_calls_a_wrong_answer_wrong(server: Server, tmp_path: Path) -> None:
    """A session that another client steps is not where its own steps end: status 1, and the session is named."""
    with Server(tmp_path) as lone:
        process = subprocess.Popen(
            [sys.executable, "-m", "onward", "load", "--url", lone.url, "--model", "pulse", "--seconds", "3"],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with onward.Client(lone.url) as client:
            while not (found := list(client.sessions())):
                pass
            client.attach(found[0].session_id).step(500.0)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 1, out + error
    assert found[0].session_id in error
    assert " 0 wrong" not in out


def test_a_replay_wants_no_accuracy_of_a_service_that_does_not_tell_it() -> None:
    session, record = onward.load(PULSE, accuracy=False).session(), SessionRecord("s", sent=pulse(25))
    record.predictions = [session.step(row) for row in record.sent]
    assert {entry.error for entry in record.predictions} == {None}
    assert replay(onward.load(PULSE), record) is None


def test_a_replay_finds_a_flipped_bit() -> None:
    """The replay compares a step's prediction, the scores of its input, and forecasts."""
    local = onward.load(PULSE)
    session = local.session()
    record = SessionRecord("s", sent=pulse(25))
    record.predictions = [session.step(row) for row in record.sent]
    record.forecasts = [session.forecast(3)]
    assert replay(local, record) is None
    right = record.predictions[22]
    assert right.error is not None
    assert right.anomaly is not None
    for wrong in (
        replace(right, arrays={**right, "mean": np.nextafter(right["mean"], np.float32(np.inf))}),
        replace(right, surprise=(right.surprise or 0) * 1.001),
        replace(right, error=np.nextafter(right.error, np.float32(np.inf))),
        replace(right, anomaly=right.anomaly / 2),
        replace(right, anomaly=None),
    ):
        record.predictions[22] = wrong
        assert "step 23" in (replay(local, record) or "")
    record.predictions[22] = right
    record.forecasts.append(session.forecast(3))
    assert replay(local, record) is None
    for entry in record.forecasts:
        mean = entry["mean"].copy()
        entry["mean"][1] += 1
        assert "forecast at step 25" in (replay(local, record) or "")
        entry["mean"][:] = mean


def test_how_commands_end(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 refused, with the message on stderr; 2 usage; 3 no service."""
    monkeypatch.setattr(common, "RETRY_DEADLINE_S", 0.2)
    (tmp_path / "bad.csv").write_text("ppg\n1\nmany\n")
    (tmp_path / "bad.ndjson").write_text("[1]\n[\n")
    (tmp_path / "steps.dat").write_text("1\n")
    newer = shutil.copytree(PULSE, tmp_path / "pulse/2")
    manifest = newer / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    for status, message, arguments in (
        (1, "'nobody' does not exist", ["forecast", "--session", "nobody", "--horizon", "3"]),
        (1, "[unknown-model]", ["predict", str(tmp_path / "bad.csv"), "--model", "nothing"]),
        (
            1,
            "row 2, column ppg: 'many' is not a number",
            ["predict", str(tmp_path / "bad.csv"), "--model", "pulse", "--series", "a"],
        ),
        (1, "row 2: not JSON", ["predict", str(tmp_path / "bad.ndjson"), "--model", "pulse"]),
        (
            1,
            "no column precipitation, temp_max, temp_min, wind, date; it has ppg",
            ["predict", str(tmp_path / "bad.csv"), "--model", "weather"],
        ),
        (1, "or name its format with --format", ["predict", str(tmp_path / "steps.dat"), "--model", "pulse"]),
        (2, "--prefix '' means all", ["sessions", "--delete"]),
        (2, "expected weights", ["load", "--model", "pulse", "--mix", "many"]),
        (
            2,
            "this bundle is pulse 1; the service's sessions use weather 1",
            ["load", "--model", "weather", "--bundle", PULSE],
        ),
        (
            2,
            "this bundle is pulse 2; the service's sessions use pulse 1",
            ["load", "--model", "pulse", "--bundle", str(newer)],
        ),
        (2, "No such option", ["models", "--nothing"]),
        (2, "'127.0.0.1:8000' is not the address of a service", ["models", "--url", "127.0.0.1:8000"]),
        (3, "start a service with `onward serve`", ["models", "--url", "http://127.0.0.1:1"]),
    ):
        done = CliRunner().invoke(main, arguments, env={"ONWARD_URL": server.url})
        assert (done.exit_code, done.stdout) == (status, ""), arguments
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_key_that_cannot_be_sent_is_not_told(server: Server) -> None:
    done = CliRunner().invoke(main, ["models"], env={"ONWARD_URL": server.url, "ONWARD_API_KEY": "a-secret\nkey"})
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the API key" in done.stderr
    assert "a-secret" not in done.stderr


def test_the_command_as_people_run_it(server: Server) -> None:
    """A process of its own, with the address in its environment, which a service may have beside it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ONWARD_URL": server.url, "ONWARD_API_KEY": "a-secret-key"}
    command = [sys.executable, "-m", "onward", "models"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "pulse" in done.stdout
    settings.read({"ONWARD_URL": server.url, "ONWARD_API_KEY": "a-secret-key"})


def test_shells_complete_commands_that_are_not_loaded_yet() -> None:
    shell = BashComplete(main, {}, "onward", "_ONWARD_COMPLETE")
    assert [item.value for item in shell.get_completions([], "fore")] == ["forecast"]
    assert "--horizon" in [item.value for item in shell.get_completions(["forecast"], "--h")]


COMMANDS_THAT_ASK = {
    "models": [],
    "sessions": [],
    "predict": ["--model", "pulse", "-"],
    "stream": ["--model", "pulse", "-"],
    "forecast": ["--session", "s", "--horizon", "1"],
    "generate": ["--session", "s", "--horizon", "1"],
    "load": ["--model", "pulse", "--seconds", "1"],
}


def test_no_command_that_asks_is_without_a_test() -> None:
    assert COMMANDS_THAT_ASK.keys() == SERVICE_COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS_THAT_ASK)
def test_a_command_without_a_service_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the address and both ways out; the status is 3, and there is no traceback."""
    monkeypatch.setattr(common, "RETRY_DEADLINE_S", 0.2)
    done = CliRunner().invoke(main, [name, *COMMANDS_THAT_ASK[name]], input="500\n", env={"ONWARD_URL": NOWHERE})
    assert (done.exit_code, done.stdout) == (3, ""), done.output
    assert done.stderr.startswith(f"onward: {NOWHERE}: ")
    assert "start a service with `onward serve`, or name its address with --url or ONWARD_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_arguments_it_says_how_to_begin() -> None:
    done = CliRunner().invoke(main, [])
    assert "`onward serve`" in done.output
    assert "`onward models` in a second terminal" in done.output
