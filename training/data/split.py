"""The split of each data set into a training, a validation and a test part.

Owns how series are cut in time, or assigned to a part as a whole. Knows nothing of their values.
"""

from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from onward.model.tables import times
from onward.model.tables.policies import NAMED_ROWS
from onward.model.tables.reader import CLOCK
from onward.model.tables.table import Table
from onward.training.config import Data, Moment
from onward.training.data.table_reader import PART
from onward.training.errors import DataError

ONLY = "series"
"""The name of a table's or a text's only series, where no column tells series apart."""

PARTS = ("train", "validation", "test")

LEAST_TRAINED = 2
"""The least steps of a training part that is cut from a series: an input and the next one, which it predicts."""


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

    def trained(self) -> "SeriesSplit":
        """Returns the series as a whole in the training part."""
        return replace(self, validation_from=self.steps, test_from=self.steps)


def split_table(table: Table, data: Data) -> tuple[Table, list[SeriesSplit]]:
    """Returns the table's series and their split, in the table's order. Raises DataError.

    The table is without the series that are left out because they are short.
    """
    if data.split == "none":
        return table, [item.trained() for item in _series(table)]
    if data.part:
        return table, _split_by_column(table, data, _series(table))
    if data.split == "sequences":
        return table, _split_sequences(table, data, _series(table))
    if data.validation_from is not None or data.test_from is not None:
        return table, _split_by_time(table, data, _series(table))
    short = [index for index, steps in enumerate(table.sizes) if not _is_long(steps, data)]
    if not short:
        return table, [split_ends(table.file, item, data) for item in _series(table)]
    if data.series is None or data.short_series == "refuse" or len(short) == len(table.sizes):
        raise _too_short(table, data, short)
    outcome = "left out" if data.short_series == "drop" else "in the training part as a whole"
    words = f"{len(short):,} of {len(table.sizes):,}, {outcome}"
    assert table.summary is not None
    table = replace(table, summary=replace(table.summary, short_series=words))
    if data.short_series == "drop":
        table = table.without(set(short))
    return table, [
        split_ends(table.file, item, data) if _is_long(item.steps, data) else item.trained() for item in _series(table)
    ]


def _series(table: Table) -> list[SeriesSplit]:
    edges = np.cumsum([0, *table.sizes]).tolist()
    names = table.series or [ONLY]
    return [SeriesSplit(name, (start, stop), 0, 0) for name, start, stop in zip(names, edges, edges[1:], strict=False)]


def _held_out(total: int, share: float) -> int:
    """Returns how many of `total` steps or series are a share of them: at least one, unless the share is 0."""
    return max(1, int(total * share)) if share else 0


def _ends(steps: int, data: Data) -> tuple[int, int]:
    """Returns the steps at which the validation and the test part of a series of so many steps begin."""
    test_from = steps - _held_out(steps, data.shares["test"])
    return test_from - _held_out(steps, data.shares["validation"]), test_from


def _is_long(steps: int, data: Data) -> bool:
    """Returns whether a series has all parts, and a season before the test part."""
    validation_from, test_from = _ends(steps, data)
    return validation_from >= LEAST_TRAINED and (data.period is None or data.period <= test_from)


def _too_short(table: Table, data: Data, short: list[int]) -> DataError:
    series = _series(table)
    if data.series is None:
        try:
            split_ends(table.file, series[0], data)
        except DataError as error:
            return error
    named = [f"series {series[index].name} ({series[index].steps} steps)" for index in short[:NAMED_ROWS]]
    more = len(short) - len(named)
    season = "" if data.period is None else f", and a season of {data.period} steps before the test part"
    return DataError(
        f"{table.file}: {len(short):,} of {len(series):,} series are too short, because {_need(data)}{season}: "
        f"{', '.join(named)}{f' and {more:,} more' if more else ''}; "
        + (
            'set data.short_series to "train" or "drop"'
            if len(short) < len(series)
            else 'set data.split = "sequences", which holds out whole series'
        )
    )


def _need(data: Data) -> str:
    """Returns how many steps a series needs to have all parts, in words."""
    least = next(steps for steps in count(LEAST_TRAINED) if _ends(steps, data)[0] >= LEAST_TRAINED)
    *first, last = ["training", *(part for part, share in data.shares.items() if share)]
    parts = f"{', '.join(first)} and {last} need" if first else f"{last} needs"
    return f"{parts} at least {least} steps"


def split_ends(file: Path | str, series: SeriesSplit, data: Data) -> SeriesSplit:
    """Returns the series cut in time: its end is the test part, and the steps before that validate."""
    validation_from, test_from = _ends(series.steps, data)
    if validation_from < LEAST_TRAINED:
        steps = f"{series.steps} step{'s' if series.steps > 1 else ''}"
        raise DataError(f"{file}: {_subject(series)} {steps}; {_need(data)}")
    if data.period is not None and data.period > test_from:
        raise DataError(
            f"{file}: {_subject(series)} {test_from} steps before its test part, fewer than period {data.period}"
        )
    return replace(series, validation_from=validation_from, test_from=test_from)


