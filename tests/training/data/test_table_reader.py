"""Columns of every kind: which cells are refused, with their row and column, and which are accepted."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onward.training.config import Config, Data
from onward.training.data import datasets
from onward.training.data.datasets import Dataset
from onward.training.errors import DataError


def load(file: Path, **keys: Any) -> Dataset:
    return datasets.load(file, Data.model_validate({"path": file.name, "targets": ["x"]} | keys))


def csv(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def rows(*columns: str, n: int = 12, **cells: Any) -> str:
    """Returns a CSV of whole numbers: every cell of row i, from 1, is i, except for those in `cells`."""
    lines = [",".join(str(dict(cells.get(column, {})).get(i, i)) for column in columns) for i in range(1, n + 1)]
    return "\n".join([",".join(columns), *lines]) + "\n"


FEATURES = {"features": ["x", "w"]}
EVENTS = {"targets": ["item"], "categories": ["item"], "series": "s", "time": "t"}

FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a missing value": (rows("x", "w", w={5: ""}), FEATURES, "row 5, column w: no value"),
    "missing in another column than listed": (
        rows("x", "w", x={3: ""}, w={5: ""}),
        FEATURES | {"missing": ["w"]},
        "row 3, column x: no value",
    ),
    "a word that may be missing": (
        rows("x", "w", w={2: "", 7: "oops"}),
        FEATURES | {"missing": ["w"]},
        "row 7, column w: 'oops' is not a number",
    ),
    "infinite though it may be missing": (
        rows("x", "w", w={2: "", 7: "inf"}),
        FEATURES | {"missing": ["w"]},
        "row 7, column w: inf is not a finite 32-bit number",
    ),
    "missing in all of training": (
        rows("x", "w", n=20, w=dict.fromkeys(range(1, 15), "")),
        FEATURES | {"missing": ["w"]},
        "column w: no value in all of the training part",
    ),
    "no series": (rows("x", "s", s={4: ""}), {"series": "s"}, "row 4, column s: no value"),
    "no time": (rows("x", "t", t={4: ""}), {"time": "t"}, "row 4, column t: has no value: each row needs a time"),
    "no label": (
        rows("x", "who", who={4: ""}),
        {"targets": [], "features": ["x"], "label": "who"},
        "row 4, column who: no value",
    ),
    "no part": (rows("x", "s", "p", p={4: ""}), {"series": "s", "part": "p"}, "row 4, column p: no value"),
    "static that changes": (
        rows("x", "w", w=dict.fromkeys(range(1, 9), 1)),
        FEATURES | {"static": ["w"]},
        "row 9, column w: a static feature changes within its series",
    ),
    "static that goes missing": (
        rows("x", "w", w=dict.fromkeys(range(1, 13), 1) | {8: ""}),
        FEATURES | {"static": ["w"], "missing": ["w"]},
        "row 8, column w: a static feature changes within its series",
    ),
    "a label of a sequence that changes": (
        "s,x,who\n" + "".join(f"{s},{i},{'b' if (s, i) == (3, 4) else 'a'}\n" for s in range(20) for i in range(5)),
        {"targets": [], "features": ["x"], "label": "who", "per": "sequence", "series": "s", "split": "sequences"},
        "row 20, column who: a label of whole series changes within its series",
    ),
    "a part that changes": (
        rows("x", "s", "p", s=dict.fromkeys(range(1, 13), 1), p=dict.fromkeys(range(1, 13), "train") | {6: "test"}),
        {"series": "s", "part": "p"},
        "row 6, column p: the part of a whole series changes within its series",
    ),
    "a moment twice": (rows("x", "t", t={6: 5}), {"time": "t"}, "1 row has a time that an earlier row has: row 6 (5)"),
    "a category that training has not": (
        rows("x", "w", w=dict.fromkeys(range(1, 12), "a") | {12: "zz"}),
        FEATURES | {"categories": ["w"]},
        "row 12, column w: 'zz' is not a category of the training part; with unknown = true it is accepted",
    ),
    "a label that training has not": (
        rows("x", "who", who=dict.fromkeys(range(1, 12), 3) | {11: 4}),
        {"targets": [], "features": ["x"], "label": "who"},
        "row 11, column who: '4' is not a category of the training part",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_error_for_a_wrong_column_names_row_and_column(fault: str, tmp_path: Path) -> None:
    """The file, the row and the column, as a person counts them: the first row below the header is row 1."""
    text, keys, message = FAULTS[fault]
    file = csv(tmp_path, text)
    with pytest.raises(DataError) as refused:
        load(file, **keys)
    assert str(refused.value).startswith(f"{file}: {message}")


def test_the_row_is_the_files_even_where_rows_are_sorted(tmp_path: Path) -> None:
    """Sorting by time and by series does not renumber them."""
    text = "s,t,x\n" + "".join(
        f"{s},{t},{'oops' if (s, t) == ('a', 2) else t}\n" for t in range(9, 0, -1) for s in "ba"
    )
    with pytest.raises(DataError, match="row 16, column x: 'oops' is not a number"):
        load(csv(tmp_path, text), series="s", time="t")


def test_events_may_share_a_time_and_keep_their_order(tmp_path: Path) -> None:
    """Two events may have one time: the file's order is theirs. Two measurements at one time are refused."""
    pairs = [(t, item) for t in (3, 1, 2) for item in "cab"]
    text = "s,t,item\n" + "".join(f"{s},{t},{item}\n" for s in (7, 5) for t, item in pairs)
    dataset = load(csv(tmp_path, text), **EVENTS)
    assert [series.name for series in dataset.series] == ["7", "5"]
    assert dataset.series[0].values[:, 0].tolist() == [2, 0, 1] * 3
    numbers = "t,x\n" + "".join(f"{t},{i}\n" for i, (t, _) in enumerate(pairs))
    with pytest.raises(DataError, match=r"6 rows have a time that an earlier row has: row 5 \(1\)"):
        load(csv(tmp_path, numbers), time="t")
    dated = text.replace("7,1,c", "7,3,c")
    assert load(csv(tmp_path, dated), **EVENTS).series[0].values[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]


