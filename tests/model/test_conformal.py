"""Anomalies and corrected intervals: ranks among what came before, against loops over lists and against many draws."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.manifest import Head
from model.runner import Outputs, StepModel
from model.scoring.central import Central
from model.scoring.conformal import (
    EMPTY,
    GAMMA,
    HELD,
    LEAST,
    UNFILLED,
    Course,
    anomalies,
    anomalies_of_rows,
    corrected,
)
from model.scoring.figures import ALARM, ANOMALY, HIGH, LOW
from tests.bundles import draw, make_bundle
from tests.kinds import played
from tests.scored import STEPS, anomaly, before, serving

T = "tenant"
HEADS = ["point", "gaussian", "student_t", "quantiles"]


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


def test_false_alarms_are_as_many_as_docs_say() -> None:
    """docs/metrics.md: none of a session's first 99 inputs, 0.0034 of the first 200, and 2 / 257 in long ones."""
    sessions, rng = 2000, np.random.default_rng(0)
    rings, counts = np.full((sessions, HELD), -np.inf, np.float32), []
    for held in range(600):
        told = anomalies_of_rows(rings, np.full(sessions, float(held)), rng.random(sessions, np.float32))
        counts.append((told >= ALARM).mean())
    assert sum(counts[:99]) == 0 < counts[99]
    assert np.mean(counts[:200]) == pytest.approx(0.0034, abs=0.0004)
    assert np.mean(counts[HELD:]) == pytest.approx(2 / 257, abs=0.0005)


@pytest.mark.parametrize(
    ("levels", "held"), [((0.1, 0.5, 0.9), 0.8), ((0.05, 0.1, 0.9), 0.8), ((0.05, 0.5, 0.95), 0.9)]
)
def test_the_level_of_quantiles_is_between_those_that_count(levels: tuple[float, ...], held: float) -> None:
    """docs/metrics.md: 0.1 and 0.9 where the head has them, otherwise its outermost."""
    assert Central(Head(kind="quantiles", outputs=("median", "quantiles"), targets=("x",), levels=levels)).level == held


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
    assert interval.coverage["x"] == pytest.approx(held[3:].sum() / 4996)  # 4 inputs had none with an end
    assert 0 < interval.alpha["x"] < 1
    engine.close()


@pytest.mark.parametrize("head", HEADS)
def test_intervals_are_the_papers(tmp_path: Path, head: str) -> None:
    """Gibbs and Candes 2021, equation 2, with the quantile of the last 256 scores, in a loop over lists."""
    model = make_bundle(tmp_path / "models", head=head, features=("x", "y", "z"), targets=("z", "x"))
    engine, series = serving(tmp_path / "store", model), draw(1, STEPS, 3, seed=9)[0]
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
            if step >= 9:  # before, no interval has an end
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
        assert interval.coverage[target] == pytest.approx(1 - missed / (STEPS - 9))
    engine.close()


@pytest.mark.parametrize(("wanted", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_the_first_interval_with_an_end(wanted: float, needed: int) -> None:
    """As many scores as docs/api.md says are before it, and those have moved no level and covered nothing."""
    scores = np.random.default_rng(0).random(needed + 1).astype(np.float32).tolist()
    widths, course, _ = corrected(wanted, Course(wanted, 0.0, 0.0), UNFILLED, scores[:needed])
    assert (widths[:-1], widths[-1]) == ([math.inf] * (needed - 1), max(scores[:needed]))
    assert course == (wanted, needed, 0)
    _, moved, _ = corrected(wanted, Course(wanted, 0.0, 0.0), UNFILLED, scores)
    assert moved.level != wanted
    assert moved.entered == needed + 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 299), max_size=6), st.integers(0, 9), st.sampled_from([0.5, 0.8, 0.99]))
def test_corrected_intervals_do_not_depend_on_calls(cuts: list[int], seed: int, wanted: float) -> None:
    """The same bits one score at a time, a few, and all; with ties, infinite scores, and missing ones."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice([*rng.random(9), math.inf, math.nan], 300) * np.linspace(1, 3, 300)
    scores = drawn.astype(np.float32).tolist()
    told, course, ring = corrected(wanted, Course(wanted, 0.0, 0.0), UNFILLED, scores)
    for places in ([0, *sorted(set(cuts)), 300], range(301)):
        pieces, now, held = list[float](), Course(wanted, 0.0, 0.0), UNFILLED
        for start, end in pairwise(places):
            widths, now, held = corrected(wanted, now, held, scores[start:end])
            pieces += widths
        assert (pieces, now, held) == (told, course, ring)
    there = [score for score in scores if not math.isnan(score)]
    assert ring == np.array(there, np.float32)[-HELD:].tobytes()
