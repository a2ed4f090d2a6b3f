"""The metrics equal numbers computed by hand."""

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
    """Returns a model that always predicts 10 and 20, the means of x and y."""
    network = make_network(head="point", features=("x", "y"))
    with torch.no_grad():
        readout(network).weight.zero_()
        readout(network).bias.zero_()
    return export(network, bundle=tmp_path / "constant" / "1", sample=draw(7, 200, 2))


def series(x: list[float], y: list[float], test_from: int, name: str = "s") -> Series:
    return Series(name, np.array([x, y], np.float32).T.copy(), test_from - 1, test_from)


def test_errors_equal_those_computed_by_hand(tmp_path: Path) -> None:
    """MAE and RMSE of the model, the last value and the seasonal naive forecast, over the test steps of all series.

    Test steps of the first series are x = 8, 13 after 7, with 4, 11 three steps before; of the second x = 10 after 12,
    with 9 three steps before. The model predicts 10.
    """
    first = series([3.0, 4.0, 11.0, 7.0, 8.0, 13.0], [20.0] * 6, 4, "one")
    second = series([9.0, 1.0, 12.0, 10.0], [20.0, 21.0, 22.0, 23.0], 3, "two")

    def errors(scores: dict[str, float]) -> dict[str, float]:
        return {measure: scores[measure] for measure in ("mae", "rmse")}

    metrics = evaluation.measure(constant(tmp_path), [first, second], 3).metrics
    assert metrics["steps"] == 3
    x = metrics["targets"]["x"]
    assert errors(x["model"]) == pytest.approx({"mae": (2 + 3 + 0) / 3, "rmse": math.sqrt((4 + 9 + 0) / 3)})
    assert errors(x["last_value"]) == pytest.approx({"mae": (1 + 5 + 2) / 3, "rmse": math.sqrt((1 + 25 + 4) / 3)})
    assert errors(x["seasonal_naive"]) == pytest.approx({"mae": (4 + 2 + 1) / 3, "rmse": math.sqrt((16 + 4 + 1) / 3)})
    assert x["better"]["last_value"] == pytest.approx({"mae": 1 - 5 / 8, "rmse": 1 - math.sqrt(13 / 30)})
    assert x["better"]["seasonal_naive"] == pytest.approx({"mae": 1 - 5 / 7, "rmse": 1 - math.sqrt(13 / 21)})
    y = metrics["targets"]["y"]
    assert errors(y["model"]) == pytest.approx({"mae": 1.0, "rmse": math.sqrt(3)})
    assert errors(y["last_value"]) == pytest.approx({"mae": 1 / 3, "rmse": math.sqrt(1 / 3)})
    assert errors(y["seasonal_naive"]) == pytest.approx({"mae": 1.0, "rmse": math.sqrt(3)})
    # the drifts: 7 + 4/3, 8 + 5/4; 12 + 3/2
    drift = [7 + 4 / 3 - 8, 8 + 5 / 4 - 13, 12 + 3 / 2 - 10]
    assert x["drift"]["mae"] == pytest.approx(float(np.mean(np.abs(drift))))
    # the means of the training parts: 3, 4, 11 and 9, 1
    assert x["mean"]["mae"] == pytest.approx((2 + 7 + 5) / 3)
    # surprise in deviations (2 of x, 3 of y): 2/2, 3/2, then 0/2 + 3/3
    assert metrics["mean_surprise"] == pytest.approx((1 + 1.5 + 1) / 3)


