"""Training on transformed columns: log-normal growth reaches the optimum, and what has no transform is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.training import run
from onward.training.config import Config, Data
from onward.training.data import datasets
from onward.training.errors import DataError
from onward.training.evaluation.point_metrics import Array

STEPS, DRIFT, DEVIATION, HORIZON = 1600, 0.01, 0.1, 12


def settings(folder: Path, data: dict[str, Any], model: dict[str, Any] | None = None, **train: Any) -> Config:
    """Returns the configuration of a small network of the file `table.csv`."""
    return Config.model_validate(
        {
            "name": "growth",
            "data": {"path": "table.csv", **data},
            "model": {"cell": "gru", "units": 4, **(model or {})},
            "train": {"epochs": 8, "window": 50, "batch": 16, "learning_rate": 0.01, **train},
            "output": {"repository": "models"},
        }
    ).model_copy(update={"folder": folder})


def write(folder: Path, **columns: Any) -> None:
    rows = zip(*columns.values(), strict=True)
    lines = [",".join("" if value is None else f"{value:.9g}" for value in row) for row in rows]
    (folder / "table.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")


def growth() -> Array:
    """Returns a random walk with a drift in logarithms."""
    noise = np.random.default_rng(3).standard_normal(STEPS)
    return np.exp(np.cumsum(DRIFT + DEVIATION * noise) - 8)


def test_log_normal_growth_is_predicted_as_well_as_is_possible(tmp_path: Path) -> None:
    """The best forecast is the last value times the mean growth: within 5% of its error at 1 step, 10% at 12.

    The values of the held-out part are thousands of times those of the training part.
    """
    values = growth()
    write(tmp_path, y=values)
    _, model = run.train(
        settings(tmp_path, {"targets": ("y",), "transforms": {"y": "relative"}, "horizon": HORIZON}), quiet=True
    )
    metrics: Any = model.manifest.metrics
    values = values.astype(np.float32).astype(np.float64)
    first = STEPS - int(metrics["steps"])
    origins = np.arange(first - 1, STEPS - HORIZON)
    assert metrics["horizons"]["origins"] == len(origins)
    reached = metrics["horizons"]["targets"]["y"]["model"]["rmse"]
    for ahead, most in ((1, 1.05), (HORIZON, 1.10)):
        best = values[origins] * np.exp(ahead * (DRIFT + DEVIATION**2 / 2))
        optimum = float(np.sqrt(((values[origins + ahead] - best) ** 2).mean()))
        assert reached[ahead - 1] <= most * optimum
    assert metrics["targets"]["y"]["model"]["coverage_80"] == pytest.approx(0.8, abs=0.07)
    location = np.log(values[first - 1 : -1]) + DRIFT
    z = (np.log(values[first:]) - location) / DEVIATION
    best = 0.5 * z**2 + np.log(DEVIATION) + 0.5 * np.log(2 * np.pi) + np.log(values[first:])
    assert metrics["mean_surprise"] == pytest.approx(best.mean(), abs=0.05)
    feature = model.manifest.features[0]
    assert (feature.transform and feature.transform.kind, feature.differenced) == ("log", True)


def test_the_log_score_compares_models_whatever_their_transforms(tmp_path: Path) -> None:
    """The score of log-normal noise is that of the true distribution with the logarithm, and higher without."""
    noise = np.random.default_rng(0).standard_normal(1000)
    values = np.exp(0.8 * noise + 3)
    write(tmp_path, y=values)
    scores = {}
    for kind in (None, "log", "box_cox"):
        chosen = {} if kind is None else {"y": kind}
        _, model = run.train(settings(tmp_path, {"targets": ("y",), "transforms": chosen, "horizon": 1}), quiet=True)
        metrics: Any = model.manifest.metrics
        scores[kind] = metrics["mean_surprise"], metrics["targets"]["y"]["model"]["crps"]
    tested = noise[-metrics["steps"] :]
    optimum = np.mean(0.5 * tested**2 + 0.5 * np.log(2 * np.pi) + np.log(0.8) + 0.8 * tested + 3)
    assert scores["log"][0] == pytest.approx(optimum, abs=0.05)
    assert scores["box_cox"][0] == pytest.approx(scores["log"][0], abs=0.05)
    assert scores[None][0] > scores["log"][0] + 0.2
    assert scores[None][1] > 1.03 * scores["log"][1]


@pytest.mark.parametrize(("kind", "floor"), [("log", 0.0), ("box_cox", 0.0), ("relative", 0.0), ("log1p", -1.0)])
def test_values_outside_of_the_domain_are_refused(kind: str, floor: float, tmp_path: Path) -> None:
    """The message has their number, the first rows and a way out; missing values are none of them."""
    values: list[float | None] = [2.0 + row % 7 for row in range(200)]
    values[40], values[90], values[150] = floor, None, floor - 2.5
    write(tmp_path, x=[1.0] * 200, y=values)
    given = {"path": "table.csv", "targets": ("y",), "missing": ("y",), "transforms": {"y": kind}}
    with pytest.raises(DataError) as refused:
        datasets.load(tmp_path / "table.csv", Data.model_validate(given))
    message = str(refused.value)
    name = "log" if kind == "relative" else kind
    assert f"is not above {floor:g}, as its transform {name} needs" in message
    assert "column y" in message
    assert "row 41" in message
    assert "2 such rows; also row 151" in message
    assert "asinh" in message


def test_the_exponent_of_a_box_cox_transform_is_that_of_the_training_part(tmp_path: Path) -> None:
    """Values of the test part do not change it, and those of a column in double precision have one too."""
    z = 3 + 0.3 * np.random.default_rng(0).standard_normal(2000)
    values = (0.4 * z + 1) ** (1 / 0.4)
    write(tmp_path, y=values)
    data = Data.model_validate({"path": "table.csv", "targets": ("y",), "transforms": {"y": "box_cox"}})
    (feature,) = datasets.load(tmp_path / "table.csv", data).features
    values[-300:] *= 50
    write(tmp_path, y=values)
    (again,) = datasets.load(tmp_path / "table.csv", data).features
    assert feature == again
    assert feature.transform is not None
    assert feature.transform.exponent == pytest.approx(0.4, abs=0.35)


def test_steps_that_are_small_after_the_transform_need_double_precision(tmp_path: Path) -> None:
    """The logarithm of large numbers has fewer digits for their steps."""
    values = 1e30 * np.exp(np.cumsum(1e-4 * np.random.default_rng(0).standard_normal(1000)))
    write(tmp_path, y=values)
    for kind, dtype in (("log", np.float64), (None, np.float32)):
        data = Data.model_validate(
            {"path": "table.csv", "targets": ("y",), "transforms": {} if kind is None else {"y": kind}}
        )
        assert datasets.load(tmp_path / "table.csv", data).dtype == dtype


def test_transforms_are_of_numbers_that_the_model_reads() -> None:
    base = {"path": "x.csv", "targets": ("x",), "features": ("x", "k", "p"), "categories": ("k",), "known": ("p",)}
    for wrong in ("k", "other"):
        with pytest.raises(ValueError, match=f"transforms are of features that are numbers: {wrong} is none"):
            Data.model_validate({**base, "transforms": {wrong: "log"}})
    with pytest.raises(ValueError, match="changes must be observed numbers: p is none"):
        Data.model_validate({**base, "transforms": {"p": "relative"}})
    given = Data.model_validate({**base, "changes": ("x",), "transforms": {"x": "relative", "p": "log"}})
    assert given.differenced == ("x",)
