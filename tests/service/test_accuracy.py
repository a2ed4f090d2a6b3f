"""What a session says of its own predictions, against plain sums over its whole series."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gevent
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.manifest import Feature
from model.repository import Opened, open_all
from model.runner import Outputs, StepModel
from service.engine.accuracy import Accuracy
from service.engine.conformal import EMPTY, GAMMA, HELD, LEAST, anomalies, anomalies_of_rows
from service.engine.engine import Engine, Limits
from service.engine.ledger import ANOMALY, ERROR, HIGH, LOW
from service.engine.origin import Ahead
from service.errors import InvalidInputError
from service.http.operations import rows
from service.http.reply import encode
from service.sessions.lmdb import LmdbStore
from tests.bundles import draw, make_bundle
from tests.contracts.test_stores import beside
from tests.kinds import category, export, network, played, signature
from tests.reference import ZOO, pulse
from training.nets import Signature

T = "tenant"
HEADS = ["point", "gaussian", "student_t", "quantiles"]
STEPS = 330


def serving(folder: Path, *models: StepModel, **limits: Any) -> Engine:
    opened = Opened({model.manifest.name: {model.manifest.version: model} for model in models}, [])
    engine = Engine(opened, LmdbStore(folder), Limits(**limits))
    engine.start()
    return engine


def before(model: StepModel, outputs: Outputs) -> Outputs:
    """(steps,) what was said before each input, of outputs after each."""
    said = model.last_prediction(model.layout.initial(len(outputs)))
    for name in model.manifest.head.outputs:
        said[name][1:] = outputs[name][:-1]
    return said


def anomaly(surprise: NDArray[np.float32]) -> list[float]:
    """One by one, from a list of what came before."""
    told = []
    for step, one in enumerate(surprise):
        last = surprise[max(0, step - HELD) : step]
        p = (1 + sum(float(other) >= float(one) for other in last)) / (len(last) + 1)
        told.append(1 - p if len(last) >= LEAST else math.nan)
    return told


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """By head, with two targets of three features; each engine has another beside it, on the same store."""
    made = {}
    for head in HEADS:
        folder = tmp_path_factory.mktemp(head)
        model = make_bundle(folder / "models", head=head, features=("x", "y", "z"), targets=("z", "x"))
        made[head] = serving(folder / "store", model)
    yield made
    for engine in made.values():
        engine.close()


def expected(model: StepModel, series: NDArray[np.float32]) -> dict[str, Any]:
    """By target, over the whole series at once. series: (steps, features)."""
    outputs = played(model, series)
    said, head = before(model, outputs), model.manifest.head
    actual = series[:, [2, 0]].astype(np.float64)
    error = actual - said[head.outputs[0]]
    told: dict[str, Any] = {"error": error, "anomaly": anomaly(outputs["surprise"])}
    inside: NDArray[np.bool_] | None = None
    match head.kind:
        case "gaussian":
            inside = np.abs(error) <= NormalDist().inv_cdf(0.9) * said["std"]
        case "student_t":
            cut = [float(np.quantile(np.random.default_rng(0).standard_t(df, 10**6), 0.9)) for df in said["df"][0]]
            near = np.abs(np.abs(error) / said["scale"] - cut) < 0.01  # the cut is of draws, and only so exact
            assert near.mean() < 0.02
            inside = np.abs(error) <= np.array(cut) * said["scale"]
            told["slack"] = near.sum(axis=0)
        case "quantiles":
            inside = (actual >= said["quantiles"][..., 0]) & (actual <= said["quantiles"][..., 2])
    mae = np.abs(error).mean(axis=0)
    told["mae"], told["mase"] = mae, mae / np.abs(np.diff(actual, axis=0)).mean(axis=0)
    told["coverage"] = None if inside is None else inside.mean(axis=0)
    return told


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, STEPS - 1), max_size=5), seed=st.integers(0, 5), seeded=st.booleans())
def test_sums_are_those_of_the_whole_series(
    engines: dict[str, Engine], head: str, cuts: list[int], seed: int, seeded: bool
) -> None:
    """Whatever the calls, chunks, neighbours and processes; errors and anomalies in the answers are so to the bit."""
    engine = engines[head]
    model, series = engine.models.named("tiny"), draw(1, STEPS, 3, seed=seed)[0]
    wanted = expected(model, series)
    places = [0, *sorted(set(cuts)), STEPS]
    parts = [series[start:end].tolist() for start, end in pairwise(places)]
    first = parts.pop(0) if seeded else None
    session, _ = engine.create(T, "tiny", inputs=first)
    other, _ = engine.create(T, "tiny")
    elsewhere = Engine(
        Opened({"tiny": dict(engine.models.by_name["tiny"])}, []),
        beside(vars(engine)["_store"]),
        Limits(),
    )
    elsewhere.start()
    answers = []
    for turn, part in enumerate(parts):
        neighbour = gevent.spawn(
            (engine, elsewhere)[turn % 2].steps.one, T, other.session_id, series[: turn + 1].tolist()
        )
        answers.append((engine, elsewhere)[turn % 2].steps.one(T, session.session_id, part).outputs)
        neighbour.get()
    gevent.killall(vars(elsewhere)["_greenlets"])  # its store is the other's too
    targets, interval = engine.accuracy(engine.lives.session(T, session.session_id).record)
    assert interval is None
    assert targets is not None
    for place, target in enumerate(("z", "x")):
        told = targets[target]
        assert told.inputs == STEPS
        assert told.mae == pytest.approx(wanted["mae"][place])
        assert told.mase == pytest.approx(wanted["mase"][place])
        if wanted["coverage"] is None:
            assert (told.coverage, told.level) == (None, None)
        else:
            assert told.level == 0.8
            slack = wanted.get("slack", np.zeros(2))[place] / STEPS
            assert told.coverage == pytest.approx(wanted["coverage"][place], abs=slack + 1e-9)
    if answers:
        outputs = np.concatenate(answers)
        assert outputs[ERROR].tobytes() == wanted["error"][-len(outputs) :].astype(np.float32).tobytes()
        assert outputs[ANOMALY].tobytes() == np.array(wanted["anomaly"], np.float32)[-len(outputs) :].tobytes()


def test_what_is_kept_does_not_depend_on_calls(engines: dict[str, Engine]) -> None:
    """The same bits however the inputs were cut, and beside whatever rows."""
    engine, series = engines["gaussian"], draw(1, STEPS, 3)[0].tolist()
    for name, size in (("one", 1), ("some", 7), ("many", 100), ("all", STEPS)):
        engine.create(T, "tiny", session_id=name)
        for start in range(0, STEPS, size):
            engine.steps.one(T, name, series[start : start + size])
    kept = {engine.lives.session(T, name).record.accuracy for name in ("one", "some", "many", "all")}
    assert len(kept) == 1
    assert kept != {b""}


@pytest.mark.parametrize("head", [*HEADS, "categorical", "label"])
def test_rows_counted_together_have_the_bits_of_rows_counted_alone(engines: dict[str, Engine], head: str) -> None:
    """Answers and what is kept, step by step, of many rows and of each by itself."""
    if head in HEADS:
        model, inputs = engines[head].models.named("tiny"), draw(7, 40, 3)
    else:
        spoken = signature([category("c", 4)], "c") if head == "categorical" else labelled()
        model = export(network(spoken, head=head, counts=[1, 2, 3, 4], units=6))
        inputs = np.random.default_rng(0).integers(4, size=(7, 40, 1)).astype(np.float32)
    counted, state = Accuracy(model), model.layout.initial(7)
    together: list[bytes | None] = [b""] * 7
    alone: list[bytes | None] = [b""] * 7
    for step in range(40):
        now = inputs[:, step : step + 1]
        outputs, after = model.run(now, np.ones(7, np.int32), state)
        told, together = map(list, counted.score(together, now, [1] * 7, state, outputs))
        for row in range(7):
            of = slice(row, row + 1)
            (one,), (alone[row],) = counted.score([alone[row]], now[of], [1], state[of], outputs[of])
            assert one.tobytes() == told[row].tobytes()
        assert together == alone
        state = after


def labelled() -> Signature:
    """Of a head `label` over four classes."""
    return signature([category("c", 4)], "kind", classes=("p", "q", "r", "s"))


def test_predictions_are_what_they_were(tmp_path: Path) -> None:
    """Counting changes no bit of them, and where it is off nothing is kept or told."""
    model = make_bundle(tmp_path / "models")
    on, off = (serving(tmp_path / name, model, accuracy=name == "on") for name in ("on", "off"))
    series = draw(1, 60)[0].tolist()
    told = []
    for engine in (on, off):
        engine.create(T, "tiny", session_id="s", inputs=series[:20])
        told.append(engine.steps.one(T, "s", series[20:]).outputs)
    assert all(told[0][name].tobytes() == told[1][name].tobytes() for name in model.output_dtype.names or ())
    assert told[1].dtype == model.output_dtype
    record = off.lives.session(T, "s").record
    assert (record.accuracy, off.accuracy(record)) == (b"", (None, None))
    with pytest.raises(InvalidInputError, match="interval"):
        off.create(T, "tiny", interval=0.9)
    on.close()
    off.close()


def test_hits_of_categories_and_labels_have_none(tmp_path: Path) -> None:
    """A categorical head is right when its likeliest category comes; a label's predicts no input, and has anomalies."""
    spoken = signature([category("c", 4, nullable=True)], "c")
    model = export(network(spoken, head="categorical", counts=[1, 2, 3, 4], units=6))
    engine = serving(tmp_path, model)
    rng = np.random.default_rng(0)
    inputs: list[Any] = [None if one == 4 else int(one) for one in rng.integers(5, size=200)]
    engine.create(T, "tiny", session_id="s")
    outputs = np.concatenate(
        [engine.steps.one(T, "s", inputs[:1]).outputs, engine.steps.one(T, "s", inputs[1:]).outputs]
    )
    said = np.concatenate([model.last_prediction(model.layout.initial(1))["top"], outputs["top"][:-1]])[:, 0]
    there = [step for step, one in enumerate(inputs) if one is not None]
    targets, _ = engine.accuracy(engine.lives.session(T, "s").record)
    assert targets is not None
    assert targets["c"].inputs == len(there)
    assert targets["c"].hits == pytest.approx(np.mean([inputs[step] == said[step] for step in there]))
    assert ERROR not in (outputs.dtype.names or ())
    told = np.full(200, np.nan, np.float32)
    told[there] = anomaly(outputs["surprise"][there])
    assert outputs[ANOMALY].tobytes() == told.tobytes()
    with pytest.raises(InvalidInputError, match="interval"):
        engine.create(T, "tiny", interval=0.9)
    engine.close()


