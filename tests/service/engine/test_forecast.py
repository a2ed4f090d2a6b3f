"""Forecasts: sample paths compared with closed forms, the answers' fields, and sessions that stay unchanged."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gevent
import numpy as np
import pytest
from flask.testing import FlaskClient

from onward.model import checks, distribution
from onward.model.repository import open_all, open_bundle
from onward.service.app import create_app
from onward.service.engine.batching.batch_row import BatchRow
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import AT_ONCE, in_loop_turns
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.errors import InvalidInputError, NoForecastError, NotFiniteError
from onward.service.http import response_schemas
from onward.service.settings import Settings
from onward.service.store import record as records
from onward.service.store.lmdb import LmdbStore
from onward.service.store.record import Record
from tests.helpers.analytic_models import ar1, markov
from tests.helpers.recorded_bundles import FEATURES, make_bundle
from tests.helpers.reference_loop import ZOO, BareLoop, pulse

T = "tenant"
PHI, SIGMA = 0.8, 0.5
CHANCES = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1], [0.3, 0.3, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]]

Opener = Callable[..., Engine]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """An engine over the models that the test has put into `tmp_path`/models."""
    engines: list[Engine] = []

    def opener(**limits: Any) -> Engine:
        engines.append(Engine(open_all(tmp_path / "models"), LmdbStore(tmp_path / "store"), Limits(**limits)))
        engines[-1].start()
        return engines[-1]

    yield opener
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(
    "write", [lambda at: ar1(at, PHI, SIGMA, name="m"), lambda at: markov(at, CHANCES, "abc", unknown=True, name="m")]
)
def test_analytic_models_are_valid_bundles(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """The bundles of these tests pass the checks of every bundle."""
    write(tmp_path)
    checks.check(open_bundle(tmp_path / "m/1"), steps=40)


def test_paths_have_the_closed_forms_quantiles(tmp_path: Path, opened: Opener) -> None:
    """X' = phi x + sigma e has mean phi^h x, variance sigma^2 (1 - phi^2h) / (1 - phi^2); the first step exactly."""
    ar1(tmp_path / "models", PHI, SIGMA)
    engine, start, samples = opened(), 3.0, 1000
    engine.create(T, "ar1", session_id="s", inputs=[start])
    levels = (0.05, 0.25, 0.5, 0.9, 0.99)
    forecast = engine.forecasts.sample(T, "s", ForecastRequest(24), samples=samples, levels=levels, seed=7)
    assert forecast.mean is not None
    assert forecast.quantiles is not None
    assert (forecast.mean.shape, forecast.quantiles.shape, forecast.paths.shape) == (
        (24, 1),
        (24, 1, 5),
        (samples, 24, 1),
    )
    for ahead in (1, 5, 24):
        mean = PHI**ahead * start
        std = SIGMA * math.sqrt((1 - PHI ** (2 * ahead)) / (1 - PHI**2))
        error = 1e-6 if ahead == 1 else 4 * std / math.sqrt(samples)
        assert forecast.mean[ahead - 1, 0] == pytest.approx(mean, abs=error)
        for position, level in enumerate(levels):
            z = NormalDist().inv_cdf(level)
            error = 4 * std * math.sqrt(level * (1 - level) / samples) / NormalDist().pdf(z) if ahead > 1 else 1e-6
            assert forecast.quantiles[ahead - 1, 0, position] == pytest.approx(mean + std * z, abs=error), (
                ahead,
                level,
            )
    drawn = forecast.paths[:, :, 0]
    assert np.corrcoef(drawn[:, 10], drawn[:, 11])[0, 1] == pytest.approx(PHI, abs=0.08)  # paths, not single steps


