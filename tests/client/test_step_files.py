"""Files of steps in the commands and in Python: a session for each series, order, calendar, formats and refusals."""

import gzip
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import onward
from onward.__main__ import main
from onward.client.cli import common
from onward.client.step_files import StepFeed
from tests.e2e.server import Server
from tests.helpers.recorded_bundles import make_bundle
from tests.helpers.reference_loop import ROOT, ZOO

FEATURES = ("x", "time_day_sin", "time_day_cos")
DATA = {"series": "site", "time": "time", "calendar": ["day"]}
TIMES = [f"2024-01-0{1 + hour // 24}T{hour % 24:02}:00" for hour in range(30)]
VALUES = {"a/b": [500.0 + hour for hour in range(30)], "c": [-hour / 4 for hour in range(30)]}
Record = tuple[str, str, float]


def phases(time: str) -> list[float]:
    angle = 2 * math.pi * (int(time[11:13]) / 24)
    return [math.sin(angle), math.cos(angle)]


def records() -> list[Record]:
    """The rows of both series in turn, the latest first."""
    rows = [(site, time, x) for site, values in VALUES.items() for time, x in zip(TIMES, values, strict=True)]
    return sorted(rows, key=lambda row: (row[1], row[0]), reverse=True)


def table(rows: list[Record], header: str = "site;time;x;remark") -> str:
    return "\n".join([header, *(f"{site};{time};{x};-" for site, time, x in rows)]) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `tiny`, which learnt from a table with series and a calendar."""
    folder = tmp_path_factory.mktemp("files")
    make_bundle(folder / "models", features=FEATURES, targets=("x",), cell="gru", units=4)
    manifest = folder / "models/tiny/1/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"data": DATA}))
    (folder / "table.csv").write_text(table(records()))
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Server]:
    with Server(folder, ONWARD_MODELS=str(folder / "models")) as server:
        yield server


@pytest.fixture(scope="module")
def local(folder: Path) -> onward.LocalModel:
    return onward.load(folder / "models/tiny/1")


@pytest.fixture(scope="module")
def expected(local: onward.LocalModel) -> dict[str, onward.Predictions]:
    """The predictions of each series, by steps that are made by hand."""
    steps = {site: [[x, *phases(time)] for time, x in zip(TIMES, xs, strict=True)] for site, xs in VALUES.items()}
    return {site: local.session().steps(rows) for site, rows in steps.items()}


def invoke(server: Server, *arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(main, [*arguments], env={"ONWARD_URL": server.url}, **options)


def json_lines(server: Server, *arguments: str, **options: Any) -> list[dict[str, Any]]:
    done = invoke(server, *arguments, "--json", **options)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_steps(lines: list[dict[str, Any]], expected: onward.Predictions) -> None:
    """Asserts that lines of a stream have the bits of the predictions."""
    assert [line["step"] for line in lines] == list(range(1, len(expected["mean"]) + 1))
    means = np.array([line["predictions"]["mean"] for line in lines], np.float32)
    assert means.tobytes() == expected["mean"].tobytes()


def test_series_are_predicted_by_themselves(
    folder: Path, served: Server, expected: dict[str, onward.Predictions]
) -> None:
    """Rows of several series, the latest first: each is ordered, has its own state, and is named in the output."""
    file = str(folder / "table.csv")
    for arguments in (["--model", "tiny"], ["--bundle", str(folder / "models/tiny/1")]):
        results = {line["series"]: line for line in json_lines(served, "predict", file, *arguments)}
        assert list(results) == ["c", "a/b"]
        for site, result in results.items():
            means = np.array(result["predictions"]["mean"], np.float32)
            assert means.tobytes() == expected[site]["mean"].tobytes()
    chosen = invoke(served, "predict", file, "--model", "tiny", "--series", "a/b")
    lines = chosen.stdout.splitlines()
    assert lines[0].split()[:3] == ["series", "step", "mean"]
    assert [line.split()[:2] for line in lines[1:]] == [["a/b", str(step)] for step in range(1, 31)]
    assert " rows sorted by time: row 3 (series c" in chosen.stderr
    absent = invoke(served, "predict", file, "--model", "tiny", "--series", "b")
    assert (absent.exit_code, absent.stdout) == (1, "")
    assert absent.stderr.endswith("table.csv: no series b; it has c, a/b\n")


def test_a_stream_has_a_session_for_each_series(
    folder: Path, served: Server, expected: dict[str, onward.Predictions]
) -> None:
    """The sessions of a file and of a live stream are named after the option and the series, and are continued."""
    ordered = sorted(records(), key=lambda row: row[1])
    file = folder / "beginning.csv"
    file.write_text(table(ordered[:20]))
    options = ("--model", "tiny", "--session", "plant")
    lines = json_lines(served, "stream", str(file), *options)
    done = invoke(served, "stream", "-", *options, "--json", input=table(ordered[20:]))
    assert done.exit_code == 0, done.output
    assert set(done.stderr.splitlines()) == {
        "onward: series a/b: session plant:a~2Fb",
        "onward: series c: session plant:c",
    }
    live = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["series"] for line in live] == [site for site, _, _ in ordered[20:]]
    for site, predictions in expected.items():
        assert_steps([line for line in [*lines, *live] if line["series"] == site], predictions)
    with onward.Client(served.url) as client:
        assert [info.session_id for info in client.sessions()] == ["plant:a~2Fb", "plant:c"]
        client.delete_sessions(prefix="plant")
    begun = json_lines(served, "stream", str(file), *options, "--series", "c")
    assert_steps(begun, onward.Predictions({"mean": expected["c"]["mean"][:10]}))
    continued = json_lines(served, "stream", "-", "--session", "plant", "--series", "c", input=table(ordered[20:]))
    assert_steps([*begun, *continued], expected["c"])
    refused = invoke(served, "stream", "-", "--session", "plant", input=table(ordered[20:]))
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "name one by --series, or a session for each by --model" in refused.stderr
    with onward.Client(served.url) as client:
        assert client.delete_sessions(prefix="plant") == 1


def test_a_table_without_its_column_of_series_is_one_series_only_if_named(
    folder: Path, served: Server, expected: dict[str, onward.Predictions]
) -> None:
    """A table is refused without a name, since all rows would go through one state."""
    file = folder / "one.csv"
    rows = [row for row in records() if row[0] == "c"]
    file.write_text(table(rows, "machine;time;x;remark"))
    refused = invoke(served, "predict", str(file), "--model", "tiny")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "no column site; it has machine, time, x, remark; it tells series apart" in refused.stderr
    (named,) = json_lines(served, "predict", str(file), "--model", "tiny", "--series", "mine")
    assert named["series"] == "mine"
    assert np.array(named["predictions"]["mean"], np.float32).tobytes() == expected["c"]["mean"].tobytes()
    with onward.Client(served.url) as client:
        (series,) = onward.read_steps(file, client.model("tiny"), series="mine")
    assert (series.name, len(series.steps)) == ("mine", 30)


def test_future_covariates_are_read_as_the_table_is(folder: Path, served: Server, local: onward.LocalModel) -> None:
    """Features of the calendar are computed from the times of the file; one series is chosen."""
    file = folder / "future.csv"
    file.write_text("site;time\n" + "".join(f"{site};{time}\n" for time in TIMES[3:9] for site in VALUES))
    steps = [[x, *phases(time)] for time, x in zip(TIMES[:3], VALUES["c"][:3], strict=True)]
    ahead = local.session(inputs=steps).forecast(6, future=[phases(time) for time in TIMES[3:9]])
    with onward.Client(served.url) as client, client.session("tiny", inputs=steps) as session:
        arguments = ("forecast", "--session", session.id, "--horizon", "6", "--future", str(file))
        refused = invoke(served, *arguments)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "has 2 series (a/b, c...): name that of the session by --series" in refused.stderr
        (answer,) = json_lines(served, *arguments, "--series", "c")
    assert np.array(answer["forecast"]["mean"], np.float32).tobytes() == ahead["mean"].tobytes()


def test_a_load_sends_each_session_one_series(folder: Path, served: Server) -> None:
    """The answers are those of the bundle, and the steps of no session mix series."""
    arguments = ("load", "--model", "tiny", "--inputs", str(folder / "table.csv"), "--sessions", "2", "--seconds", "1")
    (report,) = json_lines(served, *arguments, "--bundle", str(folder / "models/tiny/1"))
    assert (report["wrong"], report["errors"]) == ([], {})
    assert report["checked"] > 0


@pytest.mark.parametrize("form", ["csv", "csv.gz", "TSV", "ndjson", "parquet", "stream"])
def test_every_format_has_the_same_steps(tmp_path: Path, local: onward.LocalModel, form: str) -> None:
    """Text, compressed text, lines of JSON, typed files and binary streams."""
    import polars as pl  # noqa: PLC0415  (an extra)

    rows = records()
    file, text = tmp_path / f"rows.{form}", table(rows)
    if form == "ndjson":
        file.write_text("".join(json.dumps(dict(zip(("site", "time", "x"), row, strict=True))) + "\n" for row in rows))
    elif form == "parquet":
        pl.DataFrame(rows, ["site", "time", "x"], orient="row").write_parquet(file)
    elif form == "csv.gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_bytes((text.replace(";", "\t") if form == "TSV" else text).encode())
    found = onward.read_steps(io.BytesIO(text.encode()) if form == "stream" else file, local)
    assert [series.name for series in found] == ["c", "a/b"]
    for series in found:
        named = [
            dict(zip(FEATURES, [x, *phases(time)], strict=True))
            for time, x in zip(TIMES, VALUES[str(series.name)], strict=True)
        ]
        assert series.steps == named


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_a_live_stream_is_the_same_in_any_pieces(local: onward.LocalModel, at_once: int) -> None:
    """Rows of tables, lines of JSON and characters are complete once their last byte has come."""
    pulse, characters = (onward.load(ZOO / name / "1") for name in ("pulse", "characters"))
    ordered = sorted(records(), key=lambda row: row[1])
    steps = [(site, dict(zip(FEATURES, [x, *phases(time)], strict=True))) for site, time, x in ordered]
    for model, text, steps_of_text in (
        (local, table(ordered), steps),
        (pulse, "[515]\n\n514.5\n513", [(None, [515]), (None, 514.5), (None, 513)]),
        (pulse, "sample,recording,ppg\n0,a,515\n1,b,514", [("a", {"ppg": 515.0}), ("b", {"ppg": 514.0})]),
        (characters, "gr\u00fcn\n", [(None, character) for character in "gr\u00fcn\n"]),
    ):
        feed, data = StepFeed("stream", model, single=False), text.encode()
        found: list[Any] = []
        for start in range(0, len(data), at_once):
            found += feed.feed(data[start : start + at_once])
        found += feed.feed(b"", final=True)
        assert found == steps_of_text


def test_a_table_lacks_the_time_only_if_nothing_is_computed_from_it(local: onward.LocalModel, tmp_path: Path) -> None:
    """A model without a calendar takes the rows in their order; one with a calendar needs the time, or the phases."""
    weather = onward.load(ZOO / "weather/1")
    rows = "precipitation,temp_max,temp_min,wind\n0,12.8,5,4.7\n10.9,10.6,2.8,4.5\n"
    (series,) = onward.read_steps(io.BytesIO(rows.encode()), weather)
    assert [step["temp_max"] for step in series.steps] == [12.8, 10.6]  # type: ignore[index]
    with pytest.raises(onward.DataError, match="no column time; it has site, x"):
        onward.read_steps(io.BytesIO(b"site,x\na,1\n"), local)
    phased = io.BytesIO(b"site,x,time_day_sin,time_day_cos\na,1,0,1\n")
    assert onward.read_steps(phased, local)[0].steps == [{"x": 1.0, "time_day_sin": 0.0, "time_day_cos": 1.0}]


def test_a_table_without_polars_names_the_package(folder: Path) -> None:
    """Lines of JSON and texts need no polars; a table says how it is installed, in Python and in the commands."""
    lists = folder / "lists.ndjson"
    lists.write_text("[1, 0, 1]\n[2, 0, 1]\n")
    code = (
        "import sys; sys.modules['polars'] = None; import onward; from onward.__main__ import main\n"
        f"local = onward.load({str(folder / 'models/tiny/1')!r})\n"
        f"print(onward.read_steps({str(lists)!r}, local))\n"
        f"main(['predict', {str(folder / 'table.csv')!r}, '--bundle', {str(folder / 'models/tiny/1')!r}])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 1
    assert done.stdout == "[SeriesSteps(name=None, steps=[[1, 0, 1], [2, 0, 1]])]\n"
    assert done.stderr == "onward: a table is read by polars: pip install 'onward[tables]'\n"


def test_values_are_written_as_they_are_and_not_as_those_of_numpy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A blank, a line end and a category of a model are shown without the name of a type of numpy."""
    values = [np.str_(" "), np.str_("\n"), np.str_("a"), np.int64(3), np.bool_(True)]
    common.echo_line(values)
    common.echo_table(["value"], [(value,) for value in values])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "' '\t'\\n'\ta\t3\tTrue"
    assert [line.strip() for line in lines[1:]] == ["value", "' '", "'\\n'", "a", "3", "True"]
    text = tmp_path / "text.txt"
    text.write_text('The "assert" statement is a\nThe "assert" ')
    done = CliRunner().invoke(main, ["predict", str(text), "--bundle", str(ZOO / "characters/1")])
    assert done.exit_code == 0, done.output
    assert "' '" in done.stdout
    assert "np." not in done.stdout