def test_a_missing_input_is_not_scored(tmp_path: Path) -> None:
    """It has no error and no anomaly, is no part of the ring, and the last true value stays the one before it."""
    spoken = signature([Feature(name="x", nullable=True), Feature(name="y", nullable=True)], "x", "y")
    model = export(network(spoken, head="gaussian", units=6))
    engine = serving(tmp_path, model)
    series = np.random.default_rng(0).normal(10, 2, (200, 2)).astype(np.float32)
    series[np.random.default_rng(1).random((200, 2)) < 0.2] = np.nan
    written = [[None if np.isnan(value) else float(value) for value in row] for row in series]
    engine.create(T, "tiny", session_id="s")
    outputs = np.concatenate(
        [engine.steps.one(T, "s", written[start:end]).outputs for start, end in ((0, 3), (3, 4), (4, 200))]
    )
    error = series.astype(np.float64) - before(model, outputs)["mean"]
    assert outputs[ERROR].tobytes() == error.astype(np.float32).tobytes()
    whole = ~np.isnan(series).any(axis=1)
    told = np.full(200, np.nan, np.float32)
    told[whole] = anomaly(outputs["surprise"][whole])
    assert outputs[ANOMALY].tobytes() == told.tobytes()
    targets, _ = engine.accuracy(engine.lives.session(T, "s").record)
    assert targets is not None
    for place, target in enumerate("xy"):
        there = series[~np.isnan(series[:, place]), place].astype(np.float64)
        mae = np.nanmean(np.abs(error[:, place]))
        assert targets[target].inputs == len(there)
        assert targets[target].mae == pytest.approx(mae)
        assert targets[target].mase == pytest.approx(mae / np.abs(np.diff(there)).mean())
    engine.close()


