"""Values that lie apart from all others are found, and nothing else is."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onward.model.tables import extremes
from onward.model.tables.extremes import Extremes

EXAMPLES = Path(__file__).parents[3] / "examples"


def find(values: Any, series: Any = None) -> Extremes | None:
    column = pl.Series(values)
    return extremes.find(column, pl.Series(range(1, len(column) + 1)), None if series is None else pl.Series(series))


def wave(steps: int) -> Any:
    return 20 + 5 * np.sin(np.arange(steps) / 10) + np.random.default_rng(0).normal(0, 1, steps)


def test_a_few_readings_that_stand_for_missing_values_are_found() -> None:
    """Six of 3,500 readings are -9999: all are counted, the first rows are named, and the distance is told."""
    values = wave(3500)
    values[1500:1506] = -9999
    found = find(values)
    assert found is not None
    assert (found.count, found.values, found.rows) == (6, (-9999,), (1501, 1502, 1503))
    assert found.deviations > 1000
    assert found.median == pytest.approx(20, abs=1)


@pytest.mark.parametrize("spikes", [[1e9], [1e9, -1e6], [1e9, 1e5, -1e12]])
@pytest.mark.parametrize("steps", [50, 1000, 100_000])
def test_spikes_are_found(spikes: list[float], steps: int) -> None:
    """A few absurd values are found in short and in long columns, and nothing beside them."""
    values = wave(steps)
    values[7 : 7 + len(spikes)] = spikes
    found = find(values)
    assert found is not None
    assert (found.count, found.rows[0]) == (len(spikes), 8)


def test_markers_may_be_common() -> None:
    """Readings of -9999.9 are found although they are a twenty-fifth of all: a marker is known by its digits."""
    values = wave(1000)
    values[::25] = -9999.9
    found = find(values)
    assert found is not None
    assert (found.count, found.values) == (40, (-9999.9,))
    values[::25] = -1234.5
    assert find(values) is None


def test_markers_are_found_among_rare_events() -> None:
    """Readings of -9999 are found in a column that is mostly zero, such as rain, and the rain is not."""
    rng = np.random.default_rng(0)
    rain = np.where(rng.random(5000) < 0.05, rng.exponential(3, 5000), 0)
    assert find(rain) is None
    rain[[3, 4]] = -9999
    found = find(rain)
    assert found is not None
    assert (found.count, found.rows) == (2, (4, 5))


def test_each_series_has_its_own_scale() -> None:
    """Series of very different scales are usual; a spike that is small for another series is still found in its own."""
    scale = 10.0 ** (np.arange(10_000) // 1000)
    values, series = wave(10_000) * scale, np.arange(10_000) // 1000
    assert find(values, series) is None
    values[33] = 1e6
    found = find(values, series)
    assert found is not None
    assert (found.count, found.rows) == (1, (34,))


def test_short_series_are_judged_together() -> None:
    """A short series of another scale is usual; one reading of -9999 in it is found."""
    values, series = wave(2000), np.arange(2000) // 10
    values[500:510] *= 1e5
    assert find(values, series) is None
    values[3] = -9999.0
    found = find(values, series)
    assert found is not None
    assert (found.count, found.rows) == (1, (4,))


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).lognormal(0, 2, 100_000),
        np.random.default_rng(0).standard_t(2, 100_000),
        np.random.default_rng(0).pareto(1.5, 100_000),
        np.random.default_rng(0).random(100_000) < 0.001,
        np.where(np.random.default_rng(0).random(10_000) < 0.03, 2000 + wave(10_000), 0.5 + wave(10_000) / 1e4),
        np.arange(1000.0) ** 3,
        1.7e9 + wave(3000),
        np.zeros(100),
        [None, None] * 50,
        [1.0, 1e9],
        [],
    ],
)
def test_usual_columns_have_none(values: Any) -> None:
    """Heavy tails, flags, devices that are mostly off, trends, offsets, constants and few values lie as they should."""
    assert find(pl.Series(values).cast(pl.Float64)) is None


@pytest.mark.parametrize(
    ("file", "series"), [("co2/co2.csv", None), ("weather/seattle-weather.csv", None), ("pulse/pulse.csv", "recording")]
)
def test_the_examples_have_none(file: str, series: str | None) -> None:
    """No measurement of the examples is taken for a fault."""
    table = pl.read_csv(EXAMPLES / file, infer_schema_length=None)
    numbers = [name for name, dtype in table.schema.items() if dtype.is_numeric()]
    assert [name for name in numbers if find(table[name], None if series is None else table[series])] == []