def test_the_same_seed_draws_the_same_bits_in_any_batch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live steps and other paths in the same batches do not change a path; another seed draws other paths."""
    inputs = pulse(30)
    engine.create(T, "pulse", session_id="f", inputs=inputs[:10])
    engine.create(T, "pulse", session_id="s")
    alone = engine.forecasts.sample(T, "f", ForecastRequest(20), samples=6, seed=11)
    sizes: list[int] = []
    executor = engine._batchers.by_model[engine.models.named("pulse")].executor
    run = executor.run

    def counted(batch: Sequence[BatchRow]) -> None:
        sizes.append(len(batch))
        run(batch)

    monkeypatch.setattr(executor, "run", counted)
    drawing = [
        gevent.spawn(engine.forecasts.sample, T, "f", ForecastRequest(20), samples=samples, seed=seed)
        for samples, seed in ((6, 11), (40, 11), (6, 12))
    ]
    for row in inputs:
        engine.steps.step(T, "s", [row])
    same, more, second = (greenlet.get() for greenlet in drawing)
    assert same.paths.tobytes() == alone.paths.tobytes()
    assert np.array_equal(same.quantiles, alone.quantiles)  # type: ignore[arg-type]
    assert more.paths[:6].tobytes() == alone.paths.tobytes()  # a path depends on its number, not on the number of paths
    assert not np.isin(second.paths, alone.paths).any()
    assert max(sizes) == 6 + 40 + 6 + 1
    forecast = [engine.forecasts.sample(T, "f", ForecastRequest(2), samples=2) for _ in range(2)]
    assert forecast[0].seed != forecast[1].seed
    again = engine.forecasts.sample(T, "f", ForecastRequest(2), samples=2, seed=forecast[0].seed)
    assert again.paths.tobytes() == forecast[0].paths.tobytes()


def test_a_forecast_after_inputs_changes_nothing(engine: Engine, store: LmdbStore) -> None:
    """A forecast after hypothetical inputs equals one after real inputs, and leaves the record unchanged."""
    inputs = pulse(100)
    engine.create(T, "pulse", session_id="s", inputs=inputs[:10])
    (before,) = store.load_many([records.key(T, "s")])
    assert isinstance(before, Record)
    rolled = engine.forecasts.roll(T, "s", ForecastRequest(7, inputs[10:]))
    drawn = engine.forecasts.sample(T, "s", ForecastRequest(7, inputs[10:]), samples=5, seed=3)
    (after,) = store.load_many([records.key(T, "s")])
    assert isinstance(after, Record)
    assert after.to_bytes() == before.to_bytes()
    assert (rolled.step, drawn.step) == (10, 10)
    engine.steps.step(T, "s", inputs[10:])
    assert (
        engine.forecasts.roll(T, "s", ForecastRequest(7)).outputs["mean"].tobytes() == rolled.outputs["mean"].tobytes()
    )
    later = engine.forecasts.sample(T, "s", ForecastRequest(7), samples=5, seed=3)
    assert later.paths.tobytes() == drawn.paths.tobytes()
    assert np.array_equal(later.quantiles, drawn.quantiles)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["gaussian", "student_t", "quantiles"])
def test_the_first_step_is_exact(tmp_path: Path, opened: Opener, head: str) -> None:
    """The quantiles of the first step are those of the head in closed form, for any paths."""
    model = make_bundle(tmp_path / "models", head=head, features=("x", "y"))
    engine = opened()
    _, answer = engine.create(T, "tiny", session_id="s", inputs=[[11.0, 19.0]])
    levels = (0.01, 0.3, 0.97)
    forecast = engine.forecasts.sample(T, "s", ForecastRequest(3), samples=50, levels=levels, seed=1)
    assert forecast.quantiles is not None
    assert forecast.mean is not None
    head_definition = model.manifest.head
    assert np.array_equal(forecast.quantiles[0], distribution.quantile(head_definition, answer.outputs, levels)[0])
    assert np.array_equal(forecast.mean[0], distribution.mean(head_definition, answer.outputs)[0])
    for position, level in enumerate(levels):
        at = forecast.quantiles[0, :, position]
        assert np.abs((forecast.paths[:, 0] <= at).mean(axis=0) - level).max() < 4 * math.sqrt(0.25 / 50)


def test_a_rollout_takes_future_covariates(tmp_path: Path, opened: Opener) -> None:
    """A rollout equals a bare loop that feeds back predictions in their columns and covariates in the others."""
    make_bundle(tmp_path / "models", features=FEATURES, targets=("z", "x"))
    engine, loop = opened(), BareLoop(tmp_path / "models/tiny/1")
    given = [[10.0, 20.0, 30.0], [12.0, 21.0, 29.0]]
    engine.create(T, "tiny", session_id="s", inputs=given)
    predictions = [loop.run(given)["mean"][-1]]
    future = [22.0, 25.0, 19.0]
    for y in future:
        z, x = predictions[-1].tolist()
        predictions.append(loop.step([x, y, z])["mean"])
    for written in (future, [[y] for y in future], [{"y": y} for y in future], [*future, 1.0]):
        rolled = engine.forecasts.roll(T, "s", ForecastRequest(4, future=written))
        assert rolled.outputs["mean"].tobytes() == np.stack(predictions).tobytes()
    second = engine.forecasts.roll(T, "s", ForecastRequest(4, future=[22.0, 25.0, 20.0]))
    assert np.array_equal(second.outputs["mean"][:3], np.stack(predictions[:3]))
    assert not np.array_equal(second.outputs["mean"][3], predictions[3])
    paths = engine.forecasts.sample(T, "s", ForecastRequest(4, future=future), samples=3, seed=1).paths
    cold = loop_along(tmp_path / "models/tiny/1", given, future, paths[0])
    assert paths.shape == (3, 4, 2)
    again = np.random.default_rng(np.random.SeedSequence(1, spawn_key=(0,)))
    drawn = [row["mean"] + row["std"] * again.standard_normal(2) for row in cold]
    assert np.allclose(paths[0], drawn, rtol=1e-6)


def loop_along(
    bundle: Path, given: list[list[float]], future: list[float], path: np.ndarray[Any, Any]
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Returns the model's predictions along a path (horizon, (z, x)), made by a bare loop."""
    loop = BareLoop(bundle)
    predictions = [{name: rows[-1] for name, rows in loop.run(given).items()}]
    for (z, x), y in zip(path, future, strict=False):
        predictions.append(loop.step([x, y, z]))
    return predictions