def test_a_retry_gets_the_same_bytes(engines: dict[str, Engine]) -> None:
    """Errors, anomalies and intervals are of the answer, and a retry's answer is the first's, whatever came since."""
    engine, series = engines["student_t"], draw(1, 60, 3)[0].tolist()
    engine.create(T, "tiny", session_id="retry", interval=0.8)
    first = [engine.steps.one(T, "retry", series[at : at + 6], request_id=f"r{at}") for at in range(0, 60, 6)]
    again = [engine.steps.one(T, "retry", series[at : at + 6], request_id=f"r{at}") for at in range(0, 60, 6)]
    assert [one.outputs.tobytes() for one in again] == [one.outputs.tobytes() for one in first]
    assert {LOW, HIGH, ERROR, ANOMALY} <= set(again[0].outputs.dtype.names or ())


def noise(model: StepModel, steps: int, rng: np.random.Generator, spread: Callable[[int], float]) -> list[list[float]]:
    """A series that the model predicts as well as it believes, but for `spread` of each step: 1 is as it believes."""
    state, told = model.layout.initial(1), []
    for step in range(steps):
        said = model.last_prediction(state)
        value = said["mean"] + said["std"] * rng.normal() * spread(step)
        _, state = model.run_row(value.astype(np.float32), state)
        told.append([float(np.float32(value[0, 0]))])
    return told


