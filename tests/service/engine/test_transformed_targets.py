"""Sessions of a model whose targets are transformed: scores, intervals, forecasts and refusals are in the data's units.

Expected values are computed from the outputs of the model by plain formulas of numpy.
"""

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.inputs import InputArray
from onward.model.manifest import Feature
from onward.model.runner import Outputs
from onward.model.scoring.conformal import RING_SIZE
from onward.model.scoring.layout import ANOMALY, ERROR, HIGH, LOW
from onward.model.transforms import Transform
from onward.service.engine.batching.batch_row import StepRequest
from onward.service.engine.engine import Engine
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.errors import InvalidInputError
from tests.helpers.expected_scores import anomaly_scores, previous_predictions, start_engine
from tests.helpers.recorded_bundles import make_feature_bundle, stepped_outputs

T = "tenant"
FEATURES = (
    Feature(name="x", transform=Transform(kind="log")),
    Feature(name="count", transform=Transform(kind="log1p")),
    Feature(name="y"),
)
HEADS = ["point", "gaussian", "student_t", "quantiles"]
STEPS = 120


@pytest.fixture(scope="module", params=HEADS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with a model of the targets y, which has no transform, and x."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_feature_bundle(folder / "models", FEATURES, "y", "x", head=request.param, cell="gru", units=6)
    started = start_engine(folder / "store", model)
    yield started
    started.close()


def draw(seed: int) -> InputArray:
    """Returns (steps, features) such as the model expects: logarithms have a mean of 10."""
    z = np.random.default_rng(seed).normal(10, 2, (STEPS, 3))
    return np.stack([np.exp(z[:, 0]), np.expm1(z[:, 1]), z[:, 2]], axis=-1).astype(np.float32)


def transformed(predictions: Outputs) -> NDArray[np.float64]:
    """Returns the centres (steps, targets) in transformed units."""
    if "location" in (predictions.dtype.names or ()):
        return predictions["location"].astype(np.float64)
    name = "point" if "point" in (predictions.dtype.names or ()) else "median"
    y, x = predictions[name].astype(np.float64).T
    return np.stack([y, np.log(x)], axis=-1)


def scales(predictions: Outputs) -> NDArray[np.float64]:
    """Returns the units (steps, targets) of errors in transformed units."""
    names = predictions.dtype.names or ()
    if "scale" in names:
        return predictions["scale"].astype(np.float64)
    if "quantiles" not in names:
        return np.ones((len(predictions), 2))
    low, high = (predictions["quantiles"][..., index].astype(np.float64) for index in (0, 2))
    low[:, 1], high[:, 1] = np.log(low[:, 1]), np.log(high[:, 1])
    return (high - low) / 2


def test_errors_and_coverage_are_in_the_units_of_the_data(engine: Engine) -> None:
    model, series = engine.models.named("tiny"), draw(1)
    head = model.manifest.head
    session, _ = engine.create(T, "tiny")
    answers = [engine.steps.step(T, session.session_id, [row]).outputs for row in series.tolist()]
    predictions = previous_predictions(model, stepped_outputs(model, series))
    error = series[:, [2, 0]].astype(np.float64) - predictions[head.outputs[0]]
    np.testing.assert_array_equal(np.concatenate(answers)[ERROR], error.astype(np.float32))
    targets, _ = engine.accuracy(engine.sessions.get(T, session.session_id).record)
    assert targets is not None
    for column, name in enumerate(("y", "x")):
        assert targets[name].mae == pytest.approx(np.abs(error[:, column]).mean())
        if head.kind != "gaussian":
            continue
        reach = NormalDist().inv_cdf(0.9) * scales(predictions)[:, column]
        actual = series[:, [2, 0]].astype(np.float64)[:, column]
        distance = (np.log(actual) if name == "x" else actual) - transformed(predictions)[:, column]
        assert targets[name].coverage == pytest.approx(float((np.abs(distance) <= reach).mean()))


def test_batches_and_chunks_give_the_same_statistics(engine: Engine) -> None:
    """Rows of one step alone, many of them at once, and rows of many steps give the same bits."""
    series = [draw(seed) for seed in range(20)]
    single, chunked = ([engine.create(T, "tiny")[0].session_id for _ in series] for _ in range(2))
    intervals = [engine.create(T, "tiny", interval=0.8)[0].session_id for _ in range(2)]
    for step in range(40):
        engine.steps.step_many(
            T, [StepRequest(name, rows[step : step + 1].tolist()) for name, rows in zip(single, series, strict=True)]
        )
        engine.steps.step(T, intervals[0], series[0][step : step + 1].tolist())
    for name, rows in zip(chunked, series, strict=True):
        engine.steps.step(T, name, rows[:40].tolist())
    engine.steps.step(T, intervals[1], series[0][:40].tolist())
    for left, right in [*zip(single, chunked, strict=True), tuple(intervals)]:
        assert engine.accuracy(engine.sessions.get(T, left).record) == engine.accuracy(
            engine.sessions.get(T, right).record
        )


def test_anomalies_do_not_rise_with_the_level(engine: Engine) -> None:
    """Anomalies compare surprises without the derivative of the transform, which answers and sums include."""
    model, series = engine.models.named("tiny"), draw(5)
    session, _ = engine.create(T, "tiny")
    answers = engine.steps.step(T, session.session_id, series.tolist()).outputs
    compared = answers["surprise"].astype(np.float64)
    if model.manifest.head.score == "negative_log_likelihood":
        compared -= np.log(series[:, 0].astype(np.float64))
    expected = anomaly_scores(compared.astype(np.float32))
    near = np.isclose(np.sort(compared)[1:], np.sort(compared)[:-1], rtol=0, atol=1e-5)
    assert near.sum() <= 3  # ranks of equal surprises depend on rounding
    assert (np.abs(answers[ANOMALY] - np.array(expected, np.float32))[19:] > 1e-6).sum() <= 3


def test_corrected_intervals_reach_as_far_in_transformed_units(engine: Engine) -> None:
    """The bounds are those of scores in transformed units; there are none before 4 scores."""
    model, series = engine.models.named("tiny"), draw(2)
    session, _ = engine.create(T, "tiny", interval=0.8)
    outputs = engine.steps.step(T, session.session_id, series.tolist()).outputs
    played = stepped_outputs(model, series)
    predictions = previous_predictions(model, played)
    actual = series[:, [2, 0]].astype(np.float64)
    actual[:, 1] = np.log(actual[:, 1])
    scores = (np.abs(actual - transformed(predictions)) / scales(predictions)).astype(np.float32)
    centre, scale = transformed(played), scales(played)
    for column in range(2):
        alpha, reach = 0.2, math.inf
        for step in range(STEPS):
            if step >= 4:
                alpha += 0.005 * (0.2 - (scores[step, column] > reach))
            last = np.sort(scores[: step + 1, column][-RING_SIZE:])
            rank = math.ceil((len(last) + 1) * (1 - alpha) - 1e-9)
            reach = float(last[rank - 1]) if rank <= len(last) else math.inf
            for name, sign in ((LOW, -1), (HIGH, 1)):
                found, bound = outputs[name][step, column], centre[step, column] + sign * reach * scale[step, column]
                if math.isinf(reach):
                    assert found == sign * math.inf
                else:
                    assert found == pytest.approx(math.exp(bound) if column else bound, rel=1e-4)


def test_forecasts_by_paths_stay_in_the_domain(engine: Engine) -> None:
    """The first step is the transform of the model's own distribution, and its mean is the model's prediction."""
    model, series = engine.models.named("tiny"), draw(3)
    engine.create(T, "tiny", session_id="paths", inputs=series[:20].tolist())
    last = stepped_outputs(model, series[:20])[-1:]
    name, future = model.manifest.head.outputs[0], series[20:25, 1].tolist()
    if name == "point":
        engine.sessions.delete(T, "paths")
        return
    drawn = engine.forecasts.sample(
        T, "paths", ForecastRequest(6, future=future), samples=400, seed=1, levels=(0.1, 0.5, 0.9)
    )
    assert drawn.mean is not None
    assert drawn.quantiles is not None
    assert (drawn.paths[..., 1] > 0).all()
    assert np.isfinite(drawn.mean).all()
    np.testing.assert_allclose(np.log(drawn.quantiles[0, 1, 1]), transformed(last)[0, 1], rtol=1e-5)
    assert drawn.mean[0, 1] == last[name][0, 1]
    if name == "mean":
        spread = NormalDist().inv_cdf(0.9) * scales(last)[0, 1]
        np.testing.assert_allclose(np.log(drawn.quantiles[0, 1, 2]), transformed(last)[0, 1] + spread, rtol=1e-5)
    else:
        np.testing.assert_allclose(drawn.mean[1:, 1], np.median(drawn.paths[:, 1:, 1], axis=0))
    share = (drawn.paths[:, 0, 1] <= drawn.quantiles[0, 1, 2]).mean()
    assert share == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 400))
    engine.sessions.delete(T, "paths")


