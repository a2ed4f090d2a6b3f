"""Accuracy of predictions: the statistics that sessions keep, against plain sums over their whole series."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gevent
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.model.repository import Opened, open_all
from onward.model.runner import StepModel
from onward.model.scoring.anomaly import AnomalyKind
from onward.model.scoring.layout import ANOMALY, ERROR, HIGH, LOW
from onward.service.engine.batching.batch_row import StepRequest, StepResult
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.errors import InvalidInputError
from tests.contracts.test_stores import in_another_process
from tests.helpers.expected_scores import STEPS, anomaly_scores, previous_predictions, start_engine
from tests.helpers.recorded_bundles import category, draw, make_bundle, make_feature_bundle, stepped_outputs
from tests.helpers.reference_loop import ZOO, pulse

T = "tenant"
HEADS = ["point", "gaussian", "student_t", "quantiles"]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """Engines by head, each with a model of two targets and three features."""
    made = {}
    for head in HEADS:
        folder = tmp_path_factory.mktemp(head)
        model = make_bundle(folder / "models", head=head, features=("x", "y", "z"), targets=("z", "x"))
        made[head] = start_engine(folder / "store", model)
    yield made
    for engine in made.values():
        engine.close()


def expected(model: StepModel, series: NDArray[np.float32]) -> dict[str, Any]:
    """Returns the expected scores by target, over the whole series at once. series: (steps, features)."""
    outputs = stepped_outputs(model, series)
    predictions, head = previous_predictions(model, outputs), model.manifest.head
    actual = series[:, [2, 0]].astype(np.float64)
    error = actual - predictions[head.outputs[0]]
    scores: dict[str, Any] = {"error": error, "anomaly": anomaly_scores(outputs["surprise"])}
    inside: NDArray[np.bool_] | None = None
    match head.kind:
        case "gaussian":
            inside = np.abs(error) <= NormalDist().inv_cdf(0.9) * predictions["std"]
        case "student_t":
            cut = [
                float(np.quantile(np.random.default_rng(0).standard_t(df, 10**6), 0.9)) for df in predictions["df"][0]
            ]
            near = np.abs(np.abs(error) / predictions["scale"] - cut) < 0.01  # the cut is of draws, and only so exact
            assert near.mean() < 0.02
            inside = np.abs(error) <= np.array(cut) * predictions["scale"]
            scores["slack"] = near.sum(axis=0)
        case "quantiles":
            inside = (actual >= predictions["quantiles"][..., 0]) & (actual <= predictions["quantiles"][..., 2])
    mae = np.abs(error).mean(axis=0)
    scores["mae"], scores["mase"] = mae, mae / np.abs(np.diff(actual, axis=0)).mean(axis=0)
    scores["coverage"] = None if inside is None else inside.mean(axis=0)
    return scores


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, STEPS - 1), max_size=5), seed=st.integers(0, 5), seeded=st.booleans())
def test_statistics_equal_those_of_the_whole_series(
    engines: dict[str, Engine], head: str, cuts: list[int], seed: int, seeded: bool
) -> None:
    """Calls, chunks, neighbours and processes change no statistic; errors and anomalies are equal to the bit."""
    engine = engines[head]
    model, series = engine.models.named("tiny"), draw(1, STEPS, 3, seed=seed)[0]
    nominal = expected(model, series)
    bounds = [0, *sorted(set(cuts)), STEPS]
    parts = [series[start:end].tolist() for start, end in pairwise(bounds)]
    first = parts.pop(0) if seeded else None
    session, _ = engine.create(T, "tiny", inputs=first)
    neighbour_session, _ = engine.create(T, "tiny")
    second_engine = Engine(
        Opened({"tiny": dict(engine.models.by_name["tiny"])}, []),
        in_another_process(vars(engine)["_store"]),
        Limits(),
    )
    second_engine.start()
    answers = []
    for turn, part in enumerate(parts):
        neighbour = gevent.spawn(
            (engine, second_engine)[turn % 2].steps.step, T, neighbour_session.session_id, series[: turn + 1].tolist()
        )
        answers.append((engine, second_engine)[turn % 2].steps.step(T, session.session_id, part).outputs)
        neighbour.get()
    gevent.killall(vars(second_engine)["_greenlets"])  # both engines share a store
    targets, interval = engine.accuracy(engine.sessions.get(T, session.session_id).record)
    assert interval is None
    assert targets is not None
    for column, target in enumerate(("z", "x")):
        scores = targets[target]
        assert scores.inputs == STEPS
        assert scores.mae == pytest.approx(nominal["mae"][column])
        assert scores.mase == pytest.approx(nominal["mase"][column])
        if nominal["coverage"] is None:
            assert (scores.coverage, scores.level) == (None, None)
        else:
            assert scores.level == 0.8
            slack = nominal.get("slack", np.zeros(2))[column] / STEPS
            assert scores.coverage == pytest.approx(nominal["coverage"][column], abs=slack + 1e-9)
    if answers:
        outputs = np.concatenate(answers)
        assert outputs[ERROR].tobytes() == nominal["error"][-len(outputs) :].astype(np.float32).tobytes()
        assert outputs[ANOMALY].tobytes() == np.array(nominal["anomaly"], np.float32)[-len(outputs) :].tobytes()


@pytest.mark.parametrize(("interval", "anomaly"), [(None, None), (0.9, None), (None, "tail"), (None, "rank")])
def test_stored_statistics_do_not_depend_on_calls(
    engines: dict[str, Engine], interval: float | None, anomaly: AnomalyKind | None
) -> None:
    """The bits are the same however the inputs were divided into calls."""
    engine, series = engines["gaussian"], draw(1, STEPS, 3)[0].tolist()
    stored, answers = set[bytes](), set[bytes]()
    for name, size in (("one", 1), ("some", 7), ("many", 100), ("all", STEPS)):
        session_id = f"{name}-{interval}-{anomaly}"
        engine.create(T, "tiny", session_id=session_id, interval=interval, anomaly=anomaly)
        found = [engine.steps.step(T, session_id, series[at : at + size]).outputs for at in range(0, STEPS, size)]
        answers.add(np.concatenate(found)[ANOMALY].tobytes())
        stored.add(engine.sessions.get(T, session_id).record.accuracy)
    assert len(stored) == len(answers) == 1
    assert stored != {b""}


def test_scoring_does_not_change_predictions(tmp_path: Path) -> None:
    """Scoring changes no bit of the predictions; when it is off, nothing is stored or returned."""
    model = make_bundle(tmp_path / "models")
    on, off = (start_engine(tmp_path / name, model, accuracy=name == "on") for name in ("on", "off"))
    series = draw(1, 60)[0].tolist()
    scores = []
    for engine in (on, off):
        engine.create(T, "tiny", session_id="s", inputs=series[:20])
        scores.append(engine.steps.step(T, "s", series[20:]).outputs)
    assert all(scores[0][name].tobytes() == scores[1][name].tobytes() for name in model.output_dtype.names or ())
    assert scores[1].dtype == model.output_dtype
    record = off.sessions.get(T, "s").record
    assert (record.accuracy, off.accuracy(record)) == (b"", (None, None))
    with pytest.raises(InvalidInputError, match="interval"):
        off.create(T, "tiny", interval=0.9)
    on.close()
    off.close()


def test_stored_answers_with_scores_are_returned_when_scoring_is_off(tmp_path: Path) -> None:
    """A retry gets the first answer's bytes, with errors and intervals, and a row beside it gets its own answer."""
    model, series = make_bundle(tmp_path / "models"), draw(1, 40)[0].tolist()
    engine, many = start_engine(tmp_path / "store", model), list[StepRequest]()
    for name, interval in (("plain", None), ("corrected", 0.8), ("neighbour", None)):
        engine.create(T, "tiny", session_id=name, inputs=series[:30], interval=interval)
        many.append(StepRequest(name, series[30:], None, "r"))
    first = successful(engine.steps.step_many(T, many))
    stored = [engine.sessions.get(T, request.session_id).record.accuracy for request in many]
    engine.close()
    engine = start_engine(tmp_path / "store", model, accuracy=False)
    again = [*many[:2], replace(many[2], request_id="another")]
    second = successful(engine.steps.step_many(T, again))
    assert [result.outputs.tobytes() for result in second[:2]] == [result.outputs.tobytes() for result in first[:2]]
    assert (second[2].step, second[2].outputs.dtype) == (50, model.output_dtype)
    successful(engine.steps.step_many(T, [replace(request, request_id="more") for request in many]))
    assert [engine.sessions.get(T, request.session_id).record.accuracy for request in many] == stored
    engine.close()


