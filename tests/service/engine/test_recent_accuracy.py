"""Recent accuracy: the statistics of a session's last inputs, against plain sums over just these."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.model.scoring.conformal import BLOCK
from onward.model.scoring.layout import HIGH, LOW
from tests.helpers.expected_scores import previous_predictions, start_engine
from tests.helpers.recorded_bundles import category, draw, make_bundle, make_feature_bundle

T = "tenant"
CALLS = [1, BLOCK - 2, 1, 1, BLOCK - 2, 1, 1, 1, 5 * BLOCK, 37]
"""The numbers of inputs of a session's calls, which reach and pass the ends of blocks."""
STEPS = sum(CALLS)


def window(inputs: int) -> slice:
    """Returns the positions of the recent ones of so many inputs."""
    return slice(max(0, inputs // BLOCK - 1) * BLOCK, inputs)


@pytest.mark.parametrize("head", ["point", "gaussian", "quantiles"])
def test_recent_accuracy_is_that_of_the_last_inputs(tmp_path: Path, head: str) -> None:
    """After each call, MAE, MASE and coverage are those of the last 100 to 199 inputs, or of all if they are fewer."""
    model = make_bundle(tmp_path / "models", head=head, features=("x", "y", "z"), targets=("z", "x"))
    engine, series = start_engine(tmp_path / "store", model), draw(1, STEPS, 3, seed=4)[0]
    engine.create(T, "tiny", session_id="s")
    outputs = engine.predict("tiny", None, [series.tolist()], 0)[0].outputs
    predictions, actual = previous_predictions(model, outputs), series[:, [2, 0]].astype(np.float64)
    error = np.abs(actual - predictions[model.manifest.head.outputs[0]])
    inside: NDArray[np.bool_] | None = None
    if head == "gaussian":
        inside = error <= NormalDist().inv_cdf(0.9) * predictions["std"]
    elif head == "quantiles":
        inside = (actual >= predictions["quantiles"][..., 0]) & (actual <= predictions["quantiles"][..., 2])
    inputs = 0
    for count in CALLS:
        engine.steps.step(T, "s", series[inputs : inputs + count].tolist())
        inputs += count
        targets, _ = engine.accuracy(engine.sessions.get(T, "s").record)
        assert targets is not None
        for column, target in enumerate(("z", "x")):
            recent, part = targets[target].recent, window(inputs)
            mae = error[part, column].mean()
            naive = np.abs(np.diff(actual[max(0, part.start - 1) : inputs, column]))
            assert recent.inputs == inputs - part.start <= 2 * BLOCK - 1
            assert recent.mae == pytest.approx(mae)
            assert recent.mase == (pytest.approx(mae / naive.mean()) if len(naive) else None)
            assert recent.coverage == (None if inside is None else pytest.approx(inside[part, column].mean()))
            assert targets[target].inputs == inputs
            assert targets[target].mae == pytest.approx(error[:inputs, column].mean())
    engine.close()


def test_each_target_has_its_own_recent_inputs(tmp_path: Path) -> None:
    """Missing values do not count: the recent ones of each target are its last that were present."""
    features = [Feature(name="x", nullable=True), Feature(name="y", nullable=True)]
    model = make_feature_bundle(tmp_path / "models", features, "x", "y", head="gaussian", units=6)
    engine, rng = start_engine(tmp_path / "store", model), np.random.default_rng(0)
    series = rng.normal(10, 2, (STEPS, 2)).astype(np.float32)
    series[rng.random((STEPS, 2)) < [0.1, 0.6]] = np.nan
    written = [[None if np.isnan(value) else float(value) for value in row] for row in series]
    engine.create(T, "tiny", session_id="s")
    outputs = engine.predict("tiny", None, [written], 0)[0].outputs
    error = np.abs(series.astype(np.float64) - previous_predictions(model, outputs)["mean"])
    for start in range(0, STEPS, 60):
        engine.steps.step(T, "s", written[start : start + 60])
    targets, _ = engine.accuracy(engine.sessions.get(T, "s").record)
    assert targets is not None
    for column, target in enumerate("xy"):
        values = series[~np.isnan(series[:, column]), column].astype(np.float64)
        errors, part = error[~np.isnan(error[:, column]), column], window(len(values))
        assert targets[target].recent.inputs == len(values) - part.start
        assert targets[target].recent.mae == pytest.approx(errors[part].mean())
        naive = np.abs(np.diff(values))[part.start - 1 :].mean()
        assert targets[target].recent.mase == pytest.approx(errors[part].mean() / naive)
    engine.close()


def test_recent_hits_are_those_of_the_last_inputs(tmp_path: Path) -> None:
    features = [category("c", 4, nullable=True)]
    model = make_feature_bundle(tmp_path / "models", features, "c", head="categorical", counts=[1, 2, 3, 4], units=6)
    engine = start_engine(tmp_path / "store", model)
    inputs = [int(value) for value in np.random.default_rng(0).integers(4, size=STEPS)]
    engine.create(T, "tiny", session_id="s")
    outputs = engine.predict("tiny", None, [inputs], 0)[0].outputs
    hits = np.array(inputs) == previous_predictions(model, outputs)["top"][:, 0]
    done = 0
    for count in CALLS:
        engine.steps.step(T, "s", inputs[done : done + count])
        done += count
        targets, _ = engine.accuracy(engine.sessions.get(T, "s").record)
        assert targets is not None
        assert targets["c"].hits == pytest.approx(hits[:done].mean())
        recent = targets["c"].recent
        assert recent.inputs == done - window(done).start
        assert recent.hits == pytest.approx(hits[window(done)].mean())
        assert (recent.mae, recent.mase, recent.coverage) == (None, None, None)
    engine.close()


@pytest.mark.parametrize("nominal", [0.8, 0.99])
def test_recent_coverage_of_adaptive_intervals(tmp_path: Path, nominal: float) -> None:
    """The recent coverage counts the last inputs, without those before the first interval that has bounds."""
    model = make_bundle(tmp_path / "models", head="gaussian", features=("x", "y", "z"), targets=("z", "x"))
    engine, series = start_engine(tmp_path / "store", model), draw(1, STEPS, 3, seed=5)[0]
    series *= np.linspace(1, 3, STEPS, dtype=np.float32)[:, np.newaxis]
    engine.create(T, "tiny", session_id="s", interval=nominal)
    rows = []
    uncounted = {0.8: 4, 0.99: 99}[nominal]
    done = 0
    for count in CALLS:
        rows.append(engine.steps.step(T, "s", series[done : done + count].tolist()).outputs)
        done += count
        outputs = np.concatenate(rows)
        _, intervals = engine.accuracy(engine.sessions.get(T, "s").record)
        assert intervals is not None
        actual = series[1:done, [2, 0]]
        inside = (outputs[LOW][:-1] <= actual) & (actual <= outputs[HIGH][:-1])
        for column, target in enumerate(("z", "x")):
            counted = inside[max(uncounted, window(done).start) - 1 :, column]
            expected = pytest.approx(counted.mean()) if len(counted) and done > uncounted else None
            assert intervals.recent_coverage[target] == expected
    engine.close()


def test_recent_accuracy_forgets_an_absurd_value(tmp_path: Path) -> None:
    """The recent MAE has no trace of an input of 1e30 that is not one of the last; that of the whole session has."""
    model = make_bundle(tmp_path / "models", head="point", features=("x", "y", "z"), targets=("z", "x"))
    engine, series = start_engine(tmp_path / "store", model), draw(1, 6 * BLOCK, 3, seed=6)[0]
    series[150, 2] = 1e30
    engine.create(T, "tiny", session_id="s", inputs=series.tolist())
    outputs = engine.predict("tiny", None, [series.tolist()], 0)[0].outputs
    error = np.abs(series[:, 2].astype(np.float64) - previous_predictions(model, outputs)["point"][:, 0])
    targets, _ = engine.accuracy(engine.sessions.get(T, "s").record)
    assert targets is not None
    assert targets["z"].mae == pytest.approx(1e30 / len(series))
    assert targets["z"].recent.mae == pytest.approx(error[window(len(series))].mean())
    engine.close()
