"""Anomalies and adaptive intervals, against loops over lists and against many draws."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.model.manifest import Head
from onward.model.scoring.central_interval import CentralInterval
from onward.model.scoring.conformal import (
    EMPTY,
    RING_SIZE,
    UNFILLED,
    IntervalState,
    anomalies,
    anomalies_of_rows,
    correct_interval,
)
from onward.model.scoring.layout import ALARM
from tests.helpers.expected_scores import anomaly_scores


def test_ties_count_against_an_anomaly() -> None:
    """A score equal to earlier ones is not unusual: one by one, many at once and in batches of rows."""
    scores = np.random.default_rng(0).integers(6, size=400).astype(np.float32)
    expected = np.array(anomaly_scores(scores))
    found, ring = anomalies(EMPTY, 0, scores.tolist())
    np.testing.assert_array_equal(found, expected)
    rings, single_ring = np.frombuffer(EMPTY * 2, np.float32).reshape(2, -1).copy(), EMPTY
    for count, score in enumerate(scores):
        both = anomalies_of_rows(rings, np.full(2, float(count)), np.full(2, score))
        single, single_ring = anomalies(single_ring, count, [float(score)])
        np.testing.assert_array_equal(both, single * 2)
        np.testing.assert_array_equal(single, expected[count : count + 1])
    assert ring == single_ring == rings[1].tobytes()


def test_the_rate_of_false_alarms_is_the_documented_one() -> None:
    """docs/metrics.md: none of a session's first 99 inputs, 0.0034 of the first 200, and 2 / 257 in long ones."""
    sessions, rng = 2000, np.random.default_rng(0)
    rings, rates = np.full((sessions, RING_SIZE), -np.inf, np.float32), []
    for count in range(600):
        found = anomalies_of_rows(rings, np.full(sessions, float(count)), rng.random(sessions, np.float32))
        rates.append((found >= ALARM).mean())
    assert sum(rates[:99]) == 0 < rates[99]
    assert np.mean(rates[:200]) == pytest.approx(0.0034, abs=0.0004)
    assert np.mean(rates[RING_SIZE:]) == pytest.approx(2 / 257, abs=0.0005)


@pytest.mark.parametrize(
    ("levels", "expected"), [((0.1, 0.5, 0.9), 0.8), ((0.05, 0.1, 0.9), 0.8), ((0.05, 0.5, 0.95), 0.9)]
)
def test_the_level_of_quantiles_is_that_between_the_bounds(levels: tuple[float, ...], expected: float) -> None:
    """docs/metrics.md: the bounds are 0.1 and 0.9 if the head has both, otherwise its outermost levels."""
    assert (
        CentralInterval(Head(kind="quantiles", outputs=("median", "quantiles"), targets=("x",), levels=levels)).level
        == expected
    )


@pytest.mark.parametrize(("nominal", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_the_first_finite_interval(nominal: float, needed: int) -> None:
    """The number of scores before it is that of docs/api.md; these scores change no level and cover nothing."""
    scores = np.random.default_rng(0).random(needed + 1).astype(np.float32).tolist()
    widths, state, _ = correct_interval(nominal, IntervalState(nominal), UNFILLED, scores[:needed])
    assert (widths[:-1], widths[-1]) == ([math.inf] * (needed - 1), max(scores[:needed]))
    assert state[:3] == (nominal, needed, 0)
    _, moved, _ = correct_interval(nominal, IntervalState(nominal), UNFILLED, scores)
    assert moved.level != nominal
    assert moved.entered == needed + 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 299), max_size=6), st.integers(0, 9), st.sampled_from([0.5, 0.8, 0.99]))
def test_corrected_intervals_do_not_depend_on_calls(cuts: list[int], seed: int, nominal: float) -> None:
    """Intervals have the same bits for one score, a few or all a call, with ties, infinite and missing scores."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice([*rng.random(9), math.inf, math.nan], 300) * np.linspace(1, 3, 300)
    scores = drawn.astype(np.float32).tolist()
    expected, state, ring = correct_interval(nominal, IntervalState(nominal), UNFILLED, scores)
    for bounds in ([0, *sorted(set(cuts)), 300], range(301)):
        pieces, piece_state, piece_ring = list[float](), IntervalState(nominal), UNFILLED
        for start, end in pairwise(bounds):
            widths, piece_state, piece_ring = correct_interval(nominal, piece_state, piece_ring, scores[start:end])
            pieces += widths
        assert (pieces, piece_state, piece_ring) == (expected, state, ring)
    present = [score for score in scores if not math.isnan(score)]
    assert ring == np.array(present, np.float32)[-RING_SIZE:].tobytes()
