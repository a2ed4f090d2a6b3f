"""The parts of a data set: by shares, dates, a column or a draw with a fixed seed, or all in the training part."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.training.config import Config, ConfigError, Data, read_moment
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


def cuts(dataset: Dataset) -> list[tuple[int, int]]:
    return [(series.validation_from, series.test_from) for series in dataset.series]


def days(tmp_path: Path, starts: dict[str, str], count: int = 10, form: str = "%Y-%m-%d") -> Path:
    """Writes a series of so many days from each start on."""
    lines = ["s,t,x"]
    for name, start in starts.items():
        first = date.fromisoformat(start)
        lines += [f"{name},{(first + timedelta(day)).strftime(form)},{day}" for day in range(count)]
    file = tmp_path / "days.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"validation": 0.2, "test": 0.4}, (4, 6)),
        ({"validation": 0, "test": 0.4}, (6, 6)),
        ({"validation": 0.2, "test": 0}, (8, 10)),
        ({"validation": 0.01, "test": 0.01}, (8, 9)),
        ({"split": "none"}, (10, 10)),
        ({"validation": 0, "test": 0}, (10, 10)),
    ],
)
def test_shares_are_those_of_each_series(keys: dict[str, Any], expected: tuple[int, int], tmp_path: Path) -> None:
    """A part has its share of the steps, at least one; a share of 0 leaves the part out; so it is with a text."""
    dataset = load(days(tmp_path, {"a": "2024-01-01", "b": "2024-03-01"}), **keys)
    assert cuts(dataset) == [expected] * 2
    assert dataset.parts == {
        "train": 2 * expected[0], "validation": 2 * (expected[1] - expected[0]), "test": 20 - 2 * expected[1]
    }  # fmt: skip
    (tmp_path / "t.txt").write_text("abababbaab")
    text = datasets.load(tmp_path / "t.txt", Data.model_validate({"path": "t.txt", "text": "characters"} | keys))
    assert cuts(text) == [expected]


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%d.%m.%Y", "%Y-%m-%dT00:00:00+02:00"])
def test_dates_cut_all_series_at_the_same_times(form: str, tmp_path: Path) -> None:
    """A step belongs to a part by its time on the table's clock, however it is written; whole series may lie in one."""
    starts = {"a": "2024-01-01", "b": "2024-01-06", "c": "2023-01-01", "d": "2025-01-01"}
    file = days(tmp_path, starts, form=form)
    found = cuts(load(file, time="t", validation_from=date(2024, 1, 6), test_from="2024-01-09"))
    assert found == [(5, 8), (0, 3), (10, 10), (0, 0)]
    assert cuts(load(file, time="t", test_from="2024-01-09", validation=0.2)) == [(6, 8), (1, 3), (8, 10), (0, 0)]
    assert cuts(load(file, time="t", validation_from="2024-01-06", test=0.2)) == [(5, 8), (0, 8), (8, 8), (0, 8)]


def test_moments_are_instants_where_they_have_an_offset(tmp_path: Path) -> None:
    """An offset from UTC is compared with instants, and refused where the table has none; numbers with numbers."""
    file = days(tmp_path, {"a": "2024-07-01"})
    keys = {"time": "t", "time_zone": "Europe/Berlin", "validation": 0.1}
    assert cuts(load(file, **keys, test_from="2024-07-06T00:00:00")) == [(4, 5)]
    assert cuts(load(file, **keys, test_from="2024-07-05T22:00:00Z")) == [(4, 5)]
    assert cuts(load(file, **keys, test_from="2024-07-05T22:00:01Z")) == [(5, 6)]
    with pytest.raises(
        DataError, match=r"data\.test_from: .* has an offset from UTC, but the clock of the table has none"
    ):
        load(file, time="t", test_from="2024-07-05T22:00:00Z")
    with pytest.raises(DataError, match=r"data\.test_from: 7 is a number, but the times of the table are dates"):
        load(file, time="t", test_from=7)
    assert cuts(load(table(tmp_path), time="t", validation_from=2, test_from=3.5))[0] == (2, 4)
    with pytest.raises(
        DataError, match=r"data\.test_from: 2024-01-01 is a date, but the times of the table are numbers"
    ):
        load(table(tmp_path), time="t", test_from="2024-01-01")


