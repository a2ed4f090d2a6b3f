"""The split of each data set into a training, a validation and a test part.

Owns how series are cut in time, or assigned to a part as a whole. Knows nothing of their values.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onward.model.tables.policies import NAMED_ROWS
from onward.model.tables.table import Table
from onward.training.config import Data
from onward.training.data.table_reader import PART
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


def split_table(table: Table, data: Data) -> tuple[Table, list[SeriesSplit]]:
    """Returns the table's series and their split, in the table's order. Raises DataError.

    The table is without the series that are left out because they are short.
    """
    if data.part:
        return table, _split_by_column(table, _series(table))
    if data.split == "sequences":
        return table, _split_sequences(table, data, _series(table))
    short = [index for index, steps in enumerate(table.sizes) if not _is_long(steps, data.period)]
    if not short:
        return table, [split_ends(table.file, item, data.period) for item in _series(table)]
    if data.series is None or data.short_series == "refuse" or len(short) == len(table.sizes):
        raise _too_short(table, data, short)
    outcome = "left out" if data.short_series == "drop" else "in the training part as a whole"
    words = f"{len(short):,} of {len(table.sizes):,}, {outcome}"
    assert table.summary is not None
    table = replace(table, summary=replace(table.summary, short_series=words))
    if data.short_series == "drop":
        table = table.without(set(short))
    return table, [
        split_ends(table.file, item, data.period)
        if _is_long(item.steps, data.period)
        else replace(item, validation_from=item.steps, test_from=item.steps)
        for item in _series(table)
    ]


def _series(table: Table) -> list[SeriesSplit]:
    edges = np.cumsum([0, *table.sizes]).tolist()
    names = table.series or [ONLY]
    return [SeriesSplit(name, (start, stop), 0, 0) for name, start, stop in zip(names, edges, edges[1:], strict=False)]


def _ends(steps: int) -> tuple[int, int]:
    """Returns the steps at which the validation and the test part of a series of so many steps begin."""
    test_from = steps - max(1, int(steps * TEST))
    return test_from - max(1, int(steps * VALIDATION)), test_from


def _is_long(steps: int, period: int | None) -> bool:
    """Returns whether a series has three parts, and a season before the test part."""
    validation_from, test_from = _ends(steps)
    return validation_from >= 2 and (period is None or period <= test_from)


def _too_short(table: Table, data: Data, short: list[int]) -> DataError:
    series = _series(table)
    if data.series is None:
        try:
            split_ends(table.file, series[0], data.period)
        except DataError as error:
            return error
    named = [f"series {series[index].name} ({series[index].steps} steps)" for index in short[:NAMED_ROWS]]
    more = len(short) - len(named)
    season = "" if data.period is None else f", and a season of {data.period} steps before the test part"
    return DataError(
        f"{table.file}: {len(short):,} of {len(series):,} series are too short, because training, validation and test "
        f"need at least 4 steps{season}: {', '.join(named)}{f' and {more:,} more' if more else ''}; "
        + (
            'set data.short_series to "train" or "drop"'
            if len(short) < len(series)
            else 'set data.split = "sequences", which holds out whole series'
        )
    )


def split_ends(file: Path | str, series: SeriesSplit, period: int | None) -> SeriesSplit:
    """Returns the series cut in time: its end is the test part, and the steps before that validate."""
    validation_from, test_from = _ends(series.steps)
    if validation_from < 2:
        steps = f"{series.steps} step{'s' if series.steps > 1 else ''}"
        raise DataError(f"{file}: {_subject(series)} {steps}; training, validation and test need at least 4")
    if period is not None and period > test_from:
        raise DataError(
            f"{file}: {_subject(series)} {test_from} steps before its test part, fewer than period {period}"
        )
    return replace(series, validation_from=validation_from, test_from=test_from)


def _subject(series: SeriesSplit) -> str:
    return "the file has" if series.name == ONLY else f"series {series.name} has"


def _split_by_column(table: Table, series: list[SeriesSplit]) -> list[SeriesSplit]:
    """Assigns the parts in a column; where it names no series for validation, some of the training part are drawn."""
    table.require_constant(PART, "the part of a whole series")
    parts = [str(table.rows[PART][item.rows[0]]) for item in series]
    for item, part in zip(series, parts, strict=True):
        if part not in PARTS:
            raise table.error_at(item.rows[0], PART, f"{part!r} is none of {', '.join(PARTS)}")
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


def _assign(file: Path | str, series: list[SeriesSplit], parts: list[str]) -> list[SeriesSplit]:
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