def successful(answers: list[StepResult | Exception]) -> list[StepResult]:
    """Returns the results, none of which may be an error."""
    assert not [result for result in answers if isinstance(result, Exception)]
    return [result for result in answers if isinstance(result, StepResult)]


def test_categories_have_hits_and_anomalies_but_no_errors(tmp_path: Path) -> None:
    """The hits of a categorical head count inputs whose category was predicted as the likeliest one."""
    features = [category("c", 4, nullable=True)]
    model = make_feature_bundle(tmp_path / "models", features, "c", head="categorical", counts=[1, 2, 3, 4], units=6)
    engine = start_engine(tmp_path / "store", model)
    rng = np.random.default_rng(0)
    inputs: list[Any] = [None if value == 4 else int(value) for value in rng.integers(5, size=200)]
    engine.create(T, "tiny", session_id="s")
    outputs = np.concatenate(
        [engine.steps.step(T, "s", inputs[:1]).outputs, engine.steps.step(T, "s", inputs[1:]).outputs]
    )
    predictions = np.concatenate([model.last_prediction(model.layout.initial(1))["top"], outputs["top"][:-1]])[:, 0]
    present = [step for step, value in enumerate(inputs) if value is not None]
    targets, _ = engine.accuracy(engine.sessions.get(T, "s").record)
    assert targets is not None
    assert targets["c"].inputs == len(present)
    assert targets["c"].hits == pytest.approx(np.mean([inputs[step] == predictions[step] for step in present]))
    assert ERROR not in (outputs.dtype.names or ())
    scores = np.full(200, np.nan, np.float32)
    scores[present] = anomaly_scores(outputs["surprise"][present])
    assert outputs[ANOMALY].tobytes() == scores.tobytes()
    with pytest.raises(InvalidInputError, match="interval"):
        engine.create(T, "tiny", interval=0.9)
    engine.close()


