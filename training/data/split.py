"""What is trained on, what stops the training, and what is held out.

Owns the cutting of series, or the sharing out of whole ones. Knows nothing of their values.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onward.training.config import Data
from onward.training.data.table_reader import Table
from onward.training.errors import DataError

VALIDATION, TEST = 0.15, 0.15
"""The share of each series' steps, at its end, or of the series, that stops the training and that is held out."""

ONLY = "series"
"""The name of a table's or a text's one series, where no column tells series apart."""

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Cut:
    """One series: its rows in the table [from, to), and the steps at which its validation and its test part begin."""

    name: str
    rows: tuple[int, int]
    validation_from: int
    test_from: int

    @property
    def steps(self) -> int:
        return self.rows[1] - self.rows[0]


def cuts(table: Table, data: Data) -> list[Cut]:
    """The table's series, in its order. Raises DataError."""
    edges = np.cumsum([0, *table.sizes]).tolist()
    names = [str(table.rows[data.series][start]) for start in edges[:-1]] if data.series else [ONLY]
    whole = [Cut(name, (start, stop), 0, 0) for name, start, stop in zip(names, edges, edges[1:], strict=False)]
    if data.part:
        return _told(table, data.part, whole)
    if data.split == "sequences":
        return _drawn(table, data, whole)
    return [ends(table.file, one, data.period) for one in whole]


def ends(file: Path, one: Cut, period: int | None) -> Cut:
    """Held out is the end, before it lies what validates."""
    test_from = one.steps - max(1, int(one.steps * TEST))
    validation_from = test_from - max(1, int(one.steps * VALIDATION))
    if validation_from < 2:
        raise DataError(
            f"{file}: series {one.name} has {one.steps} steps; training, validation and test need at least 4"
        )
    if period is not None and period > test_from:
        raise DataError(
            f"{file}: series {one.name} has {test_from} steps before its test part, fewer than period {period}"
        )
    return replace(one, validation_from=validation_from, test_from=test_from)


def _told(table: Table, column: str, whole: list[Cut]) -> list[Cut]:
    """By a column; where it names no series for validation, some of the training's are drawn."""
    table.constant(column, "the part of a whole series")
    told = [str(table.rows[column][one.rows[0]]) for one in whole]
    for one, part in zip(whole, told, strict=True):
        if part not in PARTS:
            raise table.fail(one.rows[0], column, f"{part!r} is none of {', '.join(PARTS)}")
    if "validation" not in told:
        trained = [place for place, part in enumerate(told) if part == "train"]
        for place in _shuffled(trained)[: int(len(trained) * VALIDATION)]:
            told[place] = "validation"
    return _shared_out(table.file, whole, told)


def _drawn(table: Table, data: Data, whole: list[Cut]) -> list[Cut]:
    """The series that begin last are held out, or, where there is no time, some that are drawn, always the same."""
    order = list(range(len(whole)))
    if data.time:
        begun = table.rows[data.time].gather([one.rows[0] for one in whole])
        order = begun.arg_sort().to_list()
    else:
        order = _shuffled(order)
    told = ["train"] * len(whole)
    test = max(1, int(len(whole) * TEST))
    validation = max(1, int(len(whole) * VALIDATION))
    for part, places in (("test", order[-test:]), ("validation", order[-test - validation : -test])):
        for place in places:
            told[place] = part
    return _shared_out(table.file, whole, told)


def _shuffled(places: list[int]) -> list[int]:
    return [int(place) for place in np.random.default_rng(0).permutation(places)]


def _shared_out(file: Path, whole: list[Cut], told: list[str]) -> list[Cut]:
    if missing := [part for part in PARTS if part not in told]:
        raise DataError(f"{file}: {len(whole)} series: none is left for {', '.join(missing)}")
    return [
        replace(
            one,
            validation_from=one.steps if part == "train" else 0,
            test_from=0 if part == "test" else one.steps,
        )
        for one, part in zip(whole, told, strict=True)
    ]
