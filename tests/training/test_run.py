"""A complete training run, from a configuration to a bundle, and the commands of the command line."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onward.__main__ import main
from onward.model.manifest import Feature
from onward.model.repository import open_bundle
from onward.training import config
from onward.training.data.datasets import Dataset, Series, load
from onward.training.data.training_statistics import compute
from onward.training.evaluation import evaluation
from onward.training.run import proof_sample, train
from tests.helpers.random_bundles import make_bundle

ROOT = Path(__file__).parents[2]

CONFIG = """
name = "tide"
description = "two tides"
[data]
path = "tide.csv"
targets = ["level"]
features = ["wind", "level"]
series = "harbour"
time = "hour"
period = 12
[model]
cell = "gru"
units = 6
[train]
seed = 3
epochs = 3
window = 20
batch = 4
learning_rate = 0.02
[output]
repository = "models"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with `tide.toml` and `tide.csv`: two short series of a wave and its wind."""
    rng = np.random.default_rng(0)
    with (tmp_path / "tide.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["harbour", "hour", "wind", "level"])
        for harbour in ("north", "south"):
            for hour in range(150):
                wind = rng.standard_normal()
                rows.writerow([harbour, hour, round(wind, 3), round(3 * np.sin(hour * np.pi / 6) + wind / 9, 3)])
    (tmp_path / "tide.toml").write_text(CONFIG)
    return tmp_path


def onward(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "onward", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_command_trains_a_bundle(project: Path) -> None:
    """`onward train` publishes a bundle that opens, and prints its table; without a terminal it has no progress bar."""
    done = onward("train", "tide.toml", cwd=project)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "data: tide.csv",
        "  rows       300",
        "  series     2, of 150 rows each",
        "  separator  comma (',')",
        "  times      0 to 149",
        "  interval   1",
    ]
    model = open_bundle(project / "models" / "tide" / "1")
    assert model.manifest.data is not None
    assert model.manifest.data.interval == 1
    assert model.features == ("wind", "level")
    lines = done.stdout.splitlines()
    assert lines[0] == "tide 1: one step ahead on 44 held-out steps"
    assert [line.split("  ")[1] for line in lines[3:6]] == ["this model", "last value", "seasonal naive"]
    metrics: Any = model.manifest.metrics
    assert f"{metrics['targets']['level']['model']['mae']:.4g}" in lines[3]
    assert "bundle: models/tide/1" in lines
    assert "serve it: ONWARD_MODELS=models onward serve" in lines
    assert "report: models/tide/1/report.html" in lines
    assert metrics["targets"]["level"]["model"].keys() >= {"mase", "smape", "crps", "coverage_80"}
    assert f"<dd>{metrics['steps']}</dd>" in (project / "models/tide/1/report.html").read_text()
    again = onward("verify", "models/tide/1", cwd=project)
    assert (again.returncode, again.stdout) == (0, "tide 1: verified\n")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epochs", "epoch", "tide.toml: train.epoch: unknown key, did you mean epochs?"),
        (
            "period = 12",
            "period = 200",
            "tide.csv: 2 of 2 series are too short, because training, validation and test need",
        ),
        ('"tide.csv"', '"tied.csv"', "tied.csv: cannot be read: "),
    ],
)
def test_the_command_names_the_fault(old: str, new: str, says: str, project: Path) -> None:
    """A fault ends the command with status 1 and a single line that names it, and nothing is published."""
    (project / "tide.toml").write_text(CONFIG.replace(old, new))
    done = onward("train", "tide.toml", cwd=project)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"onward: {says}")
    assert done.stderr.count("\n") == 1
    assert not (project / "models").exists()


def test_must_beat_refuses_a_model_that_loses(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss is a warning and status 0; with --must-beat it is status 1, the same table, and nothing published."""
    (project / "tide.toml").write_text(CONFIG.replace("epochs = 3", "epochs = 1"))
    monkeypatch.chdir(project)
    refused = CliRunner().invoke(main, ["train", "--must-beat", "--quiet", "tide.toml"])
    assert refused.exit_code == 1
    assert (
        refused.stderr
        == "onward: the model does not beat the naive forecasts, so with --must-beat nothing is published\n"
    )
    assert not list((project / "models").iterdir())
    warned = CliRunner().invoke(main, ["train", "--quiet", "tide.toml"])
    assert warned.exit_code == 0
    assert "--resume would continue it" in warned.stderr  # a refused run can be resumed and published
    assert "WARNING: the model loses to a naive forecast: level by MAE against " in warned.stdout
    assert warned.stdout.startswith(refused.stdout.rstrip())
    assert [version.name for version in (project / "models" / "tide").iterdir()] == ["1"]


def test_a_good_model_passes_must_beat(project: Path) -> None:
    """A model that beats every naive forecast is published with --must-beat."""
    better = CONFIG.replace("epochs = 3", "epochs = 40").replace("period = 12\n", "").replace("units = 6", "units = 16")
    (project / "tide.toml").write_text(better)
    bundle, model = train(config.read(project / "tide.toml"), quiet=True, must_beat=True)
    assert not evaluation.unbeaten_baselines(dict(model.manifest.metrics))
    assert bundle.is_dir()