def test_ties_count_against_an_anomaly() -> None:
    """What is as large as what came is not unusual; one by one, many at once and of many rows."""
    scores = np.random.default_rng(0).integers(6, size=400).astype(np.float32)
    expected = np.array(anomaly(scores))
    told, ring = anomalies(EMPTY, 0, scores.tolist())
    np.testing.assert_array_equal(told, expected)
    rings, single, found = np.frombuffer(EMPTY * 2, np.float32).reshape(2, -1).copy(), EMPTY, list[float]()
    for held, score in enumerate(scores):
        both = anomalies_of_rows(rings, np.full(2, float(held)), np.full(2, score))
        (one,), single = anomalies(single, held, [float(score)])
        np.testing.assert_array_equal(both, [one, one])
        found.append(one)
    np.testing.assert_array_equal(found, expected)
    assert ring == single == rings[1].tobytes()


def test_anomalies_are_calibrated(tmp_path: Path) -> None:
    """Where every input is as unusual as any other, 5% have 0.95 or more and 1% at most 0.99; an outlier has it."""
    model = make_bundle(tmp_path / "models")
    engine = serving(tmp_path / "store", model)
    series = noise(model, 6000, np.random.default_rng(0), lambda _: 1.0)
    engine.create(T, "tiny", session_id="s")
    told = engine.steps.one(T, "s", series).outputs[ANOMALY]
    assert np.isnan(told[:LEAST]).all()
    assert not np.isnan(told[LEAST:]).any()
    error = 4 * math.sqrt(0.05 * 0.95 / 6000)  # neighbours share most of a ring, and so some more
    assert 0.05 - error < float((told[LEAST:] >= np.float32(0.95)).mean()) < 0.05 + error
    assert float((told[LEAST:] >= np.float32(0.99)).mean()) < 0.01 + error / 2
    assert engine.steps.one(T, "s", [[series[-1][0] + 100]]).outputs[ANOMALY][0] > 0.99
    engine.close()


def test_corrected_intervals_hold_their_share_when_noise_triples(tmp_path: Path) -> None:
    """The model's own interval loses what it should hold, the corrected one does not, in any 1000 inputs after it."""
    model = make_bundle(tmp_path / "models")
    engine = serving(tmp_path / "store", model)
    series = noise(model, 5000, np.random.default_rng(0), lambda step: 3.0 if step >= 2000 else 1.0)
    engine.create(T, "tiny", session_id="s", interval=0.8)
    outputs = np.concatenate(
        [engine.steps.one(T, "s", series[start : start + 500]).outputs for start in range(0, 5000, 500)]
    )
    actual = np.array(series[1:])[:, 0]
    own = before(model, outputs)[1:]
    inside = np.abs(actual - own["mean"][:, 0]) <= NormalDist().inv_cdf(0.9) * own["std"][:, 0]
    held = (outputs[LOW][:-1, 0] <= actual) & (actual <= outputs[HIGH][:-1, 0])
    assert inside[1000:2000].mean() == pytest.approx(0.8, abs=0.03)
    assert np.isinf(outputs[HIGH][0, 0])
    for start in range(2000, 4000, 500):
        assert inside[start : start + 1000].mean() < 0.45
    for start in range(200, 4000, 200):
        assert held[start : start + 1000].mean() == pytest.approx(0.8, abs=0.02)
    _, interval = engine.accuracy(engine.lives.session(T, "s").record)
    assert interval is not None
    assert interval.wanted == 0.8
    assert interval.coverage["x"] == pytest.approx((held.sum() + 1) / 5000)
    assert 0 < interval.alpha["x"] < 1
    engine.close()


