"""Values that lie apart from all others: readings that stand for "missing", and faults such as spikes.

Owns the rule by which they are found. A value is apart if it is hundreds of deviations from the median and at least ten
times as far as the farthest of the usual values, so that neither heavy tails nor columns that are mostly zero, such as
rain, have any. The deviation is robust: it is that of a normal distribution with the same quantile of distances.
"""

import re
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl
from numpy.typing import NDArray

DEVIATIONS, JUMP = 100, 10
"""The least distance in deviations, and relative to the farthest of the usual values."""

RARE, MARKERS = 0.01, 0.1
"""The largest share of the values that may be apart, and of a number that is written as a marker, such as -9999."""

FEWEST, FEWEST_OF_A_SERIES = 20, 50
"""The fewest values that are judged, and the fewest of a series that are judged by themselves."""

_MARKER = re.compile(r"99+(\.9+)?|32767|32768|65535|2147483647|2147483648")
_GROUP, _VALUE, _ROW, _SERIES = "group", "value", "row", "series"


@dataclass(frozen=True, slots=True)
class Extremes:
    """The values of a column that lie apart from all others."""

    count: int
    values: tuple[float, ...]
    """The first few different ones."""
    rows: tuple[int, ...]
    """The rows of the first few, as they are numbered in the file."""
    deviations: float
    """The distance from the median of the value that is farthest from it, in deviations."""
    median: float


def find(values: pl.Series, rows: pl.Series, series: pl.Series | None = None) -> Extremes | None:
    """Returns the values that lie apart from the others of their series, if there are any.

    All are (rows,): numbers with nulls, their rows in the file, and their series. Short series are judged together.
    """
    table = pl.DataFrame({_VALUE: values.cast(pl.Float64), _ROW: rows})
    table = table.with_columns(pl.lit(0).alias(_SERIES) if series is None else series.alias(_SERIES))
    table = table.filter(pl.col(_VALUE).is_finite())
    alone = pl.len().over(_SERIES) >= FEWEST_OF_A_SERIES
    table = table.with_columns(pl.when(alone).then(_SERIES).alias(_GROUP))
    found: list[tuple[pl.DataFrame, float, float]] = []
    for group in _suspects(table):
        numbers = group[_VALUE].to_numpy()
        median = float(np.median(numbers))
        distances = np.abs(numbers - median)
        apart, deviations = _apart(numbers, distances)
        selected = group.filter(pl.Series(apart))
        if group[_GROUP].null_count():
            selected = _without_whole_series(group, selected)
        if selected.height:
            found.append((selected, deviations, median))
    if not found:
        return None
    apart_rows = pl.concat([selected for selected, _, _ in found]).sort(_ROW)
    _, deviations, median = max(found, key=lambda item: item[1])
    distinct = apart_rows[_VALUE].unique(maintain_order=True).head(3).to_list()
    return Extremes(apart_rows.height, tuple(distinct), tuple(apart_rows[_ROW].head(3).to_list()), deviations, median)


def _suspects(table: pl.DataFrame) -> list[pl.DataFrame]:
    """Returns the groups whose largest distance could be hundreds of deviations, which are few."""
    distances = table.with_columns((pl.col(_VALUE) - pl.col(_VALUE).median().over(_GROUP)).abs().alias("distance"))
    groups = distances.group_by(_GROUP).agg(
        pl.len().alias("count"),
        pl.col("distance").max().alias("largest"),
        pl.col("distance").quantile(0.85).alias("usual"),
    )
    factor = DEVIATIONS / NormalDist().inv_cdf(1 - RARE / 2)
    suspects = groups.filter((pl.col("count") >= FEWEST) & (pl.col("largest") > factor * pl.col("usual")))
    return [table.filter(pl.col(_GROUP).eq_missing(group)) for group in suspects[_GROUP]]


def _apart(numbers: NDArray[np.float64], distances: NDArray[np.float64]) -> tuple[NDArray[np.bool_], float]:
    """Returns which of the numbers lie apart, and the farthest distance in deviations."""
    rare = _beyond(distances, max(3, int(RARE * len(distances))))
    if rare[0].any():
        return rare
    farthest = numbers[distances.argmax()]
    if _MARKER.fullmatch(f"{abs(farthest):.12g}"):
        marked, deviations = _beyond(distances, max(3, int(MARKERS * len(distances))))
        return marked & (numbers == farthest), deviations
    return np.zeros(len(numbers), np.bool_), 0.0


def _beyond(distances: NDArray[np.float64], at_most: int) -> tuple[NDArray[np.bool_], float]:
    """Returns which distances, at most that many, lie beyond a jump, and the farthest in deviations of the others."""
    ordered = np.sort(distances)
    usual = len(ordered) - at_most
    deviation = robust_deviation(ordered, usual)
    if not deviation:
        return np.zeros(len(distances), np.bool_), 0.0
    tail = ordered[usual - 1 :]
    jumps = np.flatnonzero((tail[1:] > JUMP * tail[:-1]) & (tail[1:] > DEVIATIONS * deviation))
    if not jumps.size:
        return np.zeros(len(distances), np.bool_), 0.0
    return distances >= tail[1:][jumps[0]], float(ordered[-1] / deviation)


def robust_deviation(distances: NDArray[np.float64], usual: int) -> float:
    """Returns the deviation by the distances from the median, in rising order, of which the first `usual` are usual.

    It is at least the median of the distances that are not 0, so that a column that is mostly zero has a deviation too;
    0 if all are 0.
    """
    differing = distances[distances > 0]
    if not differing.size:
        return 0.0
    share = min(usual / len(distances), 1 - 0.5 / len(distances))  # the largest of all is no infinite deviation
    deviation = float(distances[usual - 1]) / NormalDist().inv_cdf(0.5 + share / 2)
    return max(deviation, float(np.median(differing)))


def _without_whole_series(group: pl.DataFrame, selected: pl.DataFrame) -> pl.DataFrame:
    """Returns the selected rows without those of series that mostly consist of such: these have another scale."""
    sizes = group.group_by(_SERIES).len("size").join(selected.group_by(_SERIES).len("apart"), on=_SERIES)
    mostly = sizes.filter(2 * pl.col("apart") > pl.col("size"))[_SERIES]
    return selected.filter(~pl.col(_SERIES).is_in(mostly.implode()))