def leak(bundle: Path) -> None:
    """Makes rows of the graph depend on a millionth of the other rows' inputs, which shows in large batches only."""
    proto = onnx.load(str(bundle / "model.onnx"))
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == "mean":
                    names[i] = "own"
    for name, value in (("rows", np.array([1], np.int64)), ("millionth", np.array(1e-6, np.float32))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    proto.graph.node.extend(
        [
            onnx.helper.make_node("ReduceSum", ["inputs", "rows"], ["all"], keepdims=1),
            onnx.helper.make_node("Mul", ["all", "millionth"], ["little"]),
            onnx.helper.make_node("Add", ["own", "little"], ["mean"]),
        ]
    )
    (bundle / "model.onnx").write_bytes(proto.SerializeToString())
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["sha256"] = hashlib.sha256(proto.SerializeToString()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_verify_refuses_damaged_bundles(tmp_path: Path) -> None:
    """`onward verify` ends with status 0, or with status 1, the file and the reason, in any working folder."""
    make_bundle(tmp_path)
    good = onward("verify", "1", cwd=tmp_path / "tiny")
    assert (good.returncode, good.stdout, good.stderr) == (0, "tiny 1: verified\n", "")
    make_bundle(tmp_path, name="leaky")
    leak(tmp_path / "leaky" / "1")
    open_bundle(tmp_path / "leaky" / "1")  # its parity vectors do not find the fault
    leaky = onward("verify", "leaky/1", cwd=tmp_path)
    assert (leaky.returncode, leaky.stdout) == (1, "")
    assert leaky.stderr.startswith("onward: a batch of 7 rows against row 0 alone: output 'mean' differs by up to ")
    graph = tmp_path / "tiny" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    bad = onward("verify", "tiny/1", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("onward: tiny/1/model.onnx: checksum is ")
    absent = onward("verify", "tiny/2", cwd=tmp_path)
    assert absent.returncode == 1
    assert absent.stderr.startswith("onward: tiny/2/manifest.json: cannot be read: ")


def test_a_run_is_reproducible(project: Path) -> None:
    """The same data, configuration and seed give the same graph byte for byte; another seed does not."""
    settings = config.read(project / "tide.toml")
    first_bundle, first_model = train(settings, quiet=True)
    second_bundle, second_model = train(settings, quiet=True)
    assert (first_bundle.name, second_bundle.name) == ("1", "2")
    assert (first_bundle / "model.onnx").read_bytes() == (second_bundle / "model.onnx").read_bytes()
    assert first_model.manifest.metrics == second_model.manifest.metrics
    reseeded = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": 4})})
    assert train(reseeded, quiet=True)[1].digest != first_model.digest


def test_the_provenance_reproduces_the_run(project: Path) -> None:
    """The bundle has the configuration of its run, the hash of its data, and its metrics on the test part."""
    settings = config.read(project / "tide.toml")
    _, model = train(settings, quiet=True)
    provenance: Any = json.loads(model.manifest.model_dump_json())["provenance"]
    assert config.Config.model_validate(provenance["config"], strict=False) == settings.model_copy(
        update={"folder": Path()}
    )
    dataset = load(settings.data_file, settings.data)
    assert dataset.summary is not None
    assert provenance["data"] == {
        "facts": dataset.summary.facts(),
        "hints": [],
        "file": "tide.csv",
        "sha256": dataset.sha256,
        "series": 2,
        "steps": 300,
        "parts": {"train": 212, "validation": 44, "test": 44},
    }
    assert provenance["epochs"] == len(provenance["losses"]["train"]) == len(provenance["losses"]["validation"])
    assert provenance["losses"]["validation"][provenance["best_epoch"] - 1] == min(provenance["losses"]["validation"])
    norms = provenance["gradient_norms"]
    assert len(norms["mean"]) == len(norms["largest"]) == provenance["epochs"]
    assert all(0 < mean < largest for mean, largest in zip(norms["mean"], norms["largest"], strict=True))
    assert model.manifest.metrics == evaluation.measure(model, dataset.series, 12, 12).metrics
    assert model.manifest.description == "two tides"


def test_scaling_is_of_the_training_parts_alone() -> None:
    """Held-out values do not leak through the mean and deviation."""
    first = Series("a", np.array([[1.0], [3.0], [1e6], [1e6]], np.float32), 2, 3)
    second = Series("b", np.array([[5.0], [7.0], [1e6], [1e6]], np.float32), 2, 3)
    statistics = compute(Dataset((first, second), "", (Feature(name="level"),)))
    assert statistics.mean.tolist() == [4.0]
    assert statistics.std.tolist() == pytest.approx([np.std([1.0, 3.0, 5.0, 7.0])])


@pytest.mark.parametrize("steps", [1, 4, 150, 200, 250, 3000])
def test_the_proof_runs_on_stretches_of_the_data(steps: int) -> None:
    """The rows of the proof are up to 200 steps of the data, spread over the series, as they follow each other."""
    lengths = {0: steps, 1: steps, 2: steps, 3: max(1, steps // 3)}  # the last one is short beside the others
    parts = [
        Series(
            str(index), np.stack([np.arange(length) + 1e4 * index, -np.arange(length)], axis=1).astype(np.float32), 2, 3
        )
        for index, length in lengths.items()
    ]
    rows = proof_sample(Dataset(tuple(parts), "", (Feature(name="up"), Feature(name="down"))))
    assert len(rows) == 7
    usable = 4 if steps in (1, 3000) else 3
    starts = [-int(stretch[0, 1]) for stretch in rows]
    for row, (start, stretch) in enumerate(zip(starts, rows, strict=True)):
        assert stretch.tolist() == parts[row % usable].values[start : start + 200].tolist()
        assert len(stretch) >= min(100, steps / 2, lengths[row % usable])
    if steps >= 150:
        assert starts[:3] == sorted(set(starts[:3]))
        assert len({tuple(stretch[0].tolist()) for stretch in rows}) == 7
