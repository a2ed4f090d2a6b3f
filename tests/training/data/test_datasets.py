"""Loading of data sets from tables, and the errors for wrong ones."""

import hashlib
import os
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onward.training.config import Data
from onward.training.data import datasets
from onward.training.data.datasets import Dataset
from onward.training.errors import DataError


def load(file: Path, **keys: Any) -> Dataset:
    return datasets.load(file, Data.model_validate({"path": file.name, "targets": ["x"]} | keys))


def csv(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def column(values: Sequence[object], name: str = "x") -> str:
    return f"{name}\n" + "".join(f"{value}\n" for value in values)


def values(dataset: Dataset, series: int = 0, feature: int = 0) -> list[float]:
    found = dataset.series[series].values[:, feature].tolist()
    assert isinstance(found, list)
    return found


def test_csv_and_parquet_are_the_same(tmp_path: Path) -> None:
    """The format of the file changes no value, no order, no name and no split."""
    days = [date(2020, 1, 1) + timedelta(days=i % 20) for i in range(40)]
    rng = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "day": [days[i] for i in rng.permutation(20)] + days[20:],
            "who": ["b"] * 20 + ["a"] * 20,
            "x": rng.standard_normal(40) * 1e3,
            "n": rng.integers(-9, 9, 40),
        }
    )
    table.write_csv(tmp_path / "t.csv")
    table.write_parquet(tmp_path / "t.parquet")
    keys = {"features": ["n", "x"], "series": "who", "time": "day"}
    from_csv, from_parquet = load(tmp_path / "t.csv", **keys), load(tmp_path / "t.parquet", **keys)
    assert [series.name for series in from_csv.series] == [series.name for series in from_parquet.series] == ["b", "a"]
    for left, right in zip(from_csv.series, from_parquet.series, strict=True):
        assert left.values.dtype == np.float32
        assert left.values.tobytes() == right.values.tobytes()
        assert (left.validation_from, left.test_from) == (right.validation_from, right.test_from)
    assert from_csv.steps == 40
    second = table.tail(20)
    assert from_csv.series[1].values.tolist() == second.select("n", "x").to_numpy().astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y\n" + "1\n" * 9, "no column x; it has y"),
        (
            column([1, 2, "", 4, 5]),
            "row 3, column x: no value; in training, list a feature that may be missing under data.missing",
        ),
        (column([1, 2, "oops", 4, 5]), "row 3, column x: 'oops' is not a number"),
        (
            column(["2020-01-01"] * 5),
            "row 1, column x: '2020-01-01' is not a number (5 such rows; also row 2: '2020-01-01', row 3",
        ),
        (column([1, 2, 3, "NaN", 5]), "row 4, column x: no value"),
        (column([1, "inf", 3, 4, 5]), "row 2, column x: inf is not a finite 32-bit number"),
        (column([1, 2, 3, 4, "-1e39"]), "row 5, column x: -1e+39 is not a finite 32-bit number"),
        ("", "is empty: a table begins with the names of its columns"),
        ("x\n", "has no rows"),
        ("x\n1\n2,3\n4\n5\n", "row 2: has 2 cells, the header has 1; the separator is the comma"),
        (column([1, 2, 3]), "the file has 3 steps; training, validation and test need at least 4"),
    ],
)
def test_the_error_for_a_wrong_table_names_row_and_column(text: str, message: str, tmp_path: Path) -> None:
    """No cell is filled in, dropped or rounded: the error names the file, the row and the column."""
    file = csv(tmp_path, text)
    with pytest.raises(DataError) as refused:
        load(file)
    assert str(refused.value).startswith(f"{file}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["number", "__row", "index", "literal", ""])
def test_a_column_may_have_any_name(name: str, tmp_path: Path) -> None:
    """No name is taken by the loader itself, neither in a good table nor in an error."""
    header = name or '""'
    assert values(load(csv(tmp_path, column(range(9), header)), targets=[name])) == list(range(9))
    with pytest.raises(DataError, match=f"row 3, column {name}: 'a' is not a number"):
        load(csv(tmp_path, column([1, 2, "a", 4, 5], header)), targets=[name])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[1.0]] * 9, r"row 1, column x: .* is not a number \(9 such rows; also row 2"),
        ([timedelta(days=1)] * 9, r"row 1, column x: .* is not a number \(9 such rows; also row 2"),
        (["1", "a"] * 9, "row 2, column x: 'a' is not a number"),
        ([1.0, None] * 9, "row 2, column x: no value"),
        ([1.0, float("-inf")] * 9, "row 2, column x: -inf is not a finite"),
    ],
)
def test_the_error_for_a_wrong_parquet_table_names_row_and_column(
    cells: list[object], message: str, tmp_path: Path
) -> None:
    """Parquet has types that CSV lacks; texts are read as those of CSV, and no other type is taken for a number."""
    file = tmp_path / "t.parquet"
    pl.DataFrame({"x": cells}).write_parquet(file)
    with pytest.raises(DataError, match=message):
        load(file)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    """Training reads its file twice, so a named pipe would wait for ever."""
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"t\.csv: cannot be read twice"):
        load(tmp_path / "t.csv")


