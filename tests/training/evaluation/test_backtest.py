"""Backtests of several steps and of distributions, compared with plain loops and exact values."""

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

from onward.model import distribution
from onward.model.manifest import Manifest
from onward.model.runner import StepModel
from onward.training.data.datasets import Series
from onward.training.evaluation import backtest, evaluation, point_metrics, probabilistic_metrics, rollout
from onward.training.evaluation.backtest import Trace
from onward.training.evaluation.evaluation import Evaluation
from onward.training.export.export_bundle import export
from tests.helpers.random_bundles import make_bundle, make_network, readout
from tests.helpers.recorded_bundles import FEATURES, draw


def held_out(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], test_from: int, name: str = "s") -> Series:
    return Series(name, values, test_from - 5, test_from)


def trace(found: Evaluation) -> Trace:
    assert isinstance(found.illustration, Trace)
    return found.illustration


def test_forecasts_are_a_plain_rollout(tmp_path: Path) -> None:
    """The errors equal those of reading the past step by step from every origin, then feeding predictions back."""
    model = make_bundle(tmp_path, features=FEATURES[:2])
    values, test_from, horizon = draw(1, 60, 2)[0], 50, 4
    errors = []
    for origin in range(test_from - 1, 60 - horizon):
        state, forecast = model.layout.initial(1), []
        for step in values[: origin + 1]:
            outputs, state = model.run_row(step[np.newaxis], state)
        for _ in range(horizon):
            forecast.append(outputs["mean"][0])
            outputs, state = model.run_row(outputs["mean"].astype(np.float32), state)
        errors.append(np.abs(np.array(forecast, np.float64) - values[origin + 1 : origin + 1 + horizon]))
    horizons = evaluation.measure(model, [held_out(values, test_from)], None, horizon).metrics["horizons"]
    assert (horizons["steps"], horizons["origins"]) == (horizon, 7)
    for column, target in enumerate(FEATURES[:2]):
        scored = horizons["targets"][target]["model"]["mae"]
        assert scored == pytest.approx(np.mean(errors, axis=0)[:, column].tolist(), rel=1e-5)


def test_the_first_horizon_is_the_one_step_error(tmp_path: Path) -> None:
    """Both backtests give equal errors of the model and of every naive forecast if the origins are equal."""
    model = make_bundle(tmp_path, head="student_t")
    short, long = draw(1, 41)[0], draw(1, 41, seed=1)[0] * 2
    metrics = evaluation.measure(model, [held_out(short, 39, "a"), held_out(long, 39, "b")], 7, 2).metrics
    assert metrics["steps"] == 4
    assert metrics["horizons"]["origins"] == 2
    first = [
        evaluation.measure(model, [held_out(values[:40], 39)], 7).metrics["targets"]["x"] for values in (short, long)
    ]
    ahead = metrics["horizons"]["targets"]["x"]
    assert set(ahead) == {"model", "last_value", "seasonal_naive", "drift", "mean"}
    for name in ahead:
        for measure in ("mae", "mase", "smape"):
            expected = np.mean([table[name][measure] for table in first])
            assert ahead[name][measure][0] == pytest.approx(expected, rel=1e-6)