def test_what_may_be_missing_is_missing(tmp_path: Path) -> None:
    """An empty cell of a number or of a category stays missing, and no other cell is."""
    text = rows("x", "w", "word", n=20, w={2: "", 19: ""}, word={i: "ab"[i % 2] for i in range(1, 21)} | {4: ""})
    keys = {"features": ["x", "w", "word"], "missing": ["w", "word"], "categories": ["word"], "known": ["w"], "lead": 0}
    dataset = load(csv(tmp_path, text), **keys)
    values = dataset.series[0].values
    assert np.argwhere(np.isnan(values)).tolist() == [[1, 1], [3, 2], [18, 1]]
    assert values[:3, 2].tolist() == [1, 0, 1]
    assert [(feature.name, feature.kind, feature.role, feature.nullable) for feature in dataset.features] == [
        ("x", "number", "observed", False),
        ("w", "number", "known", True),
        ("word", "category", "observed", True),
    ]


def test_a_label_is_not_a_feature(tmp_path: Path) -> None:
    """A label's class indices are stored beside the values, in the order of the classes."""
    text = rows("x", "who", n=20, who={i: ("b", "c", "a")[i % 3] for i in range(1, 21)})
    dataset = load(csv(tmp_path, text), targets=[], features=["x"], label="who")
    (series,) = dataset.series
    assert dataset.classes == ("a", "b", "c")
    assert series.labels is not None
    assert series.labels.tolist() == [[1, 2, 0][i % 3] for i in range(1, 21)]
    assert series.values.shape == (20, 1)


def test_evaluation_uses_the_bundles_categories(tmp_path: Path) -> None:
    """A file that is evaluated gets the bundle's category indices, whatever its own training part contains."""
    keys = {"features": ["x", "w"], "categories": ["w"], "unknown": True}
    first = load(csv(tmp_path, rows("x", "w", w={i: "abc"[i % 3] for i in range(1, 13)})), **keys)
    settings = Data.model_validate({"path": "t.csv", "targets": ["x"]} | keys)
    new_file = csv(tmp_path, rows("x", "w", w={i: "cdd"[i % 3] for i in range(1, 13)}), "other.csv")
    loaded = datasets.load(new_file, settings, (first.features, ()))
    assert loaded.features == first.features
    assert set(loaded.series[0].values[:, 1].tolist()) == {2, 3}


@pytest.mark.parametrize("cell", ["x", "w", "who", "t"])
def test_the_hash_changes_with_any_cell(cell: str, tmp_path: Path) -> None:
    """A changed number, category, label or time changes the hash: each is part of the training data."""
    keys: dict[str, Any] = {"targets": [], "features": ["x", "w"], "label": "who", "categories": ["w"], "time": "t"}
    plain: dict[str, Any] = {name: {i: i % 3 for i in range(1, 13)} for name in ("w", "who")}
    first = load(csv(tmp_path, rows("x", "w", "who", "t", **plain)), **keys)
    changed = plain | {cell: plain.get(cell, {}) | {12: 0 if cell != "t" else 99}}
    if cell in plain:
        changed[cell][12] = 1
    second = load(csv(tmp_path, rows("x", "w", "who", "t", **changed)), **keys)
    assert first.sha256 != second.sha256
    assert load(csv(tmp_path, rows("x", "w", "who", "t", **plain)), **keys).sha256 == first.sha256


def test_a_parquet_null_is_missing_and_a_nan_too(tmp_path: Path) -> None:
    """Both are a mask, not a number."""
    file = tmp_path / "t.parquet"
    pl.DataFrame({"x": [1.0, None, float("nan"), *range(4, 13)]}).write_parquet(file)
    values = load(file, missing=["x"]).series[0].values[:, 0]
    assert np.flatnonzero(np.isnan(values)).tolist() == [1, 2]
    with pytest.raises(DataError, match="row 2, column x: no value"):
        load(file)


