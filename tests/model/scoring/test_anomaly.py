"""Anomaly scores, against loops over lists, against many draws, and one row against many."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.scoring.anomaly import (
    FIRST,
    KIND,
    KINDS,
    MEAN,
    RANK_KIND,
    WIDTH,
    AnomalyKind,
    first_numbers,
    numbers_of_ring,
    score_surprise,
    score_surprises_of_rows,
)
from onward.model.scoring.conformal import EMPTY, RING_SIZE
from onward.model.scoring.layout import ALARM
from tests.helpers.expected_scores import anomaly_scores, rank_scores

Floats = NDArray[np.float64]


def scored(surprises: NDArray[np.float32], kind: AnomalyKind) -> tuple[Floats, list[float]]:
    """Returns the anomalies of a session's surprises, one after another, and its numbers after them."""
    numbers, data, found = first_numbers(KINDS.index(kind)), EMPTY + surprises.tobytes(), []
    for count, surprise in enumerate(surprises.tolist()):
        found.append(score_surprise(numbers, 0, count, data, len(EMPTY) + count * surprises.itemsize, surprise))
    return np.array(found), numbers


def scored_rows(surprises: NDArray[np.float32], kinds: Sequence[AnomalyKind]) -> tuple[Floats, Floats]:
    """Returns the anomalies (rows, steps) of surprises (rows, steps), all rows at once, and the numbers after them."""
    numbers = np.array([first_numbers(KINDS.index(kind)) for kind in kinds])
    rings = np.frombuffer(EMPTY * len(kinds), np.float32).reshape(len(kinds), -1).copy()
    found = np.empty(surprises.shape)
    for count, column in enumerate(surprises.T):
        counts = np.full(len(kinds), float(count))
        with np.errstate(all="ignore"):
            found[:, count] = score_surprises_of_rows(numbers, rings, counts, column.astype(np.float64))
        rings[:, :-1] = rings[:, 1:]
        rings[:, -1] = column
    return found, numbers


