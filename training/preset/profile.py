"""The properties of the training part of a data set: its size, seasons, trend, level and tails.

Owns the statistics by which candidates are proposed. They decide what is tried, and held-out error decides what is
chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import InputArray
from onward.model.tables.intervals import Interval
from onward.training.data.datasets import Dataset

Array = NDArray[np.float64]

MIN_CORRELATION = 0.3
"""The least autocorrelation of a season."""

MOST_STEPS = 20_000
"""The steps of a series that are looked at; they are the last ones of its training part."""

NATURAL_SEASONS = {
    "month": (12,),
    "business day": (5, 261),
    "day": (7, 365),
}
"""Seasons by the unit of the sampling interval, in units."""

SECONDS_OF_SEASONS = (3600, 86_400, 604_800)
"""An hour, a day and a week."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The properties of the training part."""

    rows: int
    series: int
    shortest: int
    """The number of training steps of the shortest series that has any."""
    interval: Interval | None
    season: int | None
    """The period in steps of the strongest season."""
    correlation: float
    """The autocorrelation at that period, of the differenced targets."""
    longest: int
    """The number of training steps of the longest series."""
    wide: tuple[str, ...]
    """The targets whose values are all above 0, and the largest more than twice the smallest."""
    multiplicative: tuple[str, ...]
    """The targets among them whose changes are larger where their level is higher."""
    trending: tuple[str, ...]
    """The targets whose level changes by more than their steps do."""
    heavy_tails: bool
    scales_differ: bool
    """Whether the deviations of the series differ tenfold."""


def measure(dataset: Dataset, targets: Sequence[str], interval: Interval | None) -> Profile:
    """Returns the profile of the targets, which are numbers."""
    names = [feature.name for feature in dataset.features]
    columns = [names.index(target) for target in targets]
    parts = [item.train[-MOST_STEPS:, columns].astype(np.float64) for item in dataset.train]
    longest = max(parts, key=len)
    season, correlation = _season(longest, interval)
    by_target = {target: [part[:, column] for part in parts] for column, target in enumerate(targets)}
    wide = tuple(
        target for target, index in zip(targets, columns, strict=True)
        if _is_wide(np.concatenate([item.values[:, index] for item in dataset.series]))
    )  # fmt: skip
    return Profile(
        rows=sum(len(item.train) for item in dataset.train),
        series=len(parts),
        shortest=min(len(part) for part in parts),
        interval=interval,
        season=season,
        correlation=correlation,
        longest=len(longest),
        wide=wide,
        multiplicative=tuple(name for name in wide if _grows_with_level(by_target[name], season)),
        trending=tuple(name for name in targets if any(_trends(values) for values in by_target[name])),
        heavy_tails=any(_kurtosis(np.concatenate([np.diff(part) for part in by_target[name]])) > 6 for name in targets),
        scales_differ=_scales_differ(parts),
    )


def seasons_of(interval: Interval | None) -> list[int]:
    """Returns the seasons of the calendar in steps of the interval, such as 24 and 168 of an hour."""
    if interval is None or not interval.unit:
        return []
    if interval.unit == "second":
        seasons = [seconds / interval.count for seconds in SECONDS_OF_SEASONS]
    else:
        seasons = [units / interval.count for units in NATURAL_SEASONS.get(interval.unit, ())]
    return [int(season) for season in seasons if season >= 2 and float(season).is_integer()]


def _season(values: Array, interval: Interval | None) -> tuple[int | None, float]:
    """Returns the period of the strongest season of (time, targets), and its autocorrelation.

    Candidates are the seasons of the calendar, and the peaks of the autocorrelation. A season fits three times into the
    series.
    """
    correlation = _autocorrelation(values)
    most = len(values) // 3
    peaks = [
        lag for lag in range(2, min(most, len(correlation) - 2) + 1)
        if correlation[lag] >= max(correlation[lag - 1], correlation[lag + 1])
    ]  # fmt: skip
    natural = [season for season in seasons_of(interval) if season <= min(most, len(correlation) - 1)]
    found = [lag for lag in natural if correlation[lag] > MIN_CORRELATION]
    peaks = [lag for lag in peaks if correlation[lag] > MIN_CORRELATION]
    best_peak = max(peaks, key=lambda lag: correlation[lag], default=None)
    best = max(found, key=lambda lag: correlation[lag], default=None)
    if best is None or (best_peak is not None and correlation[best_peak] > correlation[best] + 0.1):
        best = _fundamental(peaks, correlation) if best_peak is not None else None
    return best, 0.0 if best is None else float(correlation[best])


def _fundamental(peaks: Sequence[int], correlation: Array) -> int:
    """Returns the shortest of the peaks that are nearly as high as the highest: others are multiples of it."""
    highest = max(correlation[lag] for lag in peaks)
    return min(lag for lag in peaks if correlation[lag] >= 0.9 * highest)


def _autocorrelation(values: Array) -> Array:
    """Returns the autocorrelation of the differences of (time, targets) by lag, as the mean over the targets."""
    differences = np.diff(values, axis=0)
    differences -= np.nanmean(differences, axis=0)
    filled = np.nan_to_num(differences)
    size = 1 << (2 * len(filled)).bit_length()
    spectrum = np.abs(np.fft.rfft(filled, size, axis=0)) ** 2
    products = np.fft.irfft(spectrum, axis=0)[: len(filled)]
    variance = np.where(products[0] > 0, products[0], 1.0)
    counts = len(filled) / np.arange(len(filled), 0, -1)[:, np.newaxis]
    return np.asarray((products / variance * counts).mean(axis=1), np.float64)


def _is_wide(values: InputArray) -> bool:
    present = values[~np.isnan(values)]
    return bool(present.size and present.min() > 0 and present.max() > 2 * present.min())


def _grows_with_level(parts: Sequence[Array], season: int | None) -> bool:
    """Returns whether the differences over blocks of a season grow with the mean of the block."""
    size = max(season or 0, 12)
    levels, spreads = [], []
    for values in parts:
        blocks = len(values) // size
        for block in np.array_split(values, blocks) if blocks >= 4 else ():
            level, spread = np.nanmean(block), np.nanmean(np.abs(np.diff(block)))
            if level > 0 and spread > 0:
                levels.append(np.log(level))
                spreads.append(np.log(spread))
    if len(levels) < 4 or np.ptp(levels) < np.log(1.5):
        return False
    return bool(np.corrcoef(levels, spreads)[0, 1] > 0.5 and np.polyfit(levels, spreads, 1)[0] > 0.4)


def _trends(values: Array) -> bool:
    """Returns whether the means of the first and the last fifth are farther apart than the values within a fifth."""
    present = values[~np.isnan(values)]
    fifth = len(present) // 5
    if fifth < 4:
        return False
    first, last = present[:fifth], present[-fifth:]
    return bool(abs(last.mean() - first.mean()) > 1.5 * max(first.std(), last.std(), 1e-300))


def _kurtosis(values: Array) -> float:
    present = values[~np.isnan(values)]
    deviation = present.std()
    return float((((present - present.mean()) / deviation) ** 4).mean()) if len(present) > 3 and deviation > 0 else 3.0


def _scales_differ(parts: Sequence[Array]) -> bool:
    deviations = np.array([np.nanstd(part, axis=0) for part in parts if len(part) > 1])
    if len(deviations) < 2:
        return False
    smallest = np.where(deviations > 0, deviations, np.inf).min(axis=0)
    return bool((np.max(deviations, axis=0) > 10 * smallest).any())
