"""Whole series are held out by a column, by time, or by a draw with a fixed seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.training.config import Data
from onward.training.data import datasets
from onward.training.data.datasets import Dataset
from onward.training.errors import DataError

SERIES, STEPS = 20, 5


def load(file: Path, **keys: Any) -> Dataset:
    return datasets.load(file, Data.model_validate({"path": file.name, "targets": ["x"], "series": "s"} | keys))


def table(tmp_path: Path, parts: dict[int, str] | None = None, begins: dict[int, int] | None = None) -> Path:
    """Writes series 0 to 19 of five steps, interleaved; x encodes the series and the step."""
    lines = ["s,t,x,p"]
    for step in range(STEPS):
        for s in range(SERIES):
            t = (begins or {}).get(s, 0) + step
            lines.append(f"name-{s},{t},{100 * s + step},{(parts or {}).get(s, 'train')}")
    file = tmp_path / "t.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def parts(dataset: Dataset) -> dict[str, set[int]]:
    """Returns the numbers of the series in each part; each series belongs to a single part."""
    parts: dict[str, set[int]] = {"train": set(), "validation": set(), "test": set()}
    for series in dataset.series:
        kinds = {(5, 5): "train", (0, 5): "validation", (0, 0): "test"}
        number = int(series.name.removeprefix("name-"))
        assert series.values[:, 0].tolist() == [100 * number + step for step in range(STEPS)]
        parts[kinds[series.validation_from, series.test_from]].add(number)
    return parts


def test_a_column_assigns_the_parts(tmp_path: Path) -> None:
    """Every series is trained on, validated on or held out as a whole, as the column says."""
    assigned = {1: "validation", 2: "test", 5: "test"}
    dataset = load(table(tmp_path, assigned), part="p")
    assert parts(dataset) == {"train": set(range(SERIES)) - {1, 2, 5}, "validation": {1}, "test": {2, 5}}
    assert [series.name for series in dataset.train] == [f"name-{s}" for s in range(SERIES) if s not in assigned]


def test_without_validation_some_of_training_validate(tmp_path: Path) -> None:
    """15% of the training series are drawn for validation, none of the test's, and the same ones every time."""
    assigned = dict.fromkeys(range(6), "test")
    first = parts(load(table(tmp_path, assigned), part="p"))
    assert first["test"] == set(range(6))
    assert len(first["validation"]) == 2
    assert first["train"] | first["validation"] == set(range(6, SERIES))
    assert parts(load(table(tmp_path, assigned), part="p")) == first


@pytest.mark.parametrize(
    ("assigned", "message"),
    [
        (dict.fromkeys(range(SERIES), "test"), "20 series: none is left for train, validation"),
        ({0: "validation"}, "20 series: none is left for test"),
        (
            dict.fromkeys(range(14), "test") | {19: "trian"},
            "row 20, column p: 'trian' is none of train, validation, test",
        ),
        (dict.fromkeys(range(15), "test"), "20 series: none is left for validation"),
    ],
)
def test_an_empty_or_misspelt_part_is_refused(assigned: dict[int, str], message: str, tmp_path: Path) -> None:
    """The error for an empty part or a wrong name has the file, and the row where there is one."""
    file = table(tmp_path, assigned)
    with pytest.raises(DataError) as refused:
        load(file, part="p")
    assert str(refused.value) == f"{file}: {message}"


def test_the_latest_series_are_held_out(tmp_path: Path) -> None:
    """Series are ordered by their beginning, not by the file: the last 15% test, and the 15% before those validate."""
    begins = {s: int(order) * 10 for s, order in enumerate(np.random.default_rng(1).permutation(SERIES))}
    latest = sorted(begins, key=lambda s: begins[s])
    found = parts(load(table(tmp_path, begins=begins), split="sequences", time="t"))
    assert found == {"train": set(latest[:-6]), "validation": set(latest[-6:-3]), "test": set(latest[-3:])}


def test_without_a_time_column_the_held_out_series_are_drawn_with_a_fixed_seed(tmp_path: Path) -> None:
    """The draw is not the end of the file, whose order may mean something, and is the same for every run."""
    found = parts(load(table(tmp_path), split="sequences"))
    assert [len(found[part]) for part in ("train", "validation", "test")] == [14, 3, 3]
    assert found["test"] | found["validation"] != set(range(14, 20))
    assert parts(load(table(tmp_path), split="sequences")) == found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_than_three_series_cannot_be_split(count: int, tmp_path: Path) -> None:
    """Three series are one for each part; fewer are refused."""
    file = tmp_path / "few.csv"
    file.write_text("s,x\n" + "".join(f"{s},{i}\n" for s in range(count) for i in range(4)))
    if count == 3:
        assert sorted(
            (series.validation_from, series.test_from) for series in load(file, split="sequences").series
        ) == [
            (0, 0),
            (0, 4),
            (4, 4),
        ]
        return
    with pytest.raises(DataError, match=f"few.csv: {count} series: none is left for train"):
        load(file, split="sequences")


def test_ends_of_series_are_held_out_by_default(tmp_path: Path) -> None:
    """Every series has a training, a validation and a test part."""
    dataset = load(table(tmp_path))
    assert {(series.validation_from, series.test_from) for series in dataset.series} == {(3, 4)}
