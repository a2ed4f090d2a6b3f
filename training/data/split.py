"""The split of each data set into a training, a validation and a test part.

Owns how series are cut in time, or assigned to a part as a whole. Knows nothing of their values.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onward.training.config import Data
from onward.training.data.table_reader import Table
from onward.training.errors import DataError

VALIDATION, TEST = 0.15, 0.15
"""The share of each series' steps, at its end, or of the series, that validates and that is held out for the test."""

ONLY = "series"
"""The name of a table's or a text's only series, where no column tells series apart."""

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class SeriesSplit:
    """A series: its rows in the table [from, to), and the steps at which its validation and its test part begin."""

    name: str
    rows: tuple[int, int]
    validation_from: int
    test_from: int

    @property
    def steps(self) -> int:
        return self.rows[1] - self.rows[0]


def split_table(table: Table, data: Data) -> list[SeriesSplit]:
    """Returns the split of the table's series, in the table's order. Raises DataError."""
    edges = np.cumsum([0, *table.sizes]).tolist()
    names = [str(table.rows[data.series][start]) for start in edges[:-1]] if data.series else [ONLY]
    series = [
        SeriesSplit(name, (start, stop), 0, 0) for name, start, stop in zip(names, edges, edges[1:], strict=False)
    ]
    if data.part:
        return _split_by_column(table, data.part, series)
    if data.split == "sequences":
        return _split_sequences(table, data, series)
    return [split_ends(table.file, item, data.period) for item in series]


def split_ends(file: Path, series: SeriesSplit, period: int | None) -> SeriesSplit:
    """Returns the series cut in time: its end is the test part, and the steps before that validate."""
    test_from = series.steps - max(1, int(series.steps * TEST))
    validation_from = test_from - max(1, int(series.steps * VALIDATION))
    if validation_from < 2:
        raise DataError(
            f"{file}: series {series.name} has {series.steps} steps; training, validation and test need at least 4"
        )
    if period is not None and period > test_from:
        raise DataError(
            f"{file}: series {series.name} has {test_from} steps before its test part, fewer than period {period}"
        )
    return replace(series, validation_from=validation_from, test_from=test_from)


def _split_by_column(table: Table, column: str, series: list[SeriesSplit]) -> list[SeriesSplit]:
    """Assigns the parts in a column; where it names no series for validation, some of the training part are drawn."""
    table.require_constant(column, "the part of a whole series")
    parts = [str(table.rows[column][item.rows[0]]) for item in series]
    for item, part in zip(series, parts, strict=True):
        if part not in PARTS:
            raise table.error_at(item.rows[0], column, f"{part!r} is none of {', '.join(PARTS)}")
    if "validation" not in parts:
        training = [index for index, part in enumerate(parts) if part == "train"]
        for index in _shuffled(training)[: int(len(training) * VALIDATION)]:
            parts[index] = "validation"
    return _assign(table.file, series, parts)


def _split_sequences(table: Table, data: Data, series: list[SeriesSplit]) -> list[SeriesSplit]:
    """Holds out the series that begin last or, where there is no time column, some drawn with a fixed seed."""
    order = list(range(len(series)))
    if data.time_name:
        starts = table.rows[data.time_name].gather([item.rows[0] for item in series])
        order = starts.arg_sort().to_list()
    else:
        order = _shuffled(order)
    parts = ["train"] * len(series)
    test = max(1, int(len(series) * TEST))
    validation = max(1, int(len(series) * VALIDATION))
    for part, indices in (("test", order[-test:]), ("validation", order[-test - validation : -test])):
        for index in indices:
            parts[index] = part
    return _assign(table.file, series, parts)


def _shuffled(indices: list[int]) -> list[int]:
    return [int(index) for index in np.random.default_rng(0).permutation(indices)]


def _assign(file: Path, series: list[SeriesSplit], parts: list[str]) -> list[SeriesSplit]:
    if missing := [part for part in PARTS if part not in parts]:
        raise DataError(f"{file}: {len(series)} series: none is left for {', '.join(missing)}")
    return [
        replace(
            item,
            validation_from=item.steps if part == "train" else 0,
            test_from=0 if part == "test" else item.steps,
        )
        for item, part in zip(series, parts, strict=True)
    ]