def test_without_a_period_there_is_no_seasonal_baseline(tmp_path: Path) -> None:
    """A period is never guessed, and a period longer than the training part is refused."""
    held_out = series([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5, 3)
    model = constant(tmp_path)
    scores = evaluation.measure(model, [held_out]).metrics["targets"]["x"]
    assert set(scores) == {"model", "last_value", "drift", "mean", "better"}
    assert set(scores["better"]) == {"last_value", "drift", "mean"}
    with pytest.raises(ValueError, match=r"data\.period: 4 steps is more than series s has before its test part"):
        evaluation.measure(model, [held_out], 4)


def test_predictions_equal_single_steps_of_a_session(tmp_path: Path) -> None:
    """The evaluated predictions equal those of a session step by step, across the edges of chunks too."""
    model = make_bundle(tmp_path)
    values = draw(1, rollout.CHUNK * 2 + 30)[0]
    state, steps = model.layout.initial(1), []
    for step in values:
        outputs, state = model.run_row(step[None], state)
        steps.append(outputs)
    assert rollout.session(model, values)[0].tobytes() == np.concatenate(steps).tobytes()


def test_each_prediction_is_scored_against_the_step_after_it(tmp_path: Path) -> None:
    """The errors equal those of a plain loop, with targets found by name among the features."""
    model = make_bundle(tmp_path, features=FEATURES, targets=("z", "x"))
    values = draw(1, 60, 3)[0]
    state, errors, surprises = model.layout.initial(1), [], []
    predicted = np.zeros(2)
    for index, step in enumerate(values):
        if index >= 45:
            errors.append(np.abs(predicted - step[[2, 0]].astype(np.float64)))
        outputs, state = model.run_row(step[None], state)
        if index >= 45:
            surprises.append(float(outputs["surprise"][0]))
        predicted = outputs["mean"][0].astype(np.float64)
    metrics = evaluation.measure(model, [Series("s", values, 40, 45)]).metrics
    for column, target in enumerate(("z", "x")):
        assert metrics["targets"][target]["model"]["mae"] == pytest.approx(float(np.mean(errors, axis=0)[column]))
    assert metrics["mean_surprise"] == pytest.approx(float(np.mean(surprises)))


@pytest.mark.parametrize("changed", [50, 256, 300, 399])
def test_predictions_do_not_depend_on_the_future(changed: int, tmp_path: Path) -> None:
    """Later steps, in the same chunk or the next, change no bit of earlier predictions."""
    model = make_bundle(tmp_path)
    values = draw(1, 400)[0]
    altered = values.copy()
    altered[changed:] = draw(1, 400 - changed, seed=9)[0] + 100
    (before, _), (after, _) = rollout.session(model, values), rollout.session(model, altered)
    assert before[:changed].tobytes() == after[:changed].tobytes()
    for name in ("mean", "std", "surprise"):
        assert before[name][changed] != after[name][changed]


def metrics_of(model: float, last_value: float) -> dict[str, Any]:
    """Returns metrics in which the model and the last value have these errors."""
    table: dict[str, Any] = {
        name: {"mae": error, "rmse": error} for name, error in (("model", model), ("last_value", last_value))
    }
    table["better"] = evaluation._better(table, evaluation.DECISIVE["forecast"])
    return {"task": "forecast", "steps": 1, "targets": {"x": table}}


@pytest.mark.parametrize(
    ("model", "last_value", "beaten"), [(1.0, 2.0, True), (2.0, 1.0, False), (1.0, 1.0, False), (0.1, 0.0, False)]
)
def test_a_model_must_have_a_lower_error(model: float, last_value: float, beaten: bool, tmp_path: Path) -> None:
    """An equal error does not beat a baseline, nor does any error beat an exact baseline; the table then warns."""
    metrics = metrics_of(model, last_value)
    assert (not evaluation.unbeaten_baselines(metrics)) is beaten
    manifest: Manifest = make_bundle(tmp_path).manifest.model_copy(update={"metrics": metrics})
    warning = "WARNING: the model loses to a naive forecast: x by MAE against last value; x by RMSE against last value"
    assert (warning in report_table.text(manifest)) is not beaten


def test_a_single_lost_measure_of_a_single_target_is_a_loss(tmp_path: Path) -> None:
    """A model beats the baselines only if it does so for every target and measure."""
    metrics = metrics_of(1.0, 2.0)
    second = metrics_of(1.0, 2.0)["targets"]["x"]
    metrics["targets"]["y"] = second | {"last_value": {"mae": 2.0, "rmse": 0.5}}
    assert evaluation.unbeaten_baselines(metrics)


def test_the_table_has_the_errors_of_the_metrics(tmp_path: Path) -> None:
    """The table has each baseline with its errors, and a minus if the model's error is lower."""
    metrics = metrics_of(1.0, 4.0)
    text = report_table.text(make_bundle(tmp_path).manifest.model_copy(update={"metrics": metrics | {"steps": 12345}}))
    assert text.splitlines() == [
        "tiny 1: one step ahead on 12,345 held-out steps",
        "",
        "x                            MAE        RMSE   MAE, RMSE of the model relative to it",
        "  this model                   1           1",
        "  last value                   4           4   -75.0%, -75.0%",
    ]


def test_the_table_has_distributions_and_horizons(tmp_path: Path) -> None:
    """The table has coverage, CRPS and the error at the last horizon, and warns of a loss further ahead."""
    metrics = metrics_of(1.0, 4.0)
    metrics["targets"]["x"]["model"] |= {"mase": 0.5, "smape": 0.25, "coverage_80": 0.7654, "crps": 1.25}
    for name in ("last_value",):
        metrics["targets"]["x"][name] |= {"mase": 2.0, "smape": 1.5}
    errors = {"model": {"mae": [1.0, 5.0]}, "last_value": {"mae": [4.0, 2.0]}, "mean": {"mae": [4.0, 2.5]}}
    metrics["horizons"] = {"steps": 2, "origins": 9, "targets": {"x": errors}}
    lines = report_table.text(make_bundle(tmp_path).manifest.model_copy(update={"metrics": metrics})).splitlines()
    assert lines[2].split()[:5] == ["x", "MAE", "RMSE", "MASE", "sMAPE"]
    assert lines[3].split() == ["this", "model", "1", "1", "0.5", "25.0%"]
    assert lines[5:7] == [
        "  80% interval covers 76.5%, CRPS 1.25",
        "  MAE 2 steps ahead: this model 5, last value 2, mean 2.5",
    ]
    assert lines[-1] == "WARNING: over 2 steps the model loses: x by MAE against last value"