def test_origins_are_spread_over_all_held_out_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The origins are at most MAX_ORIGINS, spread evenly from the first to the last whose future is in the data."""
    long, short = held_out(draw(1, 3000)[0], 2000), held_out(draw(1, 30)[0], 25)
    origins = backtest._origins([long, short], 5)
    assert sum(map(len, origins)) == backtest.MAX_ORIGINS
    assert (origins[0][0], origins[1].tolist()) == (1999, [24])
    assert set(np.diff(origins[0]).tolist()) <= {1, 2}
    monkeypatch.setattr(backtest, "MAX_ORIGINS", 10**6)
    assert [part.tolist() for part in backtest._origins([long, short], 5)] == [list(range(1999, 2995)), [24]]


def test_the_horizon_ends_with_the_held_out_part(tmp_path: Path) -> None:
    """A horizon is cut to the longest held-out part, and a horizon of a single step has no multi-step backtest."""
    model = make_bundle(tmp_path)
    series = [held_out(draw(1, 30)[0], 24, "a"), held_out(draw(1, 30)[0], 27, "b")]
    horizons = evaluation.measure(model, series, None, 100).metrics["horizons"]
    assert (horizons["steps"], horizons["origins"]) == (6, 1)
    assert "horizons" not in evaluation.measure(model, series, None, 1).metrics


def test_predictions_that_cannot_be_fed_back_are_not_rolled_out(tmp_path: Path) -> None:
    """A model that does not predict all of its inputs has no forecasts of several steps."""
    model = make_bundle(tmp_path, features=FEATURES[:2], targets=("y",))
    found = evaluation.measure(model, [held_out(draw(1, 40, 2)[0], 30)], None, 5)
    assert "horizons" not in found.metrics
    assert trace(found).rollouts.shape[0] == 0


def test_forecasts_do_not_depend_on_the_future(tmp_path: Path) -> None:
    """A forecast has the same bits whatever values follow its origin."""
    model = make_bundle(tmp_path)
    values = draw(1, 60)[0]
    changed = values.copy()
    changed[52:] += 100
    a, b = (trace(evaluation.measure(model, [held_out(data, 50)], None, 3)) for data in (values, changed))
    before_change = a.origins + 50 < 52
    assert before_change.sum() == 3
    assert a.rollouts[before_change].tobytes() == b.rollouts[before_change].tobytes()
    assert not np.isin(a.rollouts[~before_change], b.rollouts[~before_change]).any()


def test_a_diverging_rollout_is_reported(tmp_path: Path) -> None:
    """The errors of an unstable network are reported while they are finite, and the metrics remain valid JSON."""
    network = make_network(cell="rnn_relu", head="point", units=4)
    with torch.no_grad():
        readout(network).weight.fill_(1e6)
        readout(network).bias.fill_(1e6)
        for name, weights in network.named_parameters():
            if "weight_hh" in name or "weight_ih" in name:
                weights.fill_(1.0)
    values = draw(1, 60)[0]
    model = export(network, bundle=tmp_path / "wild" / "1", sample=draw(7, 200) * 0)
    with np.errstate(over="ignore", invalid="ignore"):
        horizons = evaluation.measure(model, [held_out(values[:20], 8)], None, 10).metrics["horizons"]
    assert 1 <= horizons["steps"] < 10
    assert horizons["diverges_at"] == horizons["steps"] + 1
    assert len(horizons["targets"]["x"]["model"]["mae"]) == horizons["steps"]
    json.dumps(horizons, allow_nan=False)


def test_a_constant_training_part_has_no_scaled_error(tmp_path: Path) -> None:
    """MASE is left out, rather than infinite, for that target only."""
    values = draw(1, 40, 2)[0]
    values[:20, 1] = 3.0
    scores = evaluation.measure(make_bundle(tmp_path, features=FEATURES[:2]), [held_out(values, 25)]).metrics["targets"]
    assert ["mase" in scores[target]["model"] for target in ("x", "y")] == [True, False]


def stretched(tmp_path: Path, head: str) -> tuple[StepModel, Series]:
    return make_bundle(tmp_path, head=head), held_out(draw(1, 400)[0], 100)


@pytest.mark.parametrize("head", ["gaussian", "student_t", "quantiles"])
def test_distributions_are_scored_by_the_quantiles_of_the_head(head: str, tmp_path: Path) -> None:
    """Coverage, reliability and quantile loss equal those of quantiles computed here from the outputs."""
    model, series = stretched(tmp_path, head)
    outputs = rollout.session(model, series.values)[0][99:-1]
    actual = series.values[100:, 0].astype(np.float64)
    parameters = {name: outputs[name].astype(np.float64)[:, 0] for name in model.manifest.head.outputs}
    levels = model.manifest.head.levels or tuple(tenth / 10 for tenth in range(1, 10))
    if head == "gaussian":
        quantiles = {level: parameters["mean"] + parameters["std"] * NormalDist().inv_cdf(level) for level in levels}
    elif head == "student_t":
        t = {level: float(distribution.student_t_quantile(level, parameters["df"])[0]) for level in levels}
        quantiles = {level: parameters["mean"] + parameters["scale"] * t[level] for level in levels}
    else:
        quantiles = {level: parameters["quantiles"][:, index] for index, level in enumerate(levels)}
    table = evaluation.measure(model, [series]).metrics["targets"]["x"]
    within = (quantiles[0.1] <= actual) & (actual <= quantiles[0.9])
    assert table["model"]["coverage_80"] == pytest.approx(float(within.mean()))
    for level, quantile in quantiles.items():
        assert table["reliability"][f"{level:g}"] == pytest.approx(float((actual <= quantile).mean()))
    assert table["model"]["weighted_quantile_loss"] == pytest.approx(
        point_metrics.weighted_quantile_loss(quantiles, actual), rel=1e-6
    )
    errors = [2 * point_metrics.quantile_loss(quantile, actual, level).mean() for level, quantile in quantiles.items()]
    assert table["model"]["crps"] == pytest.approx(float(np.mean(errors)), rel=1e-6 if head == "quantiles" else 0.1)


def test_a_point_head_has_no_distribution(tmp_path: Path) -> None:
    """A point head has no intervals, quantiles or CRPS in its metrics."""
    model, series = stretched(tmp_path, "point")
    found = evaluation.measure(model, [series])
    assert set(found.metrics["targets"]["x"]["model"]) == {"mae", "rmse", "mase", "smape"}
    assert "reliability" not in found.metrics["targets"]["x"]
    assert trace(found).band is None


def test_a_correct_distribution_is_reliable(tmp_path: Path) -> None:
    """If the data follows the predicted distribution, coverage is 80% and reliability equals the levels."""
    network = make_network(head="gaussian")
    with torch.no_grad():
        readout(network).weight.zero_()
        readout(network).bias.zero_()
    model = export(network, bundle=tmp_path / "true" / "1", sample=draw(7, 200))
    table = evaluation.measure(model, [held_out(draw(1, 20_000)[0], 50)]).metrics["targets"]["x"]
    assert table["model"]["coverage_80"] == pytest.approx(0.8, abs=0.01)
    assert len(table["reliability"]) == len(probabilistic_metrics.LEVELS)
    for level, share in table["reliability"].items():
        assert share == pytest.approx(float(level), abs=0.01)
    assert table["model"]["crps"] == pytest.approx(
        2 / np.sqrt(np.pi), rel=0.02
    )  # the std is 2: E CRPS = std / sqrt(pi)


def test_the_metrics_fit_the_manifest(tmp_path: Path) -> None:
    """The metrics are plain JSON, and a manifest preserves them."""
    model, series = stretched(tmp_path, "gaussian")
    metrics = evaluation.measure(model, [series], 7, 5).metrics
    manifest = model.manifest.model_copy(update={"metrics": metrics})
    assert Manifest.model_validate_json(manifest.model_dump_json()).metrics == metrics