def test_frequencies_of_categories_follow_the_chain(tmp_path: Path, opened: Opener) -> None:
    """The frequencies h steps ahead of a Markov chain are the chain's; the unknown category is never drawn."""
    markov(tmp_path / "models", CHANCES, "abc", unknown=True)
    engine = opened()
    engine.create(T, "markov", session_id="s", inputs=["b"])
    forecast = engine.forecasts.sample(T, "s", ForecastRequest(4), samples=1000, seed=5)
    assert forecast.top is not None
    assert forecast.probability is not None
    assert forecast.top[0] == [2, 0, 1, 3]
    assert forecast.probability[0] == pytest.approx([0.7, 0.1, 0.1, 0.1])
    listed = np.array(CHANCES)[:3, :3]
    listed /= listed.sum(axis=1, keepdims=True)
    for ahead in (2, 3, 4):
        chances = np.linalg.matrix_power(listed, ahead)[1]
        found = dict(zip(forecast.top[ahead - 1], forecast.probability[ahead - 1], strict=True))
        assert sorted(found) == [0, 1, 2]
        assert list(found.values()) == sorted(found.values(), reverse=True)
        for position, chance in enumerate(chances):
            assert found[position] == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 1000))


def test_paths_beyond_finite_numbers_are_refused(tmp_path: Path, opened: Opener) -> None:
    """Such a path is refused, also at the last step, which no model sees; a live step beside it is answered."""
    ar1(tmp_path / "models", PHI, 3e38)
    engine = opened()
    for name in "ab":
        engine.create(T, "ar1", session_id=name, inputs=[1.0])
    for horizon in (1, 3):
        drawing = gevent.spawn(engine.forecasts.sample, T, "a", ForecastRequest(horizon), samples=100, seed=1)
        assert engine.steps.step(T, "b", [[2.0]]).outputs["mean"][0, 0] == pytest.approx(2 * PHI)
        with pytest.raises(NotFiniteError):
            drawing.get()


@pytest.fixture
def client(tmp_path: Path, opened: Opener) -> FlaskClient:
    """Sessions `m` of a Markov chain, `p` of points, `c` with a covariate, `g` of the pulse model."""
    models = tmp_path / "models"
    markov(models, CHANCES, "abc", unknown=True)
    make_bundle(models, name="points", head="point")
    make_bundle(models, name="covariate", features=FEATURES, targets=("x",))
    (models / "pulse").symlink_to(ZOO / "pulse")
    made = create_app(Settings(), opened(max_sequences=50, max_steps=500)).test_client()
    for name, model in {"m": "markov", "p": "points", "c": "covariate", "g": "pulse"}.items():
        assert made.post(f"/v1/models/{model}/sessions", json={"session_id": name}).status_code == 201
    return made


