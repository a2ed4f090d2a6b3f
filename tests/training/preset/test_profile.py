"""Properties of the training part by which candidates are proposed."""

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.model.tables.intervals import Interval
from onward.training.data.datasets import Dataset, Series
from onward.training.preset import candidates, profile

T = np.arange(480)
NOISE = np.random.default_rng(0).standard_normal(len(T))


def measured(values: NDArray[np.float64], interval: Interval | None = None) -> profile.Profile:
    series = Series("s", values.astype(np.float32)[:, np.newaxis], int(len(values) * 0.7), int(len(values) * 0.85))
    return profile.measure(Dataset((series,), "", (Feature(name="y"),)), ["y"], interval)


def test_a_season_is_found_in_the_differences() -> None:
    """The period is found by the calendar or without it, through noise and a trend; noise has none."""
    wave = np.sin(T * 2 * np.pi / 12)
    for interval in (None, Interval(1, "month")):
        assert measured(wave + 0.05 * NOISE + 0.1 * T, interval).season == 12
    assert measured(np.sin(T * 2 * np.pi / 24) + 0.05 * NOISE, Interval(3600, "second")).season == 24
    assert measured(NOISE).season is None


def test_changes_that_grow_with_the_level_are_multiplicative() -> None:
    """A log transform is tried first for them, last for other positive values, and not for values of both signs."""
    growing = 100 * np.exp(0.01 * T) * (1 + 0.3 * np.sin(T * 2 * np.pi / 12) + 0.02 * NOISE)
    level = 100 + 0.5 * T + 5 * NOISE
    assert measured(growing).multiplicative == ("y",)
    assert (measured(level).wide, measured(level).multiplicative) == (("y",), ())
    assert measured(NOISE).wide == ()
    for values, transforms in ((growing, [True, False]), (level, [False, True]), (NOISE, [False])):
        found = measured(values)
        variants = candidates.variants(found, ["y"], candidates.base(found))
        logs = ["data.transforms" in {choice.key for choice in variant} for variant in variants]
        assert list(dict.fromkeys(logs)) == transforms


def test_trends_and_tails() -> None:
    """A level that wanders far trends; a stationary one does not; Student's t with 2 degrees has heavy tails."""
    assert measured(np.cumsum(NOISE + 0.3)).trending == ("y",)
    assert measured(NOISE).trending == ()
    assert measured(np.random.default_rng(1).standard_t(2, len(T))).heavy_tails
    assert not measured(NOISE).heavy_tails


def test_entries_of_the_calendar_are_covered_twice() -> None:
    def entries(count: float, unit: str, rows: int) -> list[str]:
        found = measured(np.resize(NOISE, rows), Interval(count, unit))  # type: ignore[arg-type]
        return candidates.calendar_entries(found)

    assert entries(1, "month", 100) == ["month_of_year"]
    assert entries(1, "month", 20) == []
    assert entries(1, "day", 100) == ["day_of_week"]
    assert entries(1, "day", 1200) == ["day_of_week", "year"]
    assert entries(3600, "second", 1000) == ["hour_of_day", "day_of_week"]
    assert candidates.calendar_entries(measured(NOISE)) == []


def test_several_targets_are_tried_as_channels() -> None:
    """A single target has no channels to choose."""
    found = measured(NOISE)
    for targets, channels in ((["y"], {None}), (["y", "z"], {None, "independent"})):
        variants = candidates.variants(found, targets, candidates.base(found))
        chosen = [{choice.key: choice.value for choice in variant} for variant in variants]
        assert {values.get("data.channels") for values in chosen} == channels
