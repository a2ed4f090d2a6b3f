"""Leads: columns whose value a step has ahead of its other values, at the step that is predicted.

Owns the shift within each series. A file has the plan of a time in the row of that time; a step has the plan of the
next row with the observations of its own. A row at the end of a series without any target is a future row: it only
gives the values that are ahead, and is no step. Knows nothing of models.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onward.model.tables import reader
from onward.model.tables.cells import Column
from onward.model.tables.reader import LEAD_ROW, ROW
from onward.model.tables.table import Table


@dataclass(frozen=True, slots=True)
class Leads:
    """The columns of a table that have a lead of one step, and its targets, by which a future row is recognised."""

    columns: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()

    def readable(self, columns: Sequence[Column], static: Collection[str] = ()) -> list[Column]:
        """Returns the columns as a file with future rows is read: observed values may be missing in these rows."""
        present = {*self.columns, *static}
        return [
            replace(column, nullable=True)
            if self.columns and column.source is None and column.name not in present
            else column
            for column in columns
        ]


@dataclass(frozen=True, slots=True)
class Led:
    """A table after the shift.

    complete: (rows,) whether the row has a next one, from which its values ahead are. Where it has none, they are its
    own. future: the numbers of the future rows in the file.
    """

    table: Table
    complete: NDArray[np.bool_]
    future: pl.Series


def shift(table: Table, columns: Sequence[Column], leads: Leads) -> Led:
    """Returns the table with the values of `leads.columns` from the next row of each series, without future rows.

    columns: those of the table. Raises DataError for a missing value in a column that is not nullable, except in future
    rows.
    """
    if not leads.columns:
        return Led(table, np.ones(table.rows.height, np.bool_), table.rows[ROW].clear())
    owner = np.repeat(np.arange(len(table.sizes)), table.sizes)
    has_next = np.append(owner[1:] == owner[:-1], [False][: len(owner)])
    is_step = ~_future(table, owner, leads.targets)
    ahead = [*sorted(leads.columns), ROW]
    moved = [
        pl.when(pl.Series(has_next)).then(pl.col(name).shift(-1)).otherwise(pl.col(name)).alias(renamed)
        for name, renamed in zip(ahead, [*ahead[:-1], LEAD_ROW], strict=True)
    ]
    frame = table.rows.with_columns(moved).filter(pl.Series(is_step))
    own = [column for column in columns if column.name not in leads.columns]
    reader.refuse_missing(table.file, own, frame, frame[ROW])
    counts = np.bincount(owner[is_step], minlength=len(table.sizes))
    sizes = tuple(int(count) for count in counts if count)
    shifted = replace(table, rows=frame, sizes=sizes, leads=leads.columns)
    return Led(shifted, has_next[is_step], table.rows[ROW].filter(pl.Series(~is_step)))


def _future(table: Table, owner: NDArray[np.int64], targets: Collection[str]) -> NDArray[np.bool_]:
    """Returns (rows,) whether neither the row nor any later one of its series has a target."""
    if not targets:
        return np.zeros(len(owner), np.bool_)
    present = table.rows.select(pl.any_horizontal(pl.col(name).is_not_null() for name in sorted(targets)))
    rows = np.flatnonzero(present.to_series().to_numpy())
    last = np.full(len(table.sizes), -1)
    last[owner[rows]] = rows  # the last of a series' rows is assigned last
    return np.arange(len(owner)) > last[owner]
