"""Anomalies and corrected intervals of sessions, where noise is as the model believes and where it is not."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.runner import Outputs, StepModel
from onward.model.scoring.anomaly import MIN_SCORES
from onward.model.scoring.conformal import (
    GAMMA,
    RING_SIZE,
)
from onward.model.scoring.layout import ANOMALY, HIGH, LOW
from tests.helpers.expected_scores import STEPS, previous_predictions, start_engine
from tests.helpers.recorded_bundles import draw, make_bundle, stepped_outputs

T = "tenant"
HEADS = ["point", "gaussian", "student_t", "quantiles"]


def noise(model: StepModel, steps: int, rng: np.random.Generator, spread: Callable[[int], float]) -> list[list[float]]:
    """A series that the model predicts as well as it believes, but for `spread` of each step: 1 is as it believes."""
    state, values = model.layout.initial(1), []
    for step in range(steps):
        predictions = model.last_prediction(state)
        value = predictions["mean"] + predictions["std"] * rng.normal() * spread(step)
        _, state = model.run_row(value.astype(np.float32), state)
        values.append([float(np.float32(value[0, 0]))])
    return values


def test_anomalies_are_calibrated(tmp_path: Path) -> None:
    """If every input is as unusual as any other, 5% have the rank 0.95 or more, 1% at most 0.99; an outlier has it."""
    model = make_bundle(tmp_path / "models")
    engine = start_engine(tmp_path / "store", model)
    series = noise(model, 6000, np.random.default_rng(0), lambda _: 1.0)
    engine.create(T, "tiny", session_id="s", anomaly="rank")
    values = engine.steps.step(T, "s", series).outputs[ANOMALY]
    assert np.isnan(values[:MIN_SCORES]).all()
    assert not np.isnan(values[MIN_SCORES:]).any()
    error = 4 * math.sqrt(0.05 * 0.95 / 6000)  # neighbours share most of a ring, and so some more
    assert 0.05 - error < float((values[MIN_SCORES:] >= np.float32(0.95)).mean()) < 0.05 + error
    assert float((values[MIN_SCORES:] >= np.float32(0.99)).mean()) < 0.01 + error / 2
    assert engine.steps.step(T, "s", [[series[-1][0] + 100]]).outputs[ANOMALY][0] > 0.99
    engine.close()


def test_corrected_intervals_keep_their_coverage_when_noise_triples(tmp_path: Path) -> None:
    """The model's own interval loses what it should hold, the corrected one does not, in any 1000 inputs after it."""
    model = make_bundle(tmp_path / "models")
    engine = start_engine(tmp_path / "store", model)
    series = noise(model, 5000, np.random.default_rng(0), lambda step: 3.0 if step >= 2000 else 1.0)
    engine.create(T, "tiny", session_id="s", interval=0.8)
    outputs = np.concatenate(
        [engine.steps.step(T, "s", series[start : start + 500]).outputs for start in range(0, 5000, 500)]
    )
    actual = np.array(series[1:])[:, 0]
    own = previous_predictions(model, outputs)[1:]
    inside = np.abs(actual - own["mean"][:, 0]) <= NormalDist().inv_cdf(0.9) * own["std"][:, 0]
    covered = (outputs[LOW][:-1, 0] <= actual) & (actual <= outputs[HIGH][:-1, 0])
    assert inside[1000:2000].mean() == pytest.approx(0.8, abs=0.03)
    assert np.isinf(outputs[HIGH][0, 0])
    for start in range(2000, 4000, 500):
        assert inside[start : start + 1000].mean() < 0.45
    for start in range(200, 4000, 200):
        assert covered[start : start + 1000].mean() == pytest.approx(0.8, abs=0.02)
    _, interval = engine.accuracy(engine.sessions.get(T, "s").record)
    assert interval is not None
    assert interval.wanted == 0.8
    assert interval.coverage["x"] == pytest.approx(covered[3:].sum() / 4996)  # 4 inputs had none with an end
    assert 0 < interval.alpha["x"] < 1
    engine.close()


@pytest.mark.parametrize("head", HEADS)
def test_intervals_equal_those_of_the_paper(tmp_path: Path, head: str) -> None:
    """Gibbs and Candes 2021, equation 2, with the quantile of the last 256 scores, in a loop over lists."""
    model = make_bundle(tmp_path / "models", head=head, features=("x", "y", "z"), targets=("z", "x"))
    engine, series = start_engine(tmp_path / "store", model), draw(1, STEPS, 3, seed=9)[0]
    session, _ = engine.create(T, "tiny", interval=0.9, inputs=series[:40].tolist())
    outputs = engine.steps.step(T, session.session_id, series[40:].tolist()).outputs
    played_all = stepped_outputs(model, series)
    predictions = previous_predictions(model, played_all)
    spread: Callable[[Outputs], NDArray[np.float32]] = {
        "point": lambda values: np.ones_like(values["point"]),
        "gaussian": lambda values: values["std"],
        "student_t": lambda values: values["scale"],
        "quantiles": lambda values: (values["quantiles"][..., 2] - values["quantiles"][..., 0]) / 2,
    }[head]
    centre = model.manifest.head.outputs[0]
    for index, column in enumerate((2, 0)):
        alpha, scores, missed = 0.1, list[float](), 0
        reach = math.inf
        for step in range(STEPS):
            score = np.float32(
                abs(np.float64(series[step, column]) - predictions[centre][step, index])
                / spread(predictions)[step, index]
            )
            err = score > reach
            missed += int(err)
            if step >= 9:  # before, no interval has an end
                alpha += GAMMA * (0.1 - err)
            scores.append(float(score))
            last = sorted(scores[-RING_SIZE:])
            rank = math.ceil((len(last) + 1) * (1 - alpha) - 1e-9)
            reach = float(last[rank - 1]) if rank <= len(last) else math.inf
            if step >= 40:
                high = played_all[centre][step, index] + reach * spread(played_all)[step, index]
                assert outputs[HIGH][step - 40, index] == pytest.approx(high, rel=1e-5)
        _, interval = engine.accuracy(engine.sessions.get(T, session.session_id).record)
        assert interval is not None
        target = ("z", "x")[index]
        assert interval.alpha[target] == pytest.approx(alpha)
        assert interval.coverage[target] == pytest.approx(1 - missed / (STEPS - 9))
    engine.close()