def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path) -> None:
    """The errors for an unknown suffix, an absent file and damaged bytes name the file."""
    with pytest.raises(DataError, match=r"t\.xlsx: expected a table whose name ends in \.csv, \.tsv"):
        load(csv(tmp_path, "x\n1\n", "t.xlsx"))
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read: "):
        load(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read: "):
        load(csv(tmp_path, "junk", "t.parquet"))
    (tmp_path / "latin.csv").write_bytes(b"x\n\xff\n1\n2\n3\n4\n")
    with pytest.raises(DataError, match=r"latin\.csv: line 2: b'\\xff' is not UTF-8"):
        load(tmp_path / "latin.csv")


def test_times_are_sorted_within_each_series(tmp_path: Path) -> None:
    """Every series is in time order whatever the file's order, and numbers and dates sort as such, not as text."""
    rows = [(name, day) for day in (3, 10, 1, 2, 9) for name in "ba"]
    text = "who,day,x\n" + "".join(f"{name},{day},{day * (1 if name == 'a' else -1)}\n" for name, day in rows)
    dataset = load(csv(tmp_path, text), series="who", time="day")
    assert [series.name for series in dataset.series] == ["b", "a"]
    assert values(dataset, 0) == [-1, -2, -3, -9, -10]
    assert values(dataset, 1) == [1, 2, 3, 9, 10]
    dates = "day,x\n" + "".join(f"2020/{day:02}/01,{day}\n" for day in (12, 3, 1, 11, 2, 10))
    assert values(load(csv(tmp_path, dates), time="day")) == [1, 2, 3, 10, 11, 12]
    assert values(load(csv(tmp_path, dates))) == [12, 3, 1, 11, 2, 10]


def test_a_time_twice_in_one_series_is_refused(tmp_path: Path) -> None:
    """Two steps at one time have no order, so they are refused; the same time in two series is allowed."""
    text = "who,day,x\n" + "".join(f"{name},{day},{day}\n" for name in "ab" for day in range(6))
    assert load(csv(tmp_path, text), series="who", time="day").steps == 12
    with pytest.raises(
        DataError, match=r"1 row has a time that an earlier row of the same series has: row 13 \(series b, 3\)"
    ):
        load(csv(tmp_path, text + "b,3,1\n"), series="who", time="day")


def test_times_that_are_text_are_refused(tmp_path: Path) -> None:
    """Text sorts as text ("t10" before "t9"), which would silently train on a shuffled past."""
    text = "t,x\n" + "".join(f"t{i},{i}\n" for i in range(12))
    with pytest.raises(
        DataError, match="row 1, column t: 't0' is neither a number nor a date; write times as numbers, or"
    ):
        load(csv(tmp_path, text), time="t")


def test_a_period_needs_that_much_past(tmp_path: Path) -> None:
    """A season longer than the steps before the test part is refused before any training."""
    file = csv(tmp_path, column(range(20)))
    assert load(file, period=17).steps == 20
    with pytest.raises(DataError, match="the file has 17 steps before its test part, fewer than period 18"):
        load(file, period=18)


@pytest.mark.parametrize("steps", [4, 5, 13, 14, 100, 1001])
def test_the_split_is_by_time(steps: int, tmp_path: Path) -> None:
    """Training, validation and test part follow each other without overlap or gap, in the documented shares."""
    (series,) = load(csv(tmp_path, column(range(steps)))).series
    assert series.train.tolist() == series.values[: series.validation_from].tolist()
    assert 2 <= series.validation_from < series.test_from < steps
    assert steps - series.test_from == max(1, int(steps * 0.15))
    assert series.test_from - series.validation_from == max(1, int(steps * 0.15))
    assert series.values[:, 0].tolist() == list(range(steps))


def test_the_hash_is_of_the_file(tmp_path: Path) -> None:
    """A bundle's provenance distinguishes its data from any other: a changed cell changes the hash."""
    first = load(csv(tmp_path, column(range(9)))).sha256
    assert first == hashlib.sha256(column(range(9)).encode()).hexdigest()
    assert load(csv(tmp_path, column([*range(8), 9]))).sha256 != first
    assert load(csv(tmp_path, column(range(9)))).sha256 == first


def test_the_largest_float32_is_accepted(tmp_path: Path) -> None:
    """The largest finite 32-bit number is within the limits."""
    assert max(values(load(csv(tmp_path, column([1, 2, 3, 3.4028234663852886e38, 5]))))) == float(np.finfo("f4").max)
