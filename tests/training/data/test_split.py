"""Whole series held out: by a column, by time, or drawn, always the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.training.config import Data
from onward.training.data import datasets
from onward.training.data.datasets import Dataset
from onward.training.errors import DataError

SERIES, STEPS = 20, 5


def load(file: Path, **told: Any) -> Dataset:
    return datasets.load(file, Data.model_validate({"path": file.name, "targets": ["x"], "series": "s"} | told))


def table(tmp_path: Path, parts: dict[int, str] | None = None, begins: dict[int, int] | None = None) -> Path:
    """Series 0 to 19 of five steps, each step beside those of the others; x tells whose it is."""
    lines = ["s,t,x,p"]
    for step in range(STEPS):
        for s in range(SERIES):
            t = (begins or {}).get(s, 0) + step
            lines.append(f"name-{s},{t},{100 * s + step},{(parts or {}).get(s, 'train')}")
    file = tmp_path / "t.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def parts(dataset: Dataset) -> dict[str, set[int]]:
    """By part, the series; each is of one part altogether."""
    told: dict[str, set[int]] = {"train": set(), "validation": set(), "test": set()}
    for one in dataset.series:
        kinds = {(5, 5): "train", (0, 5): "validation", (0, 0): "test"}
        number = int(one.name.removeprefix("name-"))
        assert one.values[:, 0].tolist() == [100 * number + step for step in range(STEPS)]
        told[kinds[one.validation_from, one.test_from]].add(number)
    return told


def test_a_column_says_the_part(tmp_path: Path) -> None:
    """Each series is trained on, validated on or held out as a whole, as it says."""
    said = {1: "validation", 2: "test", 5: "test"}
    dataset = load(table(tmp_path, said), part="p")
    assert parts(dataset) == {"train": set(range(SERIES)) - {1, 2, 5}, "validation": {1}, "test": {2, 5}}
    assert [one.name for one in dataset.train] == [f"name-{s}" for s in range(SERIES) if s not in said]


def test_without_validation_some_of_training_validate(tmp_path: Path) -> None:
    """15% of the series trained on, none of the test's, and the same ones every time."""
    said = dict.fromkeys(range(6), "test")
    told = parts(load(table(tmp_path, said), part="p"))
    assert told["test"] == set(range(6))
    assert len(told["validation"]) == 2
    assert told["train"] | told["validation"] == set(range(6, SERIES))
    assert parts(load(table(tmp_path, said), part="p")) == told


@pytest.mark.parametrize(
    ("said", "says"),
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
def test_parts_that_cannot_be(said: dict[int, str], says: str, tmp_path: Path) -> None:
    """A part that is empty, or no part, is said with the file, and with the row where there is one."""
    file = table(tmp_path, said)
    with pytest.raises(DataError) as refused:
        load(file, part="p")
    assert str(refused.value) == f"{file}: {says}"


def test_the_latest_series_are_held_out(tmp_path: Path) -> None:
    """By when they begin, whatever their order in the file: 15% test, and 15% before those validate."""
    begins = {s: int(order) * 10 for s, order in enumerate(np.random.default_rng(1).permutation(SERIES))}
    latest = sorted(begins, key=lambda s: begins[s])
    told = parts(load(table(tmp_path, begins=begins), split="sequences", time="t"))
    assert told == {"train": set(latest[:-6]), "validation": set(latest[-6:-3]), "test": set(latest[-3:])}


def test_without_time_they_are_drawn_always_the_same(tmp_path: Path) -> None:
    """Not the last of the file, whose order may mean something, and the same for every run."""
    told = parts(load(table(tmp_path), split="sequences"))
    assert [len(told[part]) for part in ("train", "validation", "test")] == [14, 3, 3]
    assert told["test"] | told["validation"] != set(range(14, 20))
    assert parts(load(table(tmp_path), split="sequences")) == told


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_series(count: int, tmp_path: Path) -> None:
    """Three are one of each; fewer cannot be shared out."""
    file = tmp_path / "few.csv"
    file.write_text("s,x\n" + "".join(f"{s},{i}\n" for s in range(count) for i in range(4)))
    if count == 3:
        assert sorted((one.validation_from, one.test_from) for one in load(file, split="sequences").series) == [
            (0, 0),
            (0, 4),
            (4, 4),
        ]
        return
    with pytest.raises(DataError, match=f"few.csv: {count} series: none is left for train"):
        load(file, split="sequences")


def test_ends_of_series_are_held_out_by_default(tmp_path: Path) -> None:
    """Every series trains, validates and tests."""
    dataset = load(table(tmp_path))
    assert {(one.validation_from, one.test_from) for one in dataset.series} == {(3, 4)}