@pytest.mark.parametrize("head", HEADS)
def test_intervals_are_the_papers(engines: dict[str, Engine], head: str) -> None:
    """Gibbs and Candes 2021, equation 2, with the quantile of the last 256 scores, in a loop over lists."""
    engine, series = engines[head], draw(1, STEPS, 3, seed=9)[0]
    model = engine.models.named("tiny")
    session, _ = engine.create(T, "tiny", interval=0.9, inputs=series[:40].tolist())
    outputs = engine.steps.one(T, session.session_id, series[40:].tolist()).outputs
    played_all = played(model, series)
    said = before(model, played_all)
    spread: Callable[[Outputs], NDArray[np.float32]] = {
        "point": lambda told: np.ones_like(told["point"]),
        "gaussian": lambda told: told["std"],
        "student_t": lambda told: told["scale"],
        "quantiles": lambda told: (told["quantiles"][..., 2] - told["quantiles"][..., 0]) / 2,
    }[head]
    centre = model.manifest.head.outputs[0]
    for place, column in enumerate((2, 0)):
        alpha, scores, missed = 0.1, list[float](), 0
        reach = math.inf
        for step in range(STEPS):
            score = np.float32(
                abs(np.float64(series[step, column]) - said[centre][step, place]) / spread(said)[step, place]
            )
            err = score > reach
            missed += int(err)
            alpha += GAMMA * (0.1 - err)
            scores.append(float(score))
            last = sorted(scores[-HELD:])
            rank = math.ceil((len(last) + 1) * (1 - alpha) - 1e-9)
            reach = float(last[rank - 1]) if rank <= len(last) else math.inf
            if step >= 40:
                high = played_all[centre][step, place] + reach * spread(played_all)[step, place]
                assert outputs[HIGH][step - 40, place] == pytest.approx(high, rel=1e-5)
        _, interval = engine.accuracy(engine.lives.session(T, session.session_id).record)
        assert interval is not None
        target = ("z", "x")[place]
        assert interval.alpha[target] == pytest.approx(alpha)
        assert interval.coverage[target] == pytest.approx(1 - missed / STEPS)


def test_forks_keep_and_going_back_restores(tmp_path: Path) -> None:
    """A fork goes on from the same sums. What is gone back to is as if what came after had never been, to the bit."""
    model = make_bundle(tmp_path / "models")
    engine = serving(tmp_path / "store", model, history=20)
    series = draw(1, 80)[0].tolist()
    kept = []
    for interval in (None, 0.9):
        session, _ = engine.create(T, "tiny", interval=interval)
        name = session.session_id
        for step in range(80):
            engine.steps.one(T, name, series[step : step + 1])
            kept.append(engine.lives.session(T, name).record.accuracy)
        assert engine.lives.fork(T, name, None, None).record.accuracy == kept[-1]
        for back in (75, 63):
            assert engine.past.rewind(T, name, back).record.accuracy == kept[-80 + back - 1]
        engine.steps.one(T, name, series[63:])
        assert engine.lives.session(T, name).record.accuracy == kept[-1]
        assert engine.past.migrate(T, name, None)[0].record.accuracy != kept[-1]
        _, moved = engine.accuracy(engine.lives.session(T, name).record)
        assert (moved and moved.wanted) == interval
    engine.close()


def test_what_stands_for_no_session_says_nothing(tmp_path: Path) -> None:
    """Stateless predictions and forecasts have the model's outputs alone, also beside sessions' rows."""
    engine = serving(tmp_path, open_all(ZOO).models["pulse"][1])
    engine.create(T, "pulse", session_id="s")
    stepping = gevent.spawn(engine.steps.one, T, "s", pulse(3))
    (predicted,) = engine.predict("pulse", None, [pulse(3)], 2)
    assert ERROR in (stepping.get().outputs.dtype.names or ())
    plain = engine.models.named("pulse").output_dtype
    assert predicted.outputs.dtype == plain
    assert engine.forecasts.roll(T, "s", Ahead(3)).outputs.dtype == plain
    engine.close()


def test_large_numbers_do_no_harm() -> None:
    """Errors beyond single precision are told as unknown, and the sums go on in double."""
    model = open_all(ZOO).models["weather"][1]
    counted = Accuracy(model)
    most = float(np.finfo(np.float32).max)
    for kept in (b"", counted.begun(0.9)):
        outputs, state = np.zeros((1, 2), model.output_dtype), model.layout.initial(1)
        outputs["point"] = -most
        inputs = np.array([[[most, 1, 2, 3], [most, 1, 2, 3]]], np.float32)
        (answer,), (after,) = counted.score([kept], inputs, [2], state, outputs)
        assert after is not None
        assert orjson.loads(encode(rows(model, answer)))["error"][1][0] is None
        targets = counted.targets_of(after)
        assert targets is not None
        assert targets["precipitation"].mae == pytest.approx(1.5 * most)