def _split_by_time(table: Table, data: Data, series: list[SeriesSplit]) -> list[SeriesSplit]:
    """Cuts all series at the same times; a series that lies before or after a time belongs to one part as a whole.

    Where only one of the times is set, the other part is a share of each series' steps.
    """
    moments = {key: moment for key in ("validation_from", "test_from") if (moment := getattr(data, key)) is not None}
    firsts = {key: _first_steps(table, data, key, moment, series) for key, moment in moments.items()}
    shares, cut = data.shares, []
    for index, item in enumerate(series):
        test_from = item.steps - _held_out(item.steps, shares["test"])
        if "test_from" in firsts:
            test_from = firsts["test_from"][index]
        validation_from = max(0, test_from - _held_out(item.steps, shares["validation"]))
        if "validation_from" in firsts:
            validation_from = min(firsts["validation_from"][index], test_from)
        cut.append(replace(item, validation_from=validation_from, test_from=test_from))
    steps = {
        "train": sum(item.validation_from for item in cut),
        "validation": sum(item.test_from - item.validation_from for item in cut),
        "test": sum(item.steps - item.test_from for item in cut),
    }
    if empty := [part for part in PARTS if not steps[part] and (f"{part}_from" in moments or shares.get(part, 1.0))]:
        settings = " and ".join(f"data.{key} = {moment}" for key, moment in moments.items())
        column = table.rows[data.time_name or ""]
        times_of_rows = f"the times are from {column.min()!s} to {column.max()!s}"
        raise DataError(f"{table.file}: with {settings} no step is left for {', '.join(empty)}; {times_of_rows}")
    return cut


def _first_steps(table: Table, data: Data, key: str, moment: Moment, series: list[SeriesSplit]) -> list[int]:
    """Returns by series the first step at or after a moment, or the number of steps where there is none."""
    clock = table.rows[CLOCK] if CLOCK in table.rows.columns else None
    try:
        after = times.at_or_after(table.rows[data.time_name or ""], clock, table.settings.time_zone, moment)
    except ValueError as error:
        raise DataError(f"{table.file}: data.{key}: {error}") from error
    rows = [after[slice(*item.rows)] for item in series]
    return [int(steps.argmax()) if steps.any() else len(steps) for steps in rows]


def _subject(series: SeriesSplit) -> str:
    return "the file has" if series.name == ONLY else f"series {series.name} has"


def _split_by_column(table: Table, data: Data, series: list[SeriesSplit]) -> list[SeriesSplit]:
    """Assigns the parts in a column; where it names no series for validation, some of the training part are drawn."""
    table.require_constant(PART, "the part of a whole series")
    parts = [str(table.rows[PART][item.rows[0]]) for item in series]
    for item, part in zip(series, parts, strict=True):
        if part not in PARTS:
            raise table.error_at(item.rows[0], PART, f"{part!r} is none of {', '.join(PARTS)}")
    if "validation" not in parts:
        training = [index for index, part in enumerate(parts) if part == "train"]
        for index in _shuffled(training)[: int(len(training) * data.validation)]:
            parts[index] = "validation"
    return _assign(table.file, data, series, parts)


def _split_sequences(table: Table, data: Data, series: list[SeriesSplit]) -> list[SeriesSplit]:
    """Holds out the series that begin last or, where there is no time column, some drawn with a fixed seed."""
    order = list(range(len(series)))
    if data.time_name:
        starts = table.rows[data.time_name].gather([item.rows[0] for item in series])
        order = starts.arg_sort().to_list()
    else:
        order = _shuffled(order)
    parts = ["train"] * len(series)
    test = len(series) - _held_out(len(series), data.test)
    validation = max(0, test - _held_out(len(series), data.validation))
    for part, indices in (("test", order[test:]), ("validation", order[validation:test])):
        for index in indices:
            parts[index] = part
    return _assign(table.file, data, series, parts)


def _shuffled(indices: list[int]) -> list[int]:
    return [int(index) for index in np.random.default_rng(0).permutation(indices)]


def _assign(file: Path | str, data: Data, series: list[SeriesSplit], parts: list[str]) -> list[SeriesSplit]:
    if missing := [part for part in PARTS if part not in parts and data.shares.get(part, 1.0)]:
        raise DataError(f"{file}: {len(series)} series: none is left for {', '.join(missing)}")
    return [
        replace(
            item,
            validation_from=item.steps if part == "train" else 0,
            test_from=0 if part == "test" else item.steps,
        )
        for item, part in zip(series, parts, strict=True)
    ]
