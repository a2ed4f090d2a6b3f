"""The categories of a model and their indices."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onward.model.manifest import Category
from onward.training.config import Data
from onward.training.data import datasets
from onward.training.data.datasets import Dataset
from onward.training.errors import DataError

Words = list[Any]


def load(tmp_path: Path, words: Words, *, suffix: str = ".csv", **keys: Any) -> Dataset:
    file = tmp_path / f"t{suffix}"
    table = pl.DataFrame({"word": words, "x": list(range(len(words)))})
    if suffix == ".csv":
        table.write_csv(file)
    else:
        table.write_parquet(file)
    document = {"path": file.name, "targets": ["word"], "categories": ["word"]}
    return datasets.load(file, Data.model_validate(document | keys))


def encoded(dataset: Dataset) -> list[float]:
    found = dataset.series[0].values[:, 0].tolist()
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("words", "categories"),
    [
        (["b", "a", "c", "a", "b"], ("a", "b", "c")),
        ([10, 9, -3, 9, 10], (-3, 9, 10)),
        (["10", "9", "b"], ("10", "9", "b")),
        (["true", "false"], ("false", "true")),
        (["\N{SNOWMAN}", " a", "a ", '"', "a,b", "é"], (" a", '"', "a ", "a,b", "é", "\N{SNOWMAN}")),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_categories_are_in_rising_order(
    suffix: str, words: Words, categories: tuple[Category, ...], tmp_path: Path
) -> None:
    """Words are ordered by their characters, whole numbers by value; each value gets its category's index.

    The categories of a text are words as written; only a file with types of its own has whole numbers.
    """
    if suffix == ".csv" and isinstance(words[0], int):
        words, categories = [str(word) for word in words], ("-3", "10", "9")
    dataset = load(tmp_path, words * 6, suffix=suffix)
    assert dataset.features[0].categories == categories
    assert encoded(dataset) == [categories.index(word) for word in words * 6]


def test_booleans_of_parquet_are_words(tmp_path: Path) -> None:
    """A column of booleans is two categories."""
    dataset = load(tmp_path, [True, False, False] * 5, suffix=".parquet")
    assert dataset.features[0].categories == ("false", "true")
    assert encoded(dataset)[:3] == [1, 0, 0]


WORDS = ["a"] * 10 + ["b"] * 3 + ["c", "a"] + ["a"] * 6 + ["d", "a", "c"]
"""24 steps, the first 18 trained on."""


def test_categories_are_those_of_the_training_part(tmp_path: Path) -> None:
    """A category outside the training part is refused with its row, or is unknown where that is allowed."""
    with pytest.raises(DataError, match=r"t\.csv: row 22, column word: 'd' is not a category of the training part"):
        load(tmp_path, WORDS)
    dataset = load(tmp_path, WORDS, unknown=True)
    feature = dataset.features[0]
    assert (feature.categories, feature.unknown, feature.category_count) == (("a", "b", "c"), True, 4)
    assert [encoded(dataset)[i] for i in (0, 10, 13, 21, 23)] == [0, 1, 2, 3, 2]


def test_rare_categories_are_unknown(tmp_path: Path) -> None:
    """min_count counts the training part alone: a category with one occurrence in it and one in the test is rare."""
    for least, categories in ((2, ("a", "b")), (3, ("a", "b")), (4, ("a",))):
        dataset = load(tmp_path, WORDS, unknown=True, min_count=least)
        assert dataset.features[0].categories == categories
        assert encoded(dataset) == [categories.index(word) if word in categories else len(categories) for word in WORDS]
    with pytest.raises(DataError, match="column word: no category occurs 99 times in the training part"):
        load(tmp_path, WORDS, unknown=True, min_count=99)


def test_missing_is_not_unknown(tmp_path: Path) -> None:
    """A missing value has no index; an unknown category has the index after the last."""
    words = ["a", None, "b"] * 6 + ["c", None]
    dataset = load(tmp_path, words, unknown=True, missing=["word"])
    assert dataset.features[0].categories == ("a", "b")
    assert np.array_equal(encoded(dataset), [0, np.nan, 1] * 6 + [2, np.nan], equal_nan=True)


def test_fractions_are_not_categories_and_dates_are_words(tmp_path: Path) -> None:
    """Fractions are refused, with the row and the column; dates are the words that a text would have."""
    with pytest.raises(DataError, match=r"row 1, column word: '0\.5' is neither a word nor a whole number"):
        load(tmp_path, [0.5, 1.5] * 6, suffix=".parquet")
    dates = load(tmp_path, [date(2020, 1, 1), date(2020, 1, 2)] * 6, suffix=".parquet")
    assert dates.features[0].categories == ("2020-01-01", "2020-01-02")


@pytest.mark.parametrize("name", ["category", "count", "index", "place"])
def test_a_category_column_may_have_any_name(name: str, tmp_path: Path) -> None:
    """The names of columns within the encoding itself are not taken."""
    file = tmp_path / "t.csv"
    file.write_text(f"{name}\n" + "b\na\n" * 6)
    dataset = datasets.load(file, Data.model_validate({"path": file.name, "targets": [name], "categories": [name]}))
    assert dataset.features[0].categories == ("a", "b")
    assert encoded(dataset) == [1, 0] * 6
