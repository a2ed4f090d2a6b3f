"""`onward evaluate` and `onward inspect` evaluate and describe an existing bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from onward.__main__ import main
from onward.model import ZOO
from onward.model.manifest import Feature
from onward.model.repository import open_bundle
from onward.training import config
from onward.training.data import datasets
from onward.training.evaluation import evaluate_bundle, evaluation
from onward.training.evaluation.inspect_bundle import inspect
from onward.training.report import report_table
from tests.helpers.random_bundles import make_bundle, make_network
from tests.helpers.recorded_bundles import FEATURES, draw
from tests.helpers.reference_loop import ROOT

WEATHER = ROOT / "examples/weather/seattle-weather.csv"


def onward(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def written(tmp_path: Path, columns: dict[str, Any]) -> Path:
    pl.DataFrame(columns).write_csv(tmp_path / "t.csv")
    return tmp_path / "t.csv"


def test_a_shipped_bundle_has_the_metrics_of_its_manifest() -> None:
    """`evaluate` without a configuration, on the training data, prints the errors in the manifest."""
    done = onward("evaluate", ZOO / "weather" / "1", WEATHER)
    assert (done.exit_code, done.stderr) == (0, "")
    metrics: Any = open_bundle(ZOO / "weather" / "1").manifest.metrics
    for target, scores in metrics["targets"].items():
        line = done.stdout[done.stdout.index(f"\n{target} ") :].splitlines()[2]
        assert line.split()[2:4] == [f"{scores['model'][measure]:.4g}" for measure in ("mae", "rmse")]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    """The order of columns does not matter, and columns that are not features of the bundle are ignored."""
    model = make_bundle(tmp_path, features=FEATURES, targets=("z", "x"))
    values = draw(1, 200, 3)[0]
    file = written(tmp_path, {"a": ["?"] * 200, "z": values[:, 2], "x": values[:, 0], "y": values[:, 1]})
    (series,) = datasets.load(file, evaluate_bundle.data_settings(model.manifest, file, None)).series
    assert series.values.tolist() == values.tolist()
    assert evaluate_bundle.measure(model, file).metrics == evaluation.measure(model, [series], None, 12).metrics


def test_a_table_without_the_features_is_refused_by_name(tmp_path: Path) -> None:
    """The status is 1, and a single line names the missing columns and those of the table."""
    make_bundle(tmp_path, features=FEATURES)
    done = onward("evaluate", tmp_path / "tiny" / "1", written(tmp_path, {"x": [1.0] * 9, "w": [1.0] * 9}))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"onward: {tmp_path}/t.csv: no column y, z; it has x, w\n"


def test_a_configuration_sets_how_the_table_is_read(tmp_path: Path) -> None:
    """Series, order, period and horizon come from the configuration, columns from the bundle."""
    model = make_bundle(tmp_path)
    x = draw(1, 120)[0, :, 0].astype(float)
    file = written(tmp_path, {"who": ["a"] * 60 + ["b"] * 60, "t": [*range(59, -1, -1), *range(60)], "x": x})
    (tmp_path / "c.toml").write_text(
        'name = "c"\n[data]\npath = "elsewhere.csv"\ntargets = ["q"]\nseries = "who"\ntime = "t"\n'
        'period = 7\nhorizon = 3\n[output]\nrepository = "m"\n'
    )
    evaluated = evaluate_bundle.measure(model, file, config.read(tmp_path / "c.toml"))
    series = datasets.load(
        file, evaluate_bundle.data_settings(model.manifest, file, config.read(tmp_path / "c.toml"))
    ).series
    assert [item.values[:, 0].tolist() for item in series] == [x[59::-1].tolist(), x[60:].tolist()]
    assert evaluated.metrics == evaluation.measure(model, series, 7, 3).metrics
    done = onward("evaluate", tmp_path / "tiny" / "1", file, "--config", tmp_path / "c.toml")
    assert done.stdout.strip() == report_table.text(model.manifest.model_copy(update={"metrics": evaluated.metrics}))


def test_derived_features_need_their_calendar(tmp_path: Path) -> None:
    """A bundle with calendar features refuses a table if the configuration does not derive them."""
    model = make_bundle(tmp_path, features=("x", "y"), targets=("x",))
    features = (Feature(name="x"), Feature(name="t_week_sin", role="known", formula="..."))
    manifest = model.manifest.model_copy(update={"features": features})
    with pytest.raises(config.ConfigError, match=r"the bundle reads x, t_week_sin, the configuration would give it x$"):
        evaluate_bundle.data_settings(manifest, tmp_path / "t.csv", None)


@pytest.mark.parametrize("command", [["evaluate", "none/1", "t.csv"], ["inspect", "none/1"]])
def test_an_absent_bundle_is_refused(command: list[str]) -> None:
    """The message names the missing file, and the status is 1."""
    done = onward(*command)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("onward: none/1/manifest.json: cannot be read: ")


def test_the_description_matches_the_bundle(tmp_path: Path) -> None:
    """Tensors, bytes per session and sizes are those of the graph and the network; both batch sizes have a cost."""
    model = make_bundle(tmp_path, units=8, features=("x", "y"))
    bundle = tmp_path / "tiny" / "1"
    description = inspect(bundle, model)
    assert (
        description["state_bytes_per_session"]
        == sum(tensor["bytes"] for tensor in description["state"])
        == (8 + 8 + 3 * 2) * 4
    )
    assert description["graph_bytes"] == len((bundle / "model.onnx").read_bytes())
    learnt = sum(parameter.numel() for parameter in make_network(features=("x", "y")).parameters())
    assert learnt <= description["parameters"] <= learnt + 20  # and the scaling's
    assert [tensor["name"] for tensor in description["outputs"]] == ["mean", "std", "surprise"]
    assert description["inputs"][0] == {"name": "inputs", "shape": ["time", "batch", 2], "dtype": "float32"}
    assert set(description["step_us"]) == {"1", "32"}
    assert all(np.isfinite(cost) and cost > 0 for cost in description["step_us"].values())


def test_text_and_json_have_the_same_facts(tmp_path: Path) -> None:
    """`inspect` prints every tensor with its shape, and `--json` the same facts; neither changes the bundle."""
    make_bundle(tmp_path, head="student_t")
    bundle = tmp_path / "tiny" / "1"
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    description = json.loads(onward("inspect", bundle, "--json").stdout)
    text = onward("inspect", bundle).stdout
    for side in ("inputs", "outputs", "state"):
        for tensor in description[side]:
            assert [tensor["name"], *" x ".join(map(str, tensor["shape"])).split(), tensor["dtype"]] in [
                line.split()[: 2 * len(tensor["shape"]) + 1] for line in text.splitlines()
            ]
    for fact in (
        f"{description['state_bytes_per_session']} bytes a session",
        description["sha256"],
        f"{description['parameters']:,}",
    ):
        assert fact in text
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before