def surprises_of(name: str, shape: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    """Draws surprises of independent inputs (rows, steps) under the true distribution, or other ones."""
    rng = np.random.default_rng(seed)
    draws: dict[str, Callable[[], Floats]] = {
        "gaussian": lambda: rng.standard_normal(shape) ** 2 / 2,
        "student_t": lambda: 3 * np.log1p(rng.standard_t(5, shape) ** 2 / 5),
        "exponential": lambda: rng.exponential(size=shape),
        "ties": lambda: rng.integers(6, size=shape).astype(float),
        "faults": lambda: rng.exponential(size=shape) * np.where(rng.random(shape) < 0.01, 1e6, 1),
        "constant": lambda: np.where(np.arange(shape[1]) == 150, 2.0, 1.0) * np.ones(shape),
        "shift": lambda: rng.standard_normal(shape) - 40 * (np.arange(shape[1]) > 200),
    }
    return draws[name]().astype(np.float32)


KINDS_OF_SURPRISES = ("gaussian", "student_t", "exponential", "ties", "faults", "constant", "shift")


@pytest.mark.parametrize("rows", [4, 15])
@pytest.mark.parametrize("name", KINDS_OF_SURPRISES)
def test_many_rows_have_the_bits_of_one(name: str, rows: int) -> None:
    """Anomalies and numbers are the same for one row, and for rows of all kinds at once."""
    surprises = surprises_of(name, (rows, 700))
    kinds = (KINDS * rows)[:rows]
    found, numbers = scored_rows(surprises, kinds)
    for row, kind in enumerate(kinds):
        expected, expected_numbers = scored(surprises[row], kind)
        assert found[row].tobytes() == expected.tobytes()
        assert numbers[row].tolist() == expected_numbers


@pytest.mark.parametrize("name", KINDS_OF_SURPRISES)
def test_run_and_rank_are_those_of_loops_over_lists(name: str) -> None:
    (surprises,) = surprises_of(name, (1, 700))
    np.testing.assert_allclose(scored(surprises, "run")[0], anomaly_scores(surprises), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(scored(surprises, "rank")[0], rank_scores(surprises))


@pytest.mark.parametrize("kind", KINDS)
def test_anomalies_are_probabilities(kind: AnomalyKind) -> None:
    """Anomalies are in [0, 1], and NaN for the first 19 inputs."""
    for name in KINDS_OF_SURPRISES:
        found, _ = scored_rows(surprises_of(name, (4, 500)), [kind] * 4)
        assert np.isnan(found[:, :19]).all()
        assert ((found[:, 19:] >= 0) & (found[:, 19:] <= 1)).all()


def test_the_rate_of_false_alarms_by_rank_is_the_documented_one() -> None:
    """docs/metrics.md: none of a session's first 99 inputs, 0.0034 of the first 200, and 2 / 257 in long ones."""
    found, _ = scored_rows(surprises_of("gaussian", (2000, 600)), ["rank"] * 2000)
    rates = (found >= ALARM).mean(axis=0)
    assert rates[:99].sum() == 0 < rates[99]
    assert rates[:200].mean() == pytest.approx(0.0034, abs=0.0004)
    assert rates[RING_SIZE:].mean() == pytest.approx(2 / 257, abs=0.0005)


@pytest.mark.parametrize("name", ["gaussian", "student_t", "exponential"])
@pytest.mark.parametrize(
    ("kind", "threshold", "least", "most"),
    [
        ("run", 0.99, 0.001, 0.004),
        ("run", 0.999, 0.0, 0.0002),
        ("tail", 0.99, 0.006, 0.013),
        ("tail", 0.999, 0.0005, 0.0015),
    ],
)
def test_the_rates_of_false_alarms_are_the_documented_ones(
    kind: AnomalyKind, threshold: float, least: float, most: float, name: str
) -> None:
    """docs/api.md: of independent inputs from the predicted distribution, after the first 256."""
    found, _ = scored_rows(surprises_of(name, (200, 2000)), [kind] * 200)
    assert least <= (found[:, RING_SIZE:] >= threshold).mean() <= most


def test_a_shift_of_the_surprise_is_a_run() -> None:
    """A run of surprises that are each usual raises `run`, and neither of the others."""
    surprises = surprises_of("exponential", (1, 1000))[0]
    surprises[900:908] = np.quantile(surprises, 0.95)
    assert scored(surprises, "run")[0][907] > ALARM
    assert scored(surprises, "tail")[0][900:908].max() < ALARM
    assert scored(surprises, "rank")[0][900:908].max() < ALARM


def test_the_tail_is_rarer_than_a_rank_can_be() -> None:
    """A surprise of ten times the greatest one has a lower probability than 1 / 257, by much."""
    surprises = surprises_of("exponential", (1, 3000))[0]
    surprises[-1] = 10 * surprises.max()
    assert 1 - scored(surprises, "tail")[0][-1] < 1e-6
    assert 1 - scored(surprises, "rank")[0][-1] == pytest.approx(1 / 257)


def test_an_absurd_surprise_is_forgotten() -> None:
    """After one surprise of 1e30, mean and deviation are the usual ones again some thousand surprises later."""
    surprises = surprises_of("exponential", (1, 4000))[0]
    _, before = scored(surprises, "run")
    surprises[500] = 1e30
    found, after = scored(surprises, "run")
    assert found[500] == 1
    assert after[MEAN] == pytest.approx(before[MEAN], abs=0.01)
    assert (found[2500:] >= ALARM).any()


def test_the_numbers_of_a_ring_are_those_after_its_surprises() -> None:
    """A session of an earlier version goes on as one that had the surprises of its ring alone, by rank."""
    for count in (0, 5, FIRST, RING_SIZE, 900):
        (surprises,) = surprises_of("gaussian", (1, count))
        ring = (EMPTY + surprises.tobytes())[-len(EMPTY) :]
        numbers = numbers_of_ring(ring, count)
        assert len(numbers) == WIDTH
        assert numbers[KIND] == RANK_KIND
        assert numbers[KIND + 1 :] == scored(surprises[-RING_SIZE:], "rank")[1][KIND + 1 :]
        assert all(map(math.isfinite, numbers)) or count < FIRST
