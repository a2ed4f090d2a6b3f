"""Data with a large offset train, predict and are scored like the same data without it."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

import onward
from onward.client.local import LocalSession
from onward.client.results import Prediction
from onward.model.repository import open_all
from onward.model.scoring.layout import ERROR
from onward.service.engine.batching.batch_row import StepRequest, StepResult
from onward.service.engine.engine import Engine, Limits
from onward.service.http.step_encoding import encode_step
from onward.service.store.lmdb import LmdbStore
from onward.training import config
from onward.training.evaluation import evaluate_bundle
from onward.training.report import report_table
from onward.training.run import train

STEPS = 500
Floats = NDArray[np.floating[Any]]


class Sibling(NamedTuple):
    """Data without their offset, the offset, and the keys of the configuration."""

    values: Floats
    offset: float
    model: dict[str, Any]
    data: dict[str, Any]


def wave(size: float, noise: float) -> Floats:
    rng, steps = np.random.default_rng(0), np.arange(STEPS)
    return size * np.sin(steps / 4) + rng.normal(0, noise, STEPS)


SIBLINGS = {
    "seconds": Sibling(np.round(wave(20, 0.5), 3), 1.7e9, {"head": "gaussian"}, {}),
    "whole seconds, differenced": Sibling(
        np.floor(wave(20, 0.5) + 3.0 * np.arange(STEPS)), 1.7e9, {"head": "student_t"}, {"changes": ["x"]}
    ),
    "microseconds": Sibling(np.floor(wave(2e4, 500)), 1.7e15, {"head": "quantiles", "cell": "rnn_tanh"}, {}),
    "kilowatt hours": Sibling(
        np.round(wave(0.02, 0.005) + 0.01 * np.arange(STEPS), 3), 1e7, {"head": "quantiles"}, {"changes": ["x"]}
    ),
    "degrees": Sibling(np.round(wave(1e-4, 1e-6), 7), 52.52, {"head": "point", "loss": "huber"}, {}),
    "prices": Sibling(np.round(wave(1, 0.1), 2), 1e5, {"head": "student_t"}, {}),
}


def trained(folder: Path, sibling: Sibling, offset: float) -> Path:
    """Trains a small model on the data with that offset; returns its bundle."""
    folder.mkdir()
    values = sibling.offset + sibling.values - (sibling.offset - offset)  # rounded alike with each offset
    (folder / "t.csv").write_text("x\n" + "\n".join(map(repr, values.tolist())))
    settings = {
        "name": "t",
        "data": {"path": "t.csv", "targets": ["x"], "horizon": 4, **sibling.data},
        "model": {"cell": "gru", "units": 6, **sibling.model},
        "train": {"epochs": 3, "window": 40, "batch": 4, "seed": 1, "learning_rate": 0.01},
        "output": {"repository": "models"},
    }
    (folder / "t.toml").write_text(toml(settings))
    bundle, _ = train(config.read(folder / "t.toml"), quiet=True)
    return bundle


def toml(settings: dict[str, Any]) -> str:
    tables = {name: value for name, value in settings.items() if isinstance(value, dict)}
    lines = [f"{name} = {written(value)}" for name, value in settings.items() if name not in tables]
    return "\n".join(lines + [f"[{name}]\n{toml(table)}" for name, table in tables.items()])


def written(value: Any) -> str:
    return repr(value).replace("'", '"')


@pytest.mark.parametrize("name", SIBLINGS)
def test_an_offset_changes_nothing_but_the_values(name: str, tmp_path: Path) -> None:
    """Errors, coverage, surprises and forecasts differ by less than a thousandth of the error."""
    sibling = SIBLINGS[name]
    plain, double = (onward.load(trained(tmp_path / f"{offset}", sibling, offset)) for offset in (0.0, sibling.offset))
    assert (plain.model.manifest.dtype, double.model.manifest.dtype) == ("float32", "float64")
    of_plain, of_double = (cast("dict[str, Any]", model.model.manifest.metrics) for model in (plain, double))
    error = of_plain["targets"]["x"]["model"]["mae"]
    for measure in {"mae", "rmse", "mase", "crps", "coverage_80"} & of_plain["targets"]["x"]["model"].keys():
        for method in ("model", "last_value", "drift", "mean") if measure in {"mae", "rmse", "mase"} else ("model",):
            expected = of_plain["targets"]["x"][method][measure]
            assert of_double["targets"]["x"][method][measure] == pytest.approx(expected, rel=1e-3)
    assert of_double["mean_surprise"] == pytest.approx(of_plain["mean_surprise"], abs=1e-3)
    ahead = [found["horizons"]["targets"]["x"]["model"]["mae"] for found in (of_plain, of_double)]
    assert ahead[1] == pytest.approx(ahead[0], rel=1e-3)
    assert "in double precision" in report_table.text(double.model.manifest)
    assert "in double precision" not in report_table.text(plain.model.manifest)
    with_offset = sibling.offset + sibling.values
    values = with_offset - sibling.offset
    same_sessions(plain.session(), double.session(), values, with_offset, offset=sibling.offset, error=error)


def same_sessions(
    plain: LocalSession, double: LocalSession, values: Floats, with_offset: Floats, *, offset: float, error: float
) -> None:
    """Asserts that both sessions predict, score and forecast alike, to a thousandth of the error."""
    first, second = plain.steps(values), double.steps(with_offset)
    for output in first:
        moved = second[output] - offset * (output in {"mean", "point", "median", "quantiles"})
        assert moved == pytest.approx(first[output], abs=1e-3 * error, rel=1e-3)
    assert second.error == pytest.approx(first.error, abs=1e-3 * error)
    assert second.surprise == pytest.approx(first.surprise, abs=5e-3)
    accuracies = [session.info().accuracy for session in (plain, double)]
    scores = [accuracy["x"] for accuracy in accuracies if accuracy is not None]
    assert scores[1].mae == pytest.approx(scores[0].mae, rel=1e-3)
    assert scores[1].mase == pytest.approx(scores[0].mase, rel=1e-3)
    assert scores[1].coverage == pytest.approx(scores[0].coverage, abs=0.005)
    ahead, later = plain.forecast(4), double.forecast(4)
    name = next(iter(ahead))
    assert later[name] - offset == pytest.approx(ahead[name], abs=1e-3 * error)
    if name != "point":
        drawn = [session.forecast(3, samples=20, seed=1, paths=True) for session in (plain, double)]
        assert drawn[1]["paths"] - offset == pytest.approx(drawn[0]["paths"], abs=5e-3 * error)
        assert drawn[1]["quantiles"] - offset == pytest.approx(drawn[0]["quantiles"], abs=5e-3 * error)


def test_a_bundle_is_evaluated_as_it_was_trained(tmp_path: Path) -> None:
    """The evaluation of the same table gives the same metrics, in the precision of the bundle."""
    sibling = SIBLINGS["seconds"]
    model = onward.load(trained(tmp_path / "t", sibling, sibling.offset)).model
    assert evaluate_bundle.measure(model, tmp_path / "t" / "t.csv").metrics == model.manifest.metrics


@pytest.mark.parametrize("history", [0, 50])
def test_a_service_answers_as_the_session_in_process(history: int, tmp_path: Path) -> None:
    """Steps of one row, of many rows as columns or not, and after a rewind have the bits of `onward.load`."""
    sibling = SIBLINGS["whole seconds, differenced"]
    bundle = trained(tmp_path / "t", sibling, sibling.offset)
    inputs = [[value] for value in (sibling.offset + sibling.values[:40]).tolist()]
    local = onward.load(bundle).session()
    expected = [local.step(step) for step in inputs]
    engine = Engine(open_all(bundle.parents[1]), LmdbStore(tmp_path), Limits(history=history))
    engine.start()
    names = [f"s{number}" for number in range(12)]
    for name in names:
        engine.create("tenant", "t", session_id=name, inputs=inputs[:10])
    for at in range(10, 20):
        results = engine.steps.step_many("tenant", [StepRequest(name, [inputs[at]]) for name in names])
        assert [bits(result) for result in results] == [bits_of(expected[at])] * len(names)
    result = engine.steps.step("tenant", "s0", [inputs[20]])
    assert bits(result) == bits_of(expected[20])
    assert orjson.loads(encode_step(result))["predictions"]["mean"] == [expected[20]["mean"].tolist()]
    engine.steps.step("tenant", "s0", inputs[21:30])
    if history:
        engine.history.rewind("tenant", "s0", 25)
        assert bits(engine.steps.step("tenant", "s0", [inputs[25]])) == bits_of(expected[25])
    engine.close()


def bits(result: StepResult | Exception) -> dict[str, bytes]:
    assert isinstance(result, StepResult)
    return {name: result.outputs[name].tobytes() for name in ("mean", "scale", "df", "surprise", ERROR)}


def bits_of(prediction: Prediction) -> dict[str, bytes]:
    assert prediction.error is not None
    found = {name: values.tobytes() for name, values in prediction.items()}
    return found | {"surprise": np.float64(prediction.surprise).tobytes(), ERROR: prediction.error.tobytes()}
