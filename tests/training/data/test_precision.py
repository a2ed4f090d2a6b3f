"""The rule for double precision: which columns need it, and which not even it carries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.model.precision import SHARE, carries, digits
from onward.training.config import Data
from onward.training.data import datasets, precision
from onward.training.data.datasets import Dataset
from onward.training.errors import DataError

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def load(folder: Path, columns: dict[str, Any], dtype: Any = None, **keys: Any) -> Dataset:
    """Returns the data set of a table with these columns; x is the target."""
    file = folder / "table.csv"
    rows = zip(*columns.values(), strict=True)
    file.write_text("\n".join([",".join(columns), *(",".join(map(repr, map(float, row))) for row in rows)]))
    data = Data.model_validate({"path": file.name, "targets": ["x"], "features": list(columns), **keys})
    return datasets.load(file, data, None, dtype)


def walk(steps: int = 400, size: float = 1.0) -> Any:
    return np.random.default_rng(0).normal(0, size, steps).cumsum()


COLUMNS: dict[str, tuple[Any, Any]] = {
    "a wave on seconds since 1970": (1.7e9 + 20 * np.sin(np.arange(400) / 5), DOUBLE),
    "a wave on microseconds since 1970": (1.7e15 + 2e4 * np.sin(np.arange(400) / 5), DOUBLE),
    "a counter of kilowatt hours": (1e7 + 0.01 * np.arange(400), DOUBLE),
    "degrees on a map": (52.52 + walk(size=1e-5), DOUBLE),
    "prices with ticks": (1e5 + np.round(walk(size=0.03), 2), DOUBLE),
    "every hour since 1970": (1.7e9 + 3600.0 * np.arange(400), DOUBLE),
    "rare ticks of a large counter": (1e9 + np.arange(400) // 40, DOUBLE),
    "one absurd value among small steps": (np.where(np.arange(400) == 50, 1e18, 1.7e9 + walk()), DOUBLE),
    "years": (1900.0 + np.arange(400) // 4, SINGLE),
    "hectopascals": (1013 + np.round(walk(size=0.1), 1), SINGLE),
    "kelvin": (293 + np.round(walk(size=0.02), 2), SINGLE),
    "small numbers": (1e-12 * walk(), SINGLE),
    "a constant": (np.full(400, 1.7e9), SINGLE),
}


def test_differences_within_the_rounding_of_doubles_are_no_constant(tmp_path: Path) -> None:
    """Neighbours of a counter at 1e16 are hardly apart as doubles, so it is refused; a constant of that size is not."""
    counter = 1e16 + 20 * np.sin(np.arange(400) / 5)
    for keys in ({}, {"changes": ["x"]}):
        with pytest.raises(DataError, match=r"column x: values near 1e\+16 that differ by 40 have more digits than 64"):
            load(tmp_path, {"x": counter}, **keys)
    assert load(tmp_path, {"x": np.full(400, 1e16)}).dtype == SINGLE


@pytest.mark.parametrize("name", COLUMNS)
def test_the_precision_follows_from_magnitude_and_steps(name: str, tmp_path: Path) -> None:
    """A target, differenced or not, is in double precision if its steps are small beside it, and only then."""
    values, expected = COLUMNS[name]
    for keys in ({}, {"changes": ["x"]}):
        found = load(tmp_path, {"x": values}, **keys)
        assert found.dtype == expected
        assert (found.series[0].values[:, 0] == values.astype(expected)).all()
        assert ("x" in found.doubles) is (expected == DOUBLE)


def test_a_feature_that_is_not_predicted_needs_only_its_own_spread(tmp_path: Path) -> None:
    """Small steps of a covariate do not matter; its spread does, and then all columns are read in double precision."""
    seconds = 1.7e9 + 60.0 * np.arange(4000)
    assert load(tmp_path, {"x": walk(4000), "at": seconds}).dtype == SINGLE
    narrow = load(tmp_path, {"x": walk(), "at": seconds[:400] / 100})
    assert narrow.dtype == DOUBLE
    assert list(narrow.doubles) == ["at"]
    assert narrow.series[0].values.tolist() == list(map(list, zip(walk(), seconds[:400] / 100, strict=True)))


def test_missing_values_and_ends_of_series_are_no_steps(tmp_path: Path) -> None:
    """The step from one series to the next does not count, nor does that across a missing value or the test part."""
    values = np.array([1.0, 2, 3, np.nan, 90, 91, 200, 201, 202, 500])
    rows = precision.Rows.of(np.arange(10) < 9, [0, 6])
    assert precision.scale(values, rows, by_steps=True).spread == 1
    file = tmp_path / "table.csv"
    file.write_text("x\n" + "\n".join("" if np.isnan(value) else repr(float(value)) for value in 1.7e9 + walk()) + "\n")
    assert datasets.load(file, Data(path="table.csv", targets=("x",), missing=("x",))).dtype == DOUBLE


def test_what_a_precision_does_not_carry_is_refused(tmp_path: Path) -> None:
    """The error names the column, its magnitude and its spread: in a bundle's single precision, and beyond double."""
    with pytest.raises(DataError, match=r"column x: values near 1.7e\+09 that differ by \d.*one number in single"):
        load(tmp_path, {"x": 1.7e9 + walk()}, SINGLE)
    assert load(tmp_path, {"x": 1e5 + walk()}, SINGLE).dtype == SINGLE
    assert load(tmp_path, {"x": walk()}, DOUBLE).dtype == DOUBLE
    with pytest.raises(DataError, match=r"column x: values near 1.7e\+18 that differ by \d.*subtract a constant"):
        load(tmp_path, {"x": 1.7e18 + 1000 * np.round(walk())})


def test_the_rule_bounds_the_rounding() -> None:
    """The rounding of the largest number that a precision carries is a 256th of the spread."""
    assert carries("float32", 2.0**16, 1.0)
    assert not carries("float32", 2.0**16 * 1.001, 1.0)
    assert carries("float64", 2.0**45, 1.0)
    assert not carries("float64", 2.0**45 * 1.001, 1.0)
    values = np.random.default_rng(0).uniform(2.0**15, 2.0**16, 10_000)
    assert np.abs(values.astype(np.float32) - values).max() <= SHARE


def test_digits_tell_neighbours_apart() -> None:
    """Five digits are the least; more of them where the magnitude is large beside the spread."""
    assert digits(500, 10) == 5
    assert f"{1700000001.288:.{digits(1.7e9, 0.2)}g}" == "1700000001.29"
    assert digits(1e300, 1e-300) == 17
    assert digits(5, 0) == 5
