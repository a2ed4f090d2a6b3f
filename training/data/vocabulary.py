"""Categories and their places.

Owns which categories a model knows, and how a column becomes places. Knows nothing of embeddings.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onward.model.manifest import Category
from onward.training.data.table_reader import Table
from onward.training.errors import DataError


def of(table: Table, column: str, trained: NDArray[np.bool_], min_count: int) -> tuple[Category, ...]:
    """The categories of the rows trained on that occur often enough, in rising order. Raises DataError."""
    counted = _words(table, column).filter(pl.Series(trained)).drop_nulls().value_counts(name="count")
    found = counted.filter(pl.col("count") >= min_count)[column].sort().to_list()
    if not found:
        raise DataError(f"{table.file}: column {column}: no category occurs {min_count} times in the training part")
    return tuple(found)


def places(
    table: Table, column: str, categories: Sequence[Category], *, unknown: bool = False, nullable: bool = False
) -> NDArray[np.float32]:
    """(rows,) the place of each; one after the last for what is unknown, NaN where missing. Raises DataError."""
    words = _words(table, column)
    known = pl.DataFrame({column: pl.Series(categories, dtype=words.dtype), "place": np.arange(len(categories))})
    found = words.to_frame().join(known, on=column, how="left", maintain_order="left")["place"]
    strange = found.is_null() & words.is_not_null()
    if strange.any() and not unknown:
        row = strange.arg_max() or 0
        raise table.fail(
            row, column, f"{words[row]!r} is no category of the training part; with unknown = true it may occur"
        )
    column_places = found.fill_null(len(categories)).to_numpy().astype(np.float32)
    if nullable:
        column_places[words.is_null().to_numpy()] = np.nan
    return column_places


def _words(table: Table, column: str) -> pl.Series:
    """Strings, or whole numbers."""
    values = table.rows[column]
    if values.dtype.is_integer():
        return values.cast(pl.Int64)
    if values.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean):
        return values.cast(pl.String)
    raise table.fail(0, column, f"{values[0]!r} is neither a word nor a whole number, so no category")