def test_a_missing_input_is_not_scored(tmp_path: Path) -> None:
    """A missing input has no error and no anomaly, is not in the ring, and the value before it stays the last one."""
    features = [Feature(name="x", nullable=True), Feature(name="y", nullable=True)]
    model = make_feature_bundle(tmp_path / "models", features, "x", "y", head="gaussian", units=6)
    engine = start_engine(tmp_path / "store", model)
    series = np.random.default_rng(0).normal(10, 2, (200, 2)).astype(np.float32)
    series[np.random.default_rng(1).random((200, 2)) < 0.2] = np.nan
    written = [[None if np.isnan(value) else float(value) for value in row] for row in series]
    engine.create(T, "tiny", session_id="s")
    outputs = np.concatenate(
        [engine.steps.step(T, "s", written[start:end]).outputs for start, end in ((0, 3), (3, 4), (4, 200))]
    )
    error = series.astype(np.float64) - previous_predictions(model, outputs)["mean"]
    assert outputs[ERROR].tobytes() == error.astype(np.float32).tobytes()
    whole = ~np.isnan(series).any(axis=1)
    scores = np.full(200, np.nan, np.float32)
    scores[whole] = anomaly_scores(outputs["surprise"][whole])
    assert outputs[ANOMALY].tobytes() == scores.tobytes()
    targets, _ = engine.accuracy(engine.sessions.get(T, "s").record)
    assert targets is not None
    for column, target in enumerate("xy"):
        present = series[~np.isnan(series[:, column]), column].astype(np.float64)
        mae = np.nanmean(np.abs(error[:, column]))
        assert targets[target].inputs == len(present)
        assert targets[target].mae == pytest.approx(mae)
        assert targets[target].mase == pytest.approx(mae / np.abs(np.diff(present)).mean())
    engine.close()


def test_a_retry_gets_the_same_bytes(engines: dict[str, Engine]) -> None:
    """The answer of a retry has the errors, anomalies and intervals of the first answer, whatever steps came since."""
    engine, series = engines["student_t"], draw(1, 60, 3)[0].tolist()
    engine.create(T, "tiny", session_id="retry", interval=0.8)
    first = [engine.steps.step(T, "retry", series[at : at + 6], request_id=f"r{at}") for at in range(0, 60, 6)]
    again = [engine.steps.step(T, "retry", series[at : at + 6], request_id=f"r{at}") for at in range(0, 60, 6)]
    assert [result.outputs.tobytes() for result in again] == [result.outputs.tobytes() for result in first]
    assert {LOW, HIGH, ERROR, ANOMALY} <= set(again[0].outputs.dtype.names or ())


def test_forks_keep_and_rewinds_restore_the_statistics(tmp_path: Path) -> None:
    """A fork has the same sums. After a rewind the sums are, to the bit, as if the later steps had never been."""
    model = make_bundle(tmp_path / "models")
    engine = start_engine(tmp_path / "store", model, history=20)
    series = draw(1, 80)[0].tolist()
    stored = []
    options: list[tuple[float | None, AnomalyKind | None]] = [(None, None), (0.9, None), (None, "tail")]
    for interval, anomaly in options:
        session, _ = engine.create(T, "tiny", interval=interval, anomaly=anomaly)
        name = session.session_id
        for step in range(80):
            engine.steps.step(T, name, series[step : step + 1])
            stored.append(engine.sessions.get(T, name).record.accuracy)
        assert engine.sessions.fork(T, name, None, None).record.accuracy == stored[-1]
        for back in (75, 63):
            assert engine.history.rewind(T, name, back).record.accuracy == stored[-80 + back - 1]
        engine.steps.step(T, name, series[63:])
        assert engine.sessions.get(T, name).record.accuracy == stored[-1]
        assert engine.history.migrate(T, name, None)[0].record.accuracy != stored[-1]
        _, moved = engine.accuracy(engine.sessions.get(T, name).record)
        assert (moved and moved.wanted) == interval
        assert engine.anomaly_kind(engine.sessions.get(T, name).record) == (anomaly or "run")
    engine.close()


def test_rows_of_no_session_are_not_scored(tmp_path: Path) -> None:
    """Stateless predictions and forecasts have the model's outputs alone, also beside sessions' rows."""
    engine = start_engine(tmp_path, open_all(ZOO).models["pulse"][1])
    engine.create(T, "pulse", session_id="s")
    stepping = gevent.spawn(engine.steps.step, T, "s", pulse(3))
    (predicted,) = engine.predict("pulse", None, [pulse(3)], 2)
    assert ERROR in (stepping.get().outputs.dtype.names or ())
    plain = engine.models.named("pulse").output_dtype
    assert predicted.outputs.dtype == plain
    assert engine.forecasts.roll(T, "s", ForecastRequest(3)).outputs.dtype == plain
    engine.close()