@pytest.mark.parametrize(
    ("session", "body", "field", "message"),
    [
        ("m", {"quantiles": [0.5]}, "quantiles", "categories have no order"),
        ("p", {"samples": 5}, "samples", "has no distribution; without this field a forecast feeds back"),
        ("p", {"quantiles": [0.5]}, "quantiles", "has no distribution"),
        ("c", {}, "future", "does not predict y, z; say what they are at 9 steps"),
        ("c", {"samples": 3}, "future", "does not predict y, z"),
        ("c", {"future": [[1, 2]] * 8}, "future", "8 steps of y, z; a horizon of 10 needs 9"),
        ("c", {"future": [[1]] * 9}, "future[0]", "2 numbers (y, z)"),
        ("c", {"future": [[1, "a"]] * 9}, "future[0][1]", "'a' (z) is not a number"),
        ("c", {"future": [[1, True]] * 9}, "future[0][1]", "number"),
        ("c", {"future": [{"y": 1, "x": 2}] * 9}, "future[0].z", "missing"),
        ("g", {"future": [1] * 9}, "future", "predicts all of its features"),
        ("g", {"samples": 51}, "samples", "at most 50"),
        ("g", {"samples": 50, "horizon": 11}, "samples", "50 paths of 11 steps are 550 steps; at most 500 a call"),
        ("g", {"samples": 1}, "samples", "greater than or equal to 2"),
        ("g", {"quantiles": [0.5, 0.5]}, "quantiles", "levels rise"),
        ("g", {"quantiles": [0.0]}, "quantiles[0]", "greater than 0"),
        ("g", {"quantiles": [(position + 1) / 200 for position in range(100)]}, "quantiles", "at most 99"),
        ("g", {"samples": 2, "seed": 2**63}, "seed", "less than"),
        ("g", {"seed": 0}, "seed", "belongs to sample paths"),
        ("g", {"paths": True}, "paths", "belongs to sample paths"),
        ("g", {"inputs": []}, "inputs", "at least 1"),
        ("g", {"inputs": [["a"]]}, "inputs[0][0]", "not a number"),
        ("g", {"horizon": 100_000}, "horizon", "at most 10000"),
    ],
)
def test_refused_forecasts_name_the_field(
    client: FlaskClient, session: str, body: dict[str, Any], field: str, message: str
) -> None:
    """The refusal names the field, and the session does not move."""
    answer = client.post(f"/v1/sessions/{session}/forecast", json={"horizon": 10} | body)
    assert answer.status_code == 422, answer.text
    assert answer.json is not None
    assert answer.json["type"] == "urn:onward:problem:invalid-request"
    assert {error["field"]: error["message"] for error in answer.json["errors"]}[field].count(message) == 1, answer.json


def test_answers_match_their_schema(client: FlaskClient) -> None:
    """Answers have default levels, paths on request and categories by name; samples are absent by default."""

    def forecast_of(session: str, **body: Any) -> dict[str, Any]:
        answer = client.post(f"/v1/sessions/{session}/forecast", json=body)
        assert answer.status_code == 200, answer.text
        response_schemas.ForecastAnswer.model_validate_json(answer.data)
        assert answer.json is not None
        return dict(answer.json)

    assert forecast_of("g", horizon=2).keys() == {"step", "forecast"}
    drawn = forecast_of("g", horizon=2, samples=5)
    assert (drawn["step"], drawn["samples"], drawn["levels"]) == (0, 5, [0.1, 0.5, 0.9])
    assert drawn["forecast"].keys() == {"mean", "quantiles"}
    assert np.array(drawn["forecast"]["mean"]).shape == (2, 1)
    forecast = forecast_of("g", horizon=2, samples=5, seed=drawn["seed"], quantiles=[0.1, 0.7], paths=True)
    assert forecast["forecast"]["mean"] == drawn["forecast"]["mean"]
    assert np.array(forecast["forecast"]["quantiles"]).shape == (2, 1, 2)
    paths = np.array(forecast["forecast"]["paths"])
    assert paths.shape == (5, 2, 1)
    assert np.quantile(paths[:, 1], 0.7) == pytest.approx(forecast["forecast"]["quantiles"][1][0][1])
    assert forecast_of("g", horizon=1, quantiles=[0.5])["samples"] == 50
    words = forecast_of("m", horizon=3, samples=20, seed=1, paths=True)
    assert words["forecast"]["top"][0] == ["a", "b", "c", None]
    assert all(word in "abc" for row in words["forecast"]["top"][1:] for word in row)
    assert {word for path in words["forecast"]["paths"] for (word,) in path} <= set("abc")
    assert [len(path) for path in words["forecast"]["paths"]] == [3] * 20
    point = forecast_of("p", horizon=3, inputs=[[10.0]])
    assert len(point["forecast"]["point"]) == 3


def test_paths_are_made_in_turns_of_the_event_loop() -> None:
    """Other greenlets run before all paths are made, and no path is lost."""
    seen: list[int] = []
    second = gevent.spawn(lambda: seen.append(-1))
    seen.extend(in_loop_turns(range(3 * AT_ONCE)))
    assert [position for position in seen if position >= 0] == [*range(3 * AT_ONCE)]
    assert 0 < seen.index(-1) < 2 * AT_ONCE
    second.get()


def test_predictions_without_a_session_do_not_take_a_future(tmp_path: Path, opened: Opener) -> None:
    """The error names the missing features and the forecast of a session, which takes `future`."""
    make_bundle(tmp_path / "models", features=FEATURES, targets=("x",))
    engine = opened()
    with pytest.raises(NoForecastError, match="does not predict y, z; forecast a session, which takes `future`"):
        engine.predict("tiny", None, [[[1, 2, 3]]], 2)
    engine.create(T, "tiny", session_id="s")
    with pytest.raises(InvalidInputError, match="future"):
        engine.forecasts.roll(T, "s", ForecastRequest(2))
    assert len(engine.forecasts.roll(T, "s", ForecastRequest(1)).outputs) == 1
