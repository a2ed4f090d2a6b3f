"""The vocabulary: the categories of a column, and their indices.

Owns which categories a model has, and how a column becomes indices. Knows nothing of embeddings.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onward.model.manifest import Category
from onward.model.tables.table import Table
from onward.training.errors import DataError


def build(table: Table, column: str, in_training: NDArray[np.bool_], min_count: int) -> tuple[Category, ...]:
    """Returns the categories that occur at least `min_count` times in training, in rising order. Raises DataError."""
    counted = _words(table, column).filter(pl.Series(in_training)).drop_nulls().value_counts(name="count")
    categories = counted.filter(pl.col("count") >= min_count)["category"].sort().to_list()
    if not categories:
        raise DataError(f"{table.file}: column {column}: no category occurs {min_count} times in the training part")
    return tuple(categories)


def encode(
    table: Table, column: str, categories: Sequence[Category], *, unknown: bool = False, nullable: bool = False
) -> NDArray[np.float32]:
    """Returns the index of each row's category, (rows,); the one after the last if unknown, NaN if missing.

    Raises DataError for an unknown category where none is allowed.
    """
    words = _words(table, column)
    vocabulary = pl.DataFrame(
        {"category": pl.Series(categories, dtype=words.dtype), "index": np.arange(len(categories))}
    )
    indices = words.to_frame().join(vocabulary, on="category", how="left", maintain_order="left")["index"]
    not_in_vocabulary = indices.is_null() & words.is_not_null()
    if not_in_vocabulary.any() and not unknown:
        raise table.error_at_all(
            not_in_vocabulary.to_numpy(),
            column,
            "is not a category of the training part",
            "with unknown = true it is accepted",
        )
    encoded = indices.fill_null(len(categories)).to_numpy().astype(np.float32)
    if nullable:
        encoded[words.is_null().to_numpy()] = np.nan
    return encoded


def _words(table: Table, column: str) -> pl.Series:
    """Returns the column as strings or as integers, named `category`."""
    values = table.rows[column].alias("category")
    return values.cast(pl.Int128) if values.dtype.is_integer() else values
