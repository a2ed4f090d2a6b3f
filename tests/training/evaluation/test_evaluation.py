"""The metrics, against numbers worked out by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onward.model.manifest import Manifest
from onward.model.runner import StepModel
from onward.training.data.datasets import Series
from onward.training.evaluation import evaluation, rollout
from onward.training.export.export_bundle import export
from onward.training.report import report_table
from tests.helpers.random_bundles import make_bundle, make_network, readout
from tests.helpers.recorded_bundles import FEATURES, draw


def constant(tmp_path: Path) -> StepModel:
    """A model that predicts 10 and 20, the means of x and y, whatever it reads."""
    network = make_network(head="point", features=("x", "y"))
    with torch.no_grad():
        readout(network).weight.zero_()
        readout(network).bias.zero_()
    return export(network, bundle=tmp_path / "constant" / "1", sample=draw(7, 200, 2))


def series(x: list[float], y: list[float], test_from: int, name: str = "s") -> Series:
    return Series(name, np.array([x, y], np.float32).T.copy(), test_from - 1, test_from)


def test_errors_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    """MAE and RMSE of the model, the last value and the value one period before, over all series' test steps.

    Test steps of the first series are x = 8, 13 after 7, with 4, 11 three steps before; of the second x = 10 after 12,
    with 9 three steps before. The model says 10.
    """
    one = series([3.0, 4.0, 11.0, 7.0, 8.0, 13.0], [20.0] * 6, 4, "one")
    two = series([9.0, 1.0, 12.0, 10.0], [20.0, 21.0, 22.0, 23.0], 3, "two")

    def errors(told: dict[str, float]) -> dict[str, float]:
        return {measure: told[measure] for measure in ("mae", "rmse")}

    report = evaluation.measure(constant(tmp_path), [one, two], 3).metrics
    assert report["steps"] == 3
    x = report["targets"]["x"]
    assert errors(x["model"]) == pytest.approx({"mae": (2 + 3 + 0) / 3, "rmse": math.sqrt((4 + 9 + 0) / 3)})
    assert errors(x["last_value"]) == pytest.approx({"mae": (1 + 5 + 2) / 3, "rmse": math.sqrt((1 + 25 + 4) / 3)})
    assert errors(x["seasonal_naive"]) == pytest.approx({"mae": (4 + 2 + 1) / 3, "rmse": math.sqrt((16 + 4 + 1) / 3)})
    assert x["better"]["last_value"] == pytest.approx({"mae": 1 - 5 / 8, "rmse": 1 - math.sqrt(13 / 30)})
    assert x["better"]["seasonal_naive"] == pytest.approx({"mae": 1 - 5 / 7, "rmse": 1 - math.sqrt(13 / 21)})
    y = report["targets"]["y"]
    assert errors(y["model"]) == pytest.approx({"mae": 1.0, "rmse": math.sqrt(3)})
    assert errors(y["last_value"]) == pytest.approx({"mae": 1 / 3, "rmse": math.sqrt(1 / 3)})
    assert errors(y["seasonal_naive"]) == pytest.approx({"mae": 1.0, "rmse": math.sqrt(3)})
    # the drifts: 7 + 4/3, 8 + 5/4; 12 + 3/2
    drift = [7 + 4 / 3 - 8, 8 + 5 / 4 - 13, 12 + 3 / 2 - 10]
    assert x["drift"]["mae"] == pytest.approx(float(np.mean(np.abs(drift))))
    # the means of the training parts: 3, 4, 11 and 9, 1
    assert x["mean"]["mae"] == pytest.approx((2 + 7 + 5) / 3)
    # surprise in deviations (2 of x, 3 of y): 2/2, 3/2, then 0/2 + 3/3
    assert report["mean_surprise"] == pytest.approx((1 + 1.5 + 1) / 3)


def test_without_a_period_there_is_no_seasonal_baseline(tmp_path: Path) -> None:
    """No season is made up; one longer than the past is refused."""
    one = series([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5, 3)
    model = constant(tmp_path)
    told = evaluation.measure(model, [one]).metrics["targets"]["x"]
    assert set(told) == {"model", "last_value", "drift", "mean", "better"}
    assert set(told["better"]) == {"last_value", "drift", "mean"}
    with pytest.raises(ValueError, match=r"data\.period: 4 steps is more than series s has before its test part"):
        evaluation.measure(model, [one], 4)


def test_predictions_are_one_sessions_single_steps(tmp_path: Path) -> None:
    """What is measured is what a session would be told, step by step, over the edges of the chunks too."""
    model = make_bundle(tmp_path)
    values = draw(1, rollout.CHUNK * 2 + 30)[0]
    state, steps = model.layout.initial(1), []
    for step in values:
        outputs, state = model.run_row(step[None], state)
        steps.append(outputs)
    assert rollout.session(model, values)[0].tobytes() == np.concatenate(steps).tobytes()


def test_each_prediction_is_scored_against_the_step_after_it(tmp_path: Path) -> None:
    """The errors are those of a plain loop: predict, then look, with targets found by name among the features."""
    model = make_bundle(tmp_path, features=FEATURES, targets=("z", "x"))
    values = draw(1, 60, 3)[0]
    state, errors, surprises = model.layout.initial(1), [], []
    said = np.zeros(2)
    for t, step in enumerate(values):
        if t >= 45:
            errors.append(np.abs(said - step[[2, 0]].astype(np.float64)))
        outputs, state = model.run_row(step[None], state)
        if t >= 45:
            surprises.append(float(outputs["surprise"][0]))
        said = outputs["mean"][0].astype(np.float64)
    report = evaluation.measure(model, [Series("s", values, 40, 45)]).metrics
    for place, target in enumerate(("z", "x")):
        assert report["targets"][target]["model"]["mae"] == pytest.approx(float(np.mean(errors, axis=0)[place]))
    assert report["mean_surprise"] == pytest.approx(float(np.mean(surprises)))


@pytest.mark.parametrize("changed", [50, 256, 300, 399])
def test_no_prediction_knows_the_future(changed: int, tmp_path: Path) -> None:
    """Steps that come later, in the same chunk or the next, change no bit of what was said before them."""
    model = make_bundle(tmp_path)
    values = draw(1, 400)[0]
    other = values.copy()
    other[changed:] = draw(1, 400 - changed, seed=9)[0] + 100
    (before, _), (after, _) = rollout.session(model, values), rollout.session(model, other)
    assert before[:changed].tobytes() == after[:changed].tobytes()
    for name in ("mean", "std", "surprise"):
        assert before[name][changed] != after[name][changed]


def report(model: float, last_value: float) -> dict[str, Any]:
    """A report whose model has this RMSE and a good MAE."""
    told: dict[str, Any] = {
        name: {"mae": error, "rmse": error} for name, error in (("model", model), ("last_value", last_value))
    }
    told["better"] = evaluation._better(told, evaluation.DECISIVE["forecast"])
    return {"task": "forecast", "steps": 1, "targets": {"x": told}}


@pytest.mark.parametrize(
    ("model", "last_value", "beaten"), [(1.0, 2.0, True), (2.0, 1.0, False), (1.0, 1.0, False), (0.1, 0.0, False)]
)
def test_a_loss_is_a_loss(model: float, last_value: float, beaten: bool, tmp_path: Path) -> None:
    """An equal error is no gain, and no model beats a baseline that is never wrong; the table then warns."""
    told = report(model, last_value)
    assert (not evaluation.unbeaten_baselines(told)) is beaten
    manifest: Manifest = make_bundle(tmp_path).manifest.model_copy(update={"metrics": told})
    warning = "WARNING: the model loses to a naive forecast: x by MAE against last value; x by RMSE against last value"
    assert (warning in report_table.text(manifest)) is not beaten


def test_one_lost_measure_of_one_target_is_enough(tmp_path: Path) -> None:
    """Everywhere is everywhere."""
    told = report(1.0, 2.0)
    other = report(1.0, 2.0)["targets"]["x"]
    told["targets"]["y"] = other | {"last_value": {"mae": 2.0, "rmse": 0.5}}
    assert evaluation.unbeaten_baselines(told)


def test_the_table_says_what_the_report_says(tmp_path: Path) -> None:
    """People read the same numbers: each baseline with its errors, and a minus where the model's error is lower."""
    told = report(1.0, 4.0)
    text = report_table.text(make_bundle(tmp_path).manifest.model_copy(update={"metrics": told | {"steps": 12345}}))
    assert text.splitlines() == [
        "tiny 1: one step ahead on 12,345 held-out steps",
        "",
        "x                            MAE        RMSE   MAE, RMSE of the model relative to it",
        "  this model                   1           1",
        "  last value                   4           4   -75.0%, -75.0%",
    ]


