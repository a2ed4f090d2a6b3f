"""Anomalies and corrected intervals: ranks among what came before, against loops over lists and against many draws."""

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
    """What is as large as what came is not unusual; one by one, many at once and of many rows."""
    scores = np.random.default_rng(0).integers(6, size=400).astype(np.float32)
    expected = np.array(anomaly_scores(scores))
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


def test_false_alarms_are_as_many_as_docs_say() -> None:
    """docs/metrics.md: none of a session's first 99 inputs, 0.0034 of the first 200, and 2 / 257 in long ones."""
    sessions, rng = 2000, np.random.default_rng(0)
    rings, counts = np.full((sessions, RING_SIZE), -np.inf, np.float32), []
    for held in range(600):
        told = anomalies_of_rows(rings, np.full(sessions, float(held)), rng.random(sessions, np.float32))
        counts.append((told >= ALARM).mean())
    assert sum(counts[:99]) == 0 < counts[99]
    assert np.mean(counts[:200]) == pytest.approx(0.0034, abs=0.0004)
    assert np.mean(counts[RING_SIZE:]) == pytest.approx(2 / 257, abs=0.0005)


@pytest.mark.parametrize(
    ("levels", "held"), [((0.1, 0.5, 0.9), 0.8), ((0.05, 0.1, 0.9), 0.8), ((0.05, 0.5, 0.95), 0.9)]
)
def test_the_level_of_quantiles_is_between_those_that_count(levels: tuple[float, ...], held: float) -> None:
    """docs/metrics.md: 0.1 and 0.9 where the head has them, otherwise its outermost."""
    assert (
        CentralInterval(Head(kind="quantiles", outputs=("median", "quantiles"), targets=("x",), levels=levels)).level
        == held
    )


@pytest.mark.parametrize(("wanted", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_the_first_interval_with_an_end(wanted: float, needed: int) -> None:
    """As many scores as docs/api.md says are before it, and those have moved no level and covered nothing."""
    scores = np.random.default_rng(0).random(needed + 1).astype(np.float32).tolist()
    widths, course, _ = correct_interval(wanted, IntervalState(wanted, 0.0, 0.0), UNFILLED, scores[:needed])
    assert (widths[:-1], widths[-1]) == ([math.inf] * (needed - 1), max(scores[:needed]))
    assert course == (wanted, needed, 0)
    _, moved, _ = correct_interval(wanted, IntervalState(wanted, 0.0, 0.0), UNFILLED, scores)
    assert moved.level != wanted
    assert moved.entered == needed + 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 299), max_size=6), st.integers(0, 9), st.sampled_from([0.5, 0.8, 0.99]))
def test_corrected_intervals_do_not_depend_on_calls(cuts: list[int], seed: int, wanted: float) -> None:
    """The same bits one score at a time, a few, and all; with ties, infinite scores, and missing ones."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice([*rng.random(9), math.inf, math.nan], 300) * np.linspace(1, 3, 300)
    scores = drawn.astype(np.float32).tolist()
    told, course, ring = correct_interval(wanted, IntervalState(wanted, 0.0, 0.0), UNFILLED, scores)
    for places in ([0, *sorted(set(cuts)), 300], range(301)):
        pieces, now, held = list[float](), IntervalState(wanted, 0.0, 0.0), UNFILLED
        for start, end in pairwise(places):
            widths, now, held = correct_interval(wanted, now, held, scores[start:end])
            pieces += widths
        assert (pieces, now, held) == (told, course, ring)
    there = [score for score in scores if not math.isnan(score)]
    assert ring == np.array(there, np.float32)[-RING_SIZE:].tobytes()