def test_values_outside_of_the_domain_are_invalid_and_move_nothing(engine: Engine) -> None:
    """The error names the step, the feature and the value, in all notations; neighbours in a batch advance."""
    session, _ = engine.create(T, "tiny", inputs=draw(4)[:3].tolist())
    good, step = [[5.0, 0.0, -7.0]], engine.steps.step
    for bad, field, message in (
        ([[5.0, 1.0, 2.0], [0.0, 1.0, 2.0]], "inputs[1][0]", "0 (x) is not above 0"),
        ([{"x": 1.0, "count": -1, "y": 2.0}], "inputs[0][1]", "-1 (count) is not above -1"),
        (np.array([[-2.5, 1, 2]], "<f4").tobytes(), "inputs[0][0]", "-2.5 (x) is not above 0"),
        ([[1e-60, 1.0, 2.0]], "inputs[0][0]", "0 (x) is not above 0"),
    ):
        with pytest.raises(InvalidInputError) as refused:
            step(T, session.session_id, bad)
        assert [fault.field for fault in refused.value.faults] == [field]
        assert message in str(refused.value)
        assert "transform log" in str(refused.value)
        assert engine.sessions.get(T, session.session_id).record.step == 3
    neighbour, _ = engine.create(T, "tiny")
    outcomes = engine.steps.step_many(
        T, [StepRequest(session.session_id, [[-1.0, 1.0, 2.0]]), StepRequest(neighbour.session_id, good)]
    )
    assert isinstance(outcomes[0], InvalidInputError)
    assert not isinstance(outcomes[1], Exception)
    assert step(T, session.session_id, good).step == 4
    if engine.models.named("tiny").manifest.can_forecast:
        with pytest.raises(InvalidInputError, match="is not above -1"):
            engine.forecasts.roll(T, session.session_id, ForecastRequest(2, future=[-3.0]))
