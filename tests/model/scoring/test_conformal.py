"""Adaptive intervals, against loops over lists and against many draws."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.model.manifest import Head
from onward.model.scoring.central_interval import CentralInterval
from onward.model.scoring.conformal import (
    RING_SIZE,
    UNFILLED,
    IntervalState,
    correct_interval,
)


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