def test_a_date_that_leaves_a_part_empty_is_refused(tmp_path: Path) -> None:
    """The error has the setting, the empty part and the range of the times."""
    file = days(tmp_path, {"a": "2024-01-01"})
    for key, moment, part in (
        ("test_from", "2025-01-01", "test"),
        ("validation_from", "2023-01-01", "train"),
        ("validation_from", "2024-01-10", "validation"),
    ):
        with pytest.raises(DataError) as refused:
            load(file, time="t", **{key: moment})
        assert str(refused.value) == (
            f"{file}: with data.{key} = {moment} no step is left for {part}; the times are from 2024-01-01 00:00:00 to "
            "2024-01-10 00:00:00"
        )


def test_shares_are_those_of_the_number_of_series(tmp_path: Path) -> None:
    """Whole series are held out in the same shares; a share of 0 holds out none, also where a column has the parts."""
    found = parts(load(table(tmp_path), split="sequences", validation=0.1, test=0.3))
    assert [len(found[part]) for part in ("train", "validation", "test")] == [12, 2, 6]
    found = parts(load(table(tmp_path), split="sequences", validation=0.1, test=0))
    assert [len(found[part]) for part in ("train", "validation", "test")] == [18, 2, 0]
    found = parts(load(table(tmp_path, {3: "test"}), part="p", validation=0.5))
    assert [len(found[part]) for part in ("train", "validation", "test")] == [10, 9, 1]
    found = parts(load(table(tmp_path, {3: "test"}), part="p", validation=0))
    assert [len(found[part]) for part in ("train", "validation", "test")] == [19, 0, 1]


def test_short_series_are_trained_on_where_nothing_is_held_out(tmp_path: Path) -> None:
    """The least number of steps depends on the parts that there are."""
    file = days(tmp_path, {"a": "2024-01-01"}, count=3)
    assert cuts(load(file, split="none")) == [(3, 3)]
    assert cuts(load(file, test=0)) == [(2, 3)]
    with pytest.raises(DataError, match=r"training, validation and test need at least 4 steps: series a \(3 steps\)"):
        load(file)
    with pytest.raises(DataError, match=r"training and test need at least 6 steps: series a"):
        load(file, validation=0, test=0.8)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"validation": 0.5, "test": 0.5}, "leave nothing for the training part"),
        ({"test_from": "2024-01-01"}, "needs a column of times: set time"),
        ({"test_from": "2024-01-01", "time": "t", "split": "sequences"}, 'set split = "ends", without part'),
        ({"test_from": "2024-01-01", "time": "t", "part": "p"}, 'set split = "ends", without part'),
        ({"split": "none", "part": "p"}, "leave out part"),
        ({"test_from": "last week", "time": "t"}, "Invalid isoformat string"),
        ({"test": 1.0}, "less than 1"),
    ],
)
def test_contradictory_splits_are_refused(keys: dict[str, Any], says: str) -> None:
    """The configuration is refused before the data is read."""
    with pytest.raises(ValueError, match=says):
        Data.model_validate({"path": "t.csv", "targets": ["x"], "series": "s"} | keys)


def test_a_moment_of_the_command_line_is_a_number_or_a_time() -> None:
    """Numbers are numbers, and anything else must be a time."""
    assert read_moment("12.5") == 12.5
    assert read_moment("2024-07-01") == "2024-07-01"
    with pytest.raises(ConfigError, match="'soon' is neither a time, as 2012-01-31 or"):
        read_moment("soon")


def test_dates_of_the_file_are_those_of_the_provenance() -> None:
    """A date of TOML is kept in ISO 8601, so that the configuration in a bundle is the same."""
    document = {"name": "x", "data": {"path": "t", "targets": ["x"], "time": "t", "test_from": date(2024, 1, 6)}}
    settings = Config.model_validate(document)
    assert settings.data.test_from == "2024-01-06"
    assert Config.model_validate(settings.model_dump(mode="json"), strict=False) == settings
