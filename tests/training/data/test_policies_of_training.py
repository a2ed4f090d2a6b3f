"""Policies for rows and short series, as a configuration of training sets them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.training.config import Data
from onward.training.data.datasets import Dataset, load
from onward.training.errors import DataError


def dataset(folder: Path, text: str, **settings: Any) -> Dataset:
    (folder / "x.csv").write_text(text)
    return load(folder / "x.csv", Data.model_validate({"path": "x.csv", "targets": ["x"], **settings}))


def hours(*skipped: int, steps: int = 40) -> str:
    return "t,x\n" + "".join(
        f"2024-01-{1 + step // 24:02}T{step % 24:02}:00:00,{step}\n" for step in range(steps) if step not in skipped
    )


def test_gaps_become_missing_steps_with_a_calendar(tmp_path: Path) -> None:
    """Steps of a gap are inserted without values; their calendar features are those of their times."""
    settings: Any = {"time": "t", "calendar": ["day"], "missing": ["x"]}
    whole = dataset(tmp_path, hours(), **settings)
    filled = dataset(tmp_path, hours(5, 6, 20), gaps="missing", **settings)
    assert np.flatnonzero(np.isnan(filled.series[0].values[:, 0])).tolist() == [5, 6, 20]
    assert np.array_equal(filled.series[0].values[:, 1:], whole.series[0].values[:, 1:])
    assert filled.table is not None
    assert filled.table.interval == 3600
    assert dataset(tmp_path, hours(5, 6, 20), **settings).steps == 37
    with pytest.raises(
        DataError, match="2 gaps in times that are 1 hour apart, in which 3 rows are missing: after row 5"
    ):
        dataset(tmp_path, hours(5, 6, 20), gaps="refuse", **settings)


@pytest.mark.parametrize(("policy", "value"), [("first", 5), ("last", 50), ("mean", 27.5)])
def test_repeated_times_are_resolved(policy: str, value: float, tmp_path: Path) -> None:
    """A measurement that is there twice counts once, as the policy says."""
    loaded = dataset(tmp_path, hours() + "2024-01-01T05:00:00,50\n", time="t", duplicates=policy)
    assert loaded.steps == 40
    assert loaded.series[0].values[5, 0] == value
    assert loaded.summary is not None
    assert loaded.summary.facts()["repeated times"].startswith("1 row, ")


SHORT = "s,x\n" + "".join(
    f"{name},{step}\n" for name, steps in (("a", 30), ("b", 3), ("c", 20), ("d", 1)) for step in range(steps)
)


def test_short_series_are_all_counted(tmp_path: Path) -> None:
    """A refusal counts the series that are too short, names the first and says what helps."""
    with pytest.raises(DataError) as refused:
        dataset(tmp_path, SHORT, series="s")
    assert str(refused.value).endswith(
        "x.csv: 2 of 4 series are too short, because training, validation and test need at least 4 steps: "
        'series b (3 steps), series d (1 steps); set data.short_series to "train" or "drop"'
    )
    with pytest.raises(
        DataError, match=r"3 of 4 series are too short, .*, and a season of 20 steps before the test part"
    ):
        dataset(tmp_path, SHORT, series="s", period=20)


def test_short_series_train(tmp_path: Path) -> None:
    """A short series is in the training part as a whole, if so set; the others are split as ever."""
    loaded = dataset(tmp_path, SHORT, series="s", short_series="train")
    assert [(len(item.train), item.test_from, len(item.values)) for item in loaded.series] == [
        (22, 26, 30), (3, 3, 3), (14, 17, 20), (1, 1, 1),
    ]  # fmt: skip
    assert loaded.summary is not None
    assert loaded.summary.facts()["short series"] == "2 of 4, in the training part as a whole"


def test_short_series_are_dropped(tmp_path: Path) -> None:
    """A short series is left out with its categories, if so set."""
    loaded = dataset(tmp_path, SHORT, series="s", short_series="drop")
    assert [item.name for item in loaded.series] == ["a", "c"]
    assert loaded.summary is not None
    assert loaded.summary.facts()["short series"] == "2 of 4, left out"
    lines = SHORT.replace("s,x", "s,k,x").splitlines()
    worded = "\n".join(
        [lines[0], *(f"{line[0]},{line[0] if line[0] == 'd' else 'w'},{line[2:]}" for line in lines[1:])]
    )
    features: Any = {"features": ["x", "k"], "categories": ["k"], "series": "s", "short_series": "drop"}
    assert dataset(tmp_path, worded, **features).features[1].categories == ("w",)


@pytest.mark.parametrize("policy", ["train", "drop"])
def test_short_series_alone_are_refused(policy: str, tmp_path: Path) -> None:
    """If all series are short, nothing could be validated."""
    with pytest.raises(DataError, match="1 of 1 series are too short"):
        dataset(tmp_path, "s,x\na,1\na,2\n", series="s", short_series=policy)
