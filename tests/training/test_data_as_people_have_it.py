"""Kinds of files that people have, each trained by the command, or refused with the setting under which it trains."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import onward
from onward.__main__ import main
from onward.model.repository import open_bundle
from onward.training import config, run
from tests.helpers.reference_loop import ROOT

MODEL = """
[model]
cell = "gru"
units = 4
[train]
epochs = 1
window = 20
batch = 4
[output]
repository = "zoo"
"""


def train(folder: Path, table: str, data: str, *options: str) -> Result:
    """Returns the result of `onward train` for the table and the lines of the section `data`."""
    (folder / "x.csv").write_text(table)
    (folder / "x.toml").write_text(f'name = "x"\n[data]\npath = "x.csv"\n{data}{MODEL}')
    return CliRunner().invoke(main, ["train", str(folder / "x.toml"), *options])


def bundle(folder: Path, version: int = 1) -> Any:
    return json.loads(open_bundle(folder / "zoo" / "x" / str(version)).manifest.model_dump_json())


def clock_times(steps: int, minutes: int) -> list[str]:
    start = datetime.fromisoformat("2024-10-26T12:00")
    return [str(start + timedelta(minutes=minutes * step)) for step in range(steps)]


def test_the_shortest_configuration_of_the_documents(tmp_path: Path) -> None:
    """The first configuration of docs/training.md is complete, and its summary is what it says."""
    text = (ROOT / "docs" / "training.md").read_text()
    (tmp_path / "heart.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    shutil.copy(ROOT / "examples/pulse/pulse.csv", tmp_path)
    settings = config.read(tmp_path / "heart.toml")
    assert (settings.name, settings.repository) == ("heart", tmp_path / "models")
    found = run.load_dataset(settings).summary
    assert found is not None
    assert f"$ onward train heart.toml\n{found.text()}heart 1: one step ahead on " in text


def test_readings_that_stand_for_missing_are_seen_before_they_are_learnt(tmp_path: Path) -> None:
    """Six readings of -9999 are a hint before the training, with --quiet too, and in the report; the bundle has it."""
    values = np.round(20 + 5 * np.sin(np.arange(400) / 10), 2)
    values[100:106] = -9999
    table = "time,x\n" + "".join(f"{t},{x}\n" for t, x in zip(clock_times(400, 10), values, strict=True))
    done = train(tmp_path, table, 'targets = ["x"]\ntime = "time"\n', "--quiet")
    assert done.exit_code == 0, done.output
    heading, hint = done.stderr.splitlines()
    assert heading == "data: x.csv"
    assert hint.startswith("  HINT: column x: 6 values lie apart from all others, up to ")
    assert "-9999 (rows 101, 102, 103 and more)" in hint
    assert hint.endswith("set data.missing_values = [-9999]")
    data = bundle(tmp_path)["provenance"]["data"]
    assert data["hints"] == [hint.removeprefix("  HINT: ")]
    assert data["facts"]["interval"] == "10 minutes"
    report = (tmp_path / "zoo/x/1/report.html").read_text()
    assert "6 values lie apart from all others" in report
    assert "<dt>interval</dt><dd>10 minutes</dd>" in report


def test_the_hour_that_occurs_twice_has_ways_out(tmp_path: Path) -> None:
    """Twelve repeated clock times are refused with number, guess and settings; under a setting the file trains."""
    times = clock_times(300, 5)
    again = times.index("2024-10-27 02:00:00")
    rows = [*times[: again + 12], *times[again:]]
    table = "time,x\n" + "".join(f"{t},{np.sin(step / 20):.4f}\n" for step, t in enumerate(rows))
    settings = 'targets = ["x"]\ntime = "time"\ncalendar = ["day"]\n'
    refused = train(tmp_path, table, settings)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(
        f"onward: {tmp_path}/x.csv: 12 rows have a time that an earlier row has: row {again + 13} (2024-10-27 02:00:00)"
    )
    assert (
        "the hour that occurs twice when clocks are set back: set data.time_zone, or data.duplicates" in refused.stderr
    )
    for version, policy in enumerate(("first", "last", "mean"), 1):
        done = train(tmp_path, table, f'{settings}duplicates = "{policy}"\n')
        assert done.exit_code == 0, done.output
        assert "repeated times  12 rows" in done.stderr
        assert bundle(tmp_path, version)["provenance"]["data"]["steps"] == 300
        assert bundle(tmp_path, version)["data"]["interval"] == 300


def test_gaps_are_told_and_filled(tmp_path: Path) -> None:
    """The summary names a gap and the setting that helps; under it the absent steps are inserted without values."""
    times = clock_times(300, 60)
    rows = [(t, step) for step, t in enumerate(times) if not 50 <= step < 53]
    table = "time,x\n" + "".join(f"{t},{np.sin(step / 4):.4f}\n" for t, step in rows)
    settings = 'targets = ["x"]\ntime = "time"\nmissing = ["x"]\n'
    ignored = train(tmp_path, table, settings)
    assert '1 gap of 3 rows together, ignored (data.gaps = "missing" inserts them without values)' in ignored.stderr
    filled = train(tmp_path, table, settings + 'gaps = "missing"\n')
    assert filled.exit_code == 0, filled.output
    assert [bundle(tmp_path, version)["provenance"]["data"]["steps"] for version in (1, 2)] == [297, 300]


def test_absurd_numbers_are_refused_in_training_and_in_service(tmp_path: Path) -> None:
    """`refuse_beyond` refuses a table with a spike; the bundle of the same table without it refuses the spike."""
    settings = 'targets = ["x"]\nrefuse_beyond = 20\n'
    values = [f"{20 + 5 * np.sin(step / 10):.3f}" for step in range(400)]
    spiked = [*values[:390], "1e9", *values[391:]]
    table, spiked_table = ("x\n" + "\n".join(rows) + "\n" for rows in (values, spiked))
    refused = train(tmp_path, spiked_table, settings)
    assert refused.exit_code == 1
    assert "x.csv: row 391, column x: 1000000000.0 is beyond the limits of this column, " in refused.stderr
    assert "data.missing_values" in refused.stderr
    done = train(tmp_path, table, settings)
    assert done.exit_code == 0, done.output
    low, high = bundle(tmp_path)["features"][0]["limits"]
    assert low < 15 < 25 < high
    assert f"limits  x {low:.6g} to {high:.6g}" in done.stderr
    session = onward.load(tmp_path / "zoo/x/1").session(inputs=[low, high])
    with pytest.raises(onward.InvalidRequest, match=r"inputs\[1\]\[0\]: 1000000000 \(x\) is beyond the limits"):
        session.steps([20.0, 1e9])
    assert session.step_count == 2
    (tmp_path / "later.csv").write_text(spiked_table)
    evaluated = CliRunner().invoke(main, ["evaluate", str(tmp_path / "zoo/x/1"), str(tmp_path / "later.csv")])
    assert evaluated.exit_code == 1
    assert "later.csv: row 391, column x: 1000000000.0 is beyond the limits of this column" in evaluated.stderr