TABLE = {"path": "t.csv", "targets": ["x"]}

DATA_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a target twice": ({"targets": ["x", "x"]}, "targets names a column twice"),
    "a cycle twice": ({"time": "t", "calendar": ["day", "day"]}, "calendar names a feature twice"),
    "categories unread": ({"categories": ["w"]}, "categories are features: w is none"),
    "known unread": ({"known": ["w"]}, "known are features: w is none"),
    "static unread": ({"static": ["w"]}, "static are features: w is none"),
    "missing unread": ({"missing": ["w"]}, "missing are features: w is none"),
    "calendar without time": ({"calendar": ["day"]}, "calendar needs a time column to be derived from: set time"),
    "target unread": ({"features": ["w"]}, "features must include every target, or its surprise is unknown: add x"),
    "target known": ({"known": ["x"]}, "a target is neither known in advance nor static: x"),
    "target static": ({"static": ["x"]}, "a target is neither known in advance nor static: x"),
    "rare but none unknown": ({"min_count": 2}, "with min_count the rarer categories are unknown: set unknown = true"),
    "text with targets": ({"text": "bytes"}, "a text has no columns: leave out targets, label, features, series"),
    "text with series": ({"text": "bytes", "targets": [], "series": "s"}, "a text has no columns"),
    "label with targets": ({"label": "w", "features": ["x"]}, "a label is predicted instead of targets, and is no"),
    "label read": ({"targets": [], "label": "w", "features": ["w"]}, "a label is predicted instead of targets, and is"),
    "label of nothing": ({"targets": [], "label": "w"}, "a label is predicted from features: name them"),
    "nothing": ({"targets": []}, "nothing is predicted: set targets, label or text"),
    "sequence of targets": ({"per": "sequence", "series": "s"}, 'per = "sequence" is for a label, and needs'),
    "sequence of no series": (
        {"targets": [], "label": "w", "features": ["x"], "per": "sequence"},
        'per = "sequence" is for a label, and needs the column that tells series apart',
    ),
    "whole series of one": ({"split": "sequences"}, "to hold out whole series, name the column that tells them apart"),
    "part of one": ({"part": "p"}, "to hold out whole series, name the column that tells them apart: series"),
    "ends of sequences": (
        {"targets": [], "label": "w", "features": ["x"], "per": "sequence", "series": "s"},
        'a label of whole series is validated on whole series: set split = "sequences" or part',
    ),
}


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_data_that_makes_no_sense_is_refused(fault: str) -> None:
    """The error comes before any file is opened, and says what to set instead."""
    keys, message = DATA_FAULTS[fault]
    with pytest.raises(ValueError, match="Value error") as refused:
        Data.model_validate(TABLE | keys)
    assert message in str(refused.value)


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "numbers by a choice": ({}, "categorical", 'the data is for predicting numbers: set model.head = "gaussian"'),
    "numbers by a label": ({}, "label", 'predicting numbers: set model.head = "gaussian", not "label"'),
    "categories by numbers": (
        {"categories": ["x"]},
        "point",
        'the data is for predicting categories: set model.head = "categorical", not "point"',
    ),
    "a text by numbers": (
        {"text": "bytes", "targets": []},
        "gaussian",
        'the data is for predicting categories: set model.head = "categorical", not "gaussian"',
    ),
    "a label by a choice": (
        {"targets": [], "label": "w", "features": ["x"]},
        "categorical",
        'the data is for predicting labels: set model.head = "label", not "categorical"',
    ),
    "two categories": (
        {"targets": ["x", "y"], "categories": ["x", "y"]},
        "categorical",
        "categories are predicted one at a time, not x, y together",
    ),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_a_head_that_does_not_fit_its_data_is_refused(fault: str) -> None:
    """The error names a head that fits, and the configuration is valid with it."""
    keys, head, message = CONFIG_FAULTS[fault]
    document: dict[str, Any] = {"name": "m", "data": TABLE | keys, "output": {"repository": "m"}}
    with pytest.raises(ValueError, match="Value error") as refused:
        Config.model_validate(document | {"model": {"head": head}})
    assert message in str(refused.value)
    if "set model.head" in message:
        fitting = message.split('"')[1]
        assert Config.model_validate(document | {"model": {"head": fitting}}).model.head == fitting


def test_a_mixture_of_a_number_and_a_category_is_refused() -> None:
    """A head predicts either numbers or a category."""
    keys = TABLE | {"targets": ["x", "y"], "categories": ["y"]}
    with pytest.raises(ValueError, match="categories are predicted one at a time, not x, y together"):
        Config.model_validate(
            {"name": "m", "data": keys, "output": {"repository": "m"}, "model": {"head": "categorical"}}
        )