def test_the_table_tells_of_distributions_and_of_longer_horizons(tmp_path: Path) -> None:
    """Coverage, CRPS and the error at the last horizon are in it, and a loss further ahead is a warning."""
    told = report(1.0, 4.0)
    told["targets"]["x"]["model"] |= {"mase": 0.5, "smape": 0.25, "coverage_80": 0.7654, "crps": 1.25}
    for name in ("last_value",):
        told["targets"]["x"][name] |= {"mase": 2.0, "smape": 1.5}
    errors = {"model": {"mae": [1.0, 5.0]}, "last_value": {"mae": [4.0, 2.0]}, "mean": {"mae": [4.0, 2.5]}}
    told["horizons"] = {"steps": 2, "origins": 9, "targets": {"x": errors}}
    lines = report_table.text(make_bundle(tmp_path).manifest.model_copy(update={"metrics": told})).splitlines()
    assert lines[2].split()[:5] == ["x", "MAE", "RMSE", "MASE", "sMAPE"]
    assert lines[3].split() == ["this", "model", "1", "1", "0.5", "25.0%"]
    assert lines[5:7] == [
        "  80% interval covers 76.5%, CRPS 1.25",
        "  MAE 2 steps ahead: this model 5, last value 2, mean 2.5",
    ]
    assert lines[-1] == "WARNING: over 2 steps the model loses: x by MAE against last value"
