"""A file with series, a clock change, a gap, missing cells and a calendar gives the same predictions on every way."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import onward
from onward.__main__ import main
from onward.model.repository import open_bundle
from onward.training.data import datasets
from onward.training.evaluation import evaluate_bundle, rollout
from tests.e2e.server import Server
from tests.helpers.reference_loop import BareLoop, Steps

pytestmark = pytest.mark.train
BERLIN = ZoneInfo("Europe/Berlin")
HOURS, GAP = 400, range(300, 303)
CONFIG = """
name = "grid"
[data]
path = "grid.txt"
targets = ["load"]
features = ["load", "temp"]
missing = ["load", "temp"]
series = "site"
time = ["day", "hour"]
time_format = "%d.%m.%Y %H:%M"
time_zone = "Europe/Berlin"
calendar = ["day", "week"]
decimal = ","
missing_values = ["?"]
gaps = "missing"
[model]
cell = "gru"
units = 4
head = "gaussian"
[train]
epochs = 1
window = 30
batch = 4
[output]
repository = "models"
"""


@dataclass(frozen=True, slots=True)
class Case:
    """The trained bundle, its file, and the outputs of a plain loop over ONNX Runtime by series."""

    folder: Path
    expected: dict[str, Steps]

    @property
    def file(self) -> str:
        return str(self.folder / "grid.txt")

    @property
    def bundle(self) -> Path:
        return self.folder / "models/grid/1"


def write_table(file: Path) -> None:
    """Writes two sites hour by hour through the end of summer time, separated by tabs, with decimal commas."""
    begin, draw = datetime(2023, 10, 20, tzinfo=UTC), np.random.default_rng(3)
    lines = ["site\tday\thour\ttemp\tload\tremark"]
    for hour in range(HOURS):
        clock = (begin + timedelta(hours=hour)).astimezone(BERLIN)
        for site, level in (("north", 20.0), ("south", 900.0)):
            if site == "south" and hour in GAP:
                continue
            load = level + 5 * math.sin(hour * math.pi / 12) + draw.normal()
            cells = [f"{value:.3f}".replace(".", ",") for value in (draw.normal(8, 3), load)]
            if draw.random() < 0.05:
                cells[int(draw.integers(2))] = "?"
            lines.append("\t".join([site, f"{clock:%d.%m.%Y}", f"{clock:%H:%M}", *cells, "x"]))
    file.write_text("\r\n".join(lines) + "\r\n\r\n", newline="", encoding="utf-8-sig")


def inputs_by_hand(file: Path) -> dict[str, list[list[float]]]:
    """Returns the inputs of each series, read without code of Onward: load, temp and the phases of the next hour."""
    rows = defaultdict[str, dict[datetime, list[float]]](dict)
    with file.open(encoding="utf-8-sig", newline="") as opened:
        for row in csv.DictReader(opened, delimiter="\t"):
            clock = datetime.strptime(f"{row['day']} {row['hour']}", "%d.%m.%Y %H:%M").replace(tzinfo=BERLIN)
            if clock.astimezone(UTC) in rows[row["site"]]:
                clock = clock.replace(fold=1)
            values = [math.nan if row[name] == "?" else float(row[name].replace(",", ".")) for name in ("load", "temp")]
            rows[row["site"]][clock.astimezone(UTC)] = values
    series = {}
    for site, by_time in rows.items():
        first, last = min(by_time), max(by_time)
        times = [first + timedelta(hours=hour) for hour in range(round((last - first) / timedelta(hours=1)) + 1)]
        assert len(times) == HOURS
        series[site] = [
            [*by_time.get(time, [math.nan] * 2), *phases((time + timedelta(hours=1)).astimezone(BERLIN))]
            for time in times
        ]
    return series


def phases(clock: datetime) -> list[float]:
    turns = [clock.hour / 24, (clock.isoweekday() - 1 + clock.hour / 24) / 7]
    return [wave(2 * math.pi * turn) for turn in turns for wave in (math.sin, math.cos)]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("grid")
    write_table(folder / "grid.txt")
    (folder / "grid.toml").write_text(CONFIG)
    done = CliRunner().invoke(main, ["train", str(folder / "grid.toml"), "--quiet"])
    assert done.exit_code == 0, done.output
    series = inputs_by_hand(folder / "grid.txt")
    assert all(math.isnan(value) for row in series["south"][GAP.start : GAP.stop] for value in row[:2])
    return Case(folder, {site: BareLoop(folder / "models/grid/1").run(rows) for site, rows in series.items()})


@pytest.fixture(scope="module")
def served(case: Case) -> Iterator[Server]:
    with Server(case.folder, ONWARD_MODELS=str(case.folder / "models")) as server:
        yield server


def command(server: Server | None, *arguments: str) -> list[dict[str, Any]]:
    """Returns the JSON lines of a command."""
    environment = {"ONWARD_URL": server.url if server else "http://127.0.0.1:1"}
    done = CliRunner().invoke(main, [*arguments, "--json"], env=environment)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_same(case: Case, site: str | None, outputs: Any, surprise: Any) -> None:
    """Asserts that predictions (steps, ...) and surprises have the bits of the plain loop."""
    assert site is not None
    expected = case.expected[site]
    for name in ("mean", "std"):
        assert bits(outputs[name]) == bits(expected[name]), (site, name)
    assert bits(surprise) == bits(expected["surprise"]), site


def bits(values: Any) -> bytes:
    array: NDArray[np.float32] = np.array(values, np.float32)
    return array.ravel().tobytes()


def test_the_measurement_of_the_training(case: Case) -> None:
    """The figures of `train` and `evaluate` are those of the plain loop on the held-out steps."""
    model, file = open_bundle(case.bundle), Path(case.file)
    settings = evaluate_bundle.data_settings(model.manifest, file, None)
    series = datasets.load(file, settings, (model.manifest.features, ()), model.input_dtype).series
    assert [item.name for item in series] == ["north", "south"]
    errors = []
    for item in series:
        outputs, _ = rollout.session(model, item.values)
        assert_same(case, item.name, outputs, outputs["surprise"])
        means = np.array(case.expected[item.name]["mean"][item.test_from - 1 : -1, 0], np.float64)
        errors.append(np.abs(item.values[item.test_from :, 0].astype(np.float64) - means))
    metrics: Any = evaluate_bundle.measure(model, file).metrics
    assert metrics == json.loads((case.bundle / "manifest.json").read_text())["metrics"]
    assert metrics["targets"]["load"]["model"]["mae"] == pytest.approx(np.nanmean(np.concatenate(errors)), rel=1e-12)


def test_predict(case: Case, served: Server) -> None:
    """`onward predict` of a service and of a bundle in this process."""
    for results in (
        command(served, "predict", case.file, "--model", "grid"),
        command(None, "predict", case.file, "--bundle", str(case.bundle)),
    ):
        assert [result["series"] for result in results] == ["north", "south"]
        for result in results:
            assert_same(case, result["series"], result["predictions"], result["surprise"])


def test_stream_over_a_websocket(case: Case, served: Server) -> None:
    """`onward stream` of the file, a session for each series."""
    lines = command(served, "stream", case.file, "--model", "grid")
    assert [line["series"] for line in lines] == ["north"] * HOURS + ["south"] * HOURS
    for site in case.expected:
        steps = [line for line in lines if line["series"] == site]
        outputs = {name: [step["predictions"][name] for step in steps] for name in ("mean", "std")}
        assert_same(case, site, outputs, [step["surprise"] for step in steps])


def test_sessions_of_python(case: Case, served: Server) -> None:
    """`onward.read_steps` for `onward.load`, for a client, and for lines of JSON over HTTP."""
    local = onward.load(case.bundle)
    with onward.Client(served.url) as client, served.client() as http:
        for item in onward.read_steps(case.file, local):
            mine = local.session().steps(item.steps)
            assert_same(case, item.name, mine, mine.surprise)
            with client.session("grid") as session:
                theirs = session.steps(item.steps)
                assert_same(case, item.name, theirs, theirs.surprise)
            lines = "".join(json.dumps(step) + "\n" for step in item.steps)
            response = http.post(
                f"/v1/models/grid/sessions/{item.name}/steps", content=lines,
                headers={"Content-Type": "application/x-ndjson"},
            )  # fmt: skip
            answers = [json.loads(line) for line in response.text.splitlines()]
            outputs = {name: [answer["predictions"][name] for answer in answers] for name in ("mean", "std")}
            assert_same(case, item.name, outputs, [answer["surprise"] for answer in answers])
        described = onward.read_steps(case.file, client.model("grid"))
    assert described == onward.read_steps(Path(case.file), local)
    (south,) = onward.read_steps(case.file, local, series="south")
    assert south == described[1]
