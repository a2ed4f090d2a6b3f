"""The steps of a model in a table: each series' inputs in order of time, read as the table of the training was.

Owns the way from a file or a live stream to the inputs of sessions. A `StepLayout` comes from a manifest or from the
service's description of a model. Knows nothing of sessions and of how inputs are sent.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import polars as pl
from pydantic import BaseModel

from onward.model import calendar
from onward.model.errors import DataError
from onward.model.manifest import Feature, Manifest
from onward.model.tables import leads, reader
from onward.model.tables.cells import AbsentColumnsError, Column, Kind
from onward.model.tables.intervals import Interval
from onward.model.tables.leads import Leads
from onward.model.tables.policies import Findings, counted
from onward.model.tables.reader import ROW, SERIES, Reader, Rows
from onward.model.tables.settings import TableSettings
from onward.model.tables.table import arrange
from onward.model.tables.text_files import Format

Value = float | int | str | None
Step = dict[str, Value]
"""The value of each feature by name: a number, a category, or None for a missing value."""


@dataclass(frozen=True, slots=True)
class StepLayout:
    """The layout of a model's inputs in a table.

    only: the features that are read, such as the future covariates of a forecast; by default all. single: a table
    without the column that tells series apart is one series, and not refused.
    """

    features: tuple[Feature, ...]
    settings: TableSettings
    events: bool = False
    """True if rows of one time are different events, because categories or labels are predicted."""
    only: Collection[str] | None = None
    single: bool = False
    targets: tuple[str, ...] = ()
    """The features that are predicted: a row at the end of a series without any of them is a future row."""

    @staticmethod
    def of_manifest(manifest: Manifest) -> "StepLayout":
        """Returns the layout of a bundle."""
        settings = manifest.data or TableSettings.of_provenance(manifest.provenance)
        head = manifest.head
        return StepLayout(manifest.features, settings, head.ranks_categories, targets=head.targets)

    @staticmethod
    def of_description(model: Mapping[str, Any]) -> "StepLayout":
        """Returns the layout of a model that a service describes, as `GET /v1/models/{model}` does."""
        features = tuple(Feature.model_validate(_fields(Feature, feature)) for feature in model["inputs"])
        if (data := model.get("data")) is None:
            settings = TableSettings.of_provenance(model.get("provenance", {}))
        else:
            settings = TableSettings.model_validate(_fields(TableSettings, data))
        events = model["head"]["kind"] in ("categorical", "label")
        return StepLayout(features, settings, events, targets=tuple(model["targets"]))

    @property
    def chosen(self) -> tuple[Feature, ...]:
        """The features that are read or computed."""
        return tuple(feature for feature in self.features if self.only is None or feature.name in self.only)

    @property
    def derived(self) -> tuple[str, ...]:
        """The features among them that are computed from the time column."""
        if self.settings.time_name is None:
            return ()
        computed = calendar.names(self.settings.time_name, self.settings.calendar)
        return tuple(feature.name for feature in self.chosen if feature.name in computed)

    @property
    def calendar_lead(self) -> Interval | None:
        """The interval after which the step is whose calendar a row has, if it is not its own. Raises DataError."""
        if not any(feature.lead for feature in self.chosen if feature.name in self.derived):
            return None
        if self.settings.interval is None:
            raise DataError("the calendar of this model is that of the next step, and its data has no interval")
        return Interval.parse(self.settings.interval, temporal=True)

    @property
    def leads(self) -> Leads:
        """The columns of a file whose values a step has from the next row."""
        names = {column.name for column in self.columns()}
        ahead = {feature.name for feature in self.chosen if feature.lead}
        return Leads(frozenset(ahead & names), frozenset(names.intersection(self.targets)))

    def readable(self) -> list[Column]:
        """Returns the columns as a file is read that may have future rows."""
        return self.leads.readable(self.columns(), self.static)

    @property
    def static(self) -> tuple[str, ...]:
        """The features among them that are constant within a series."""
        return tuple(feature.name for feature in self.chosen if feature.role == "static")

    def columns(self) -> list[Column]:
        """Returns the columns that are read from a file."""
        columns = [
            Column(feature.name, _kind(feature), nullable=feature.nullable)
            for feature in self.chosen
            if feature.name not in self.derived
        ]
        if self.settings.series is not None:
            columns.append(Column(SERIES, "category", source=self.settings.series))
        return columns

    def steps(self, frame: pl.DataFrame) -> list[Step]:
        """Returns the rows of a frame as steps."""
        names = [feature.name for feature in self.chosen]
        selected = frame.select(
            pl.col(name).fill_nan(None) if frame.schema[name].is_float() else pl.col(name) for name in names
        )
        return selected.to_dicts()

    def without(self, error: AbsentColumnsError) -> tuple["StepLayout", list[str]]:
        """Returns the layout of a table that lacks columns which it can do without, and words for what that means.

        Without the time, rows are in their order, and features that are otherwise derived from it are columns. Raises
        DataError for a table that lacks any other column.
        """
        settings, notes, absent = self.settings, [], set(error.absent)
        if absent & set(settings.time_columns) and set(self.derived) <= error.present:
            notes.append(f"no column {settings.time_name}: the rows are in order of time as they are")
            absent -= set(settings.time_columns)
            settings = settings.model_copy(update={"time": None, "calendar": (), "gaps": "ignore"})
        if settings.series in absent and self.single:
            notes.append(f"no column {settings.series}: all rows are of one series")
            absent.discard(settings.series)
            settings = settings.model_copy(update={"series": None})
        if absent == {settings.series}:
            raise DataError(f"{error}; it tells series apart: if all rows are of one, name that one by --series")
        if absent:
            raise DataError(str(error))
        return replace(self, settings=settings), notes


@dataclass(frozen=True, slots=True)
class StepTable:
    """The steps of each series of a table, in order of time, with the name of the series, if a column tells series
    apart. `notes` say in words what was not as it should be in the rows, and what was done.
    """

    series: list[tuple[str | None, list[Step]]]
    notes: list[str]


def read(source: str | Path | IO[bytes], layout: StepLayout, *, form: Format | None = None) -> StepTable:
    """Returns the steps in a file, or in a binary stream that can be read again from its start. Raises DataError."""
    try:
        return _read(source, layout, form, [])
    except AbsentColumnsError as error:
        layout, notes = layout.without(error)
    if not isinstance(source, (str, Path)):
        source.seek(0)
    return _read(source, layout, form, notes)


def _read(source: str | Path | IO[bytes], layout: StepLayout, form: Format | None, notes: list[str]) -> StepTable:
    columns, leading = layout.columns(), layout.leads
    rows = reader.read(source, layout.settings, layout.readable(), form=form)
    table = arrange(
        rows,
        columns,
        events=layout.events,
        constant=layout.static,
        calendar_lead=layout.calendar_lead is not None,
    )
    for feature in layout.static:
        table.require_constant(feature, "a static feature")
    led = leads.shift(table, columns, leading)
    names: Sequence[str | None] = led.table.series or [None]
    steps, start = layout.steps(led.table.rows), 0
    series: list[tuple[str | None, list[Step]]] = []
    incomplete = []
    for name, size in zip(names, led.table.sizes, strict=True):
        stop = start + size
        is_complete = bool(led.complete[stop - 1])
        if not is_complete:
            incomplete.append(_incomplete(leading, name))
        series.append((name, steps[start : stop if is_complete else stop - 1]))
        start = stop
    return StepTable(series, [*notes, *_notes(table.findings, layout.settings), *incomplete])


def _incomplete(leading: Leads, series: str | None) -> str:
    """Returns words for the last row of a series, which is no step."""
    names = ", ".join(sorted(leading.columns))
    of_series = "" if series is None else f" of series {series}"
    targets = f" and no {', '.join(sorted(leading.targets))}" if leading.targets else ""
    return (
        f"the last row{of_series} is no step: a step has the {names} of the next row; for a step of it, append a row "
        f"with {names}{targets}"
    )


def _notes(findings: Findings, settings: TableSettings) -> list[str]:
    notes = []
    if findings.unsorted.count:
        notes.append(f"{counted(findings.unsorted.count, 'row')} sorted by time: {findings.unsorted}")
    if findings.duplicates.count:
        notes.append(
            f"{counted(findings.duplicates.count, 'row')} of a time that an earlier row has, of which the "
            f"{settings.duplicates} counts: {findings.duplicates}"
        )
    if findings.gaps.missing:
        done = f"{findings.inserted:,} inserted without values" if findings.inserted else "not inserted"
        notes.append(f"{counted(findings.gaps.missing, 'row')} missing {findings.gaps.affected}: {done}")
    return notes


class StepStream:
    """Steps in order of arrival, as the bytes of a table arrive: `feed` returns those of the rows that are complete.

    If a feature has a lead, a row's step is complete when the next row of its series has arrived. A row without targets
    is a step only if a later one has targets. `notes` say in words what the table lacks, what that means, and at the
    end which rows are no steps.
    """

    def __init__(self, layout: StepLayout, *, name: str, form: Format | None = None) -> None:
        self.notes: list[str] = []
        self._name, self._form = name, form
        self._start: list[bytes] | None = []
        self._begin(layout)

    def _begin(self, layout: StepLayout) -> None:
        self._layout, self._leads, self._calendar_lead = layout, layout.leads, layout.calendar_lead
        self._columns = layout.columns()
        self._reader = Reader(self._name, layout.settings, layout.readable(), self._form)
        self._waiting: dict[str | None, list[tuple[int, Step]]] = {}
        """The rows of each series that are no steps yet, with their numbers: at most one with targets, the first."""

    def feed(self, data: bytes, *, final: bool = False) -> list[tuple[str | None, Step]]:
        """Returns each step with the name of its series, None where no column tells series apart. Raises DataError."""
        if self._start is None:
            return self._taken(data, final=final)
        self._start.append(data)
        try:
            steps = self._taken(data, final=final)
        except AbsentColumnsError as error:
            layout, self.notes = self._layout.without(error)
            self._begin(layout)
            steps = self._taken(b"".join(self._start), final=final)
        if steps:
            self._start = None
        return steps

    def _taken(self, data: bytes, *, final: bool) -> list[tuple[str | None, Step]]:
        self._reader.feed(data, final=final)
        rows = self._reader.take()
        steps = self._steps(rows) if rows.frame.height else []
        if final:
            waiting = [series for series, first in self._waiting.items() if self._has_targets(first[0][1])]
            self.notes += [_incomplete(self._leads, series) for series in waiting]
        return steps

    def _steps(self, rows: Rows) -> list[tuple[str | None, Step]]:
        frame = rows.with_calendar(rows.frame, self._calendar_lead)
        series: Sequence[str | None] = [None] * frame.height
        if SERIES in frame.columns:
            series = frame[SERIES].cast(pl.String).to_list()
        steps = list(zip(series, self._layout.steps(frame), strict=True))
        if not self._leads.columns:
            return steps
        numbered = zip(frame[ROW].to_list(), steps, strict=True)
        return [(name, step) for number, (name, row) in numbered for step in self._complete(name, number, row)]

    def _complete(self, series: str | None, number: int, row: Step) -> list[Step]:
        """Returns the steps of a series that are complete when one more row of it arrives."""
        waiting = self._waiting.setdefault(series, [])
        waiting.append((number, row))
        first_has_targets = self._has_targets(waiting[0][1])
        count = len(waiting) - 1 if self._has_targets(row) else int(len(waiting) > 1 and first_has_targets)
        complete = [self._step(*waiting[index], waiting[index + 1][1]) for index in range(count)]
        del waiting[:count]
        return complete

    def _step(self, number: int, row: Step, following: Step) -> Step:
        for column in self._columns:
            if not column.nullable and column.name in row and row[column.name] is None:
                raise DataError(f"{self._name}: row {number}, column {column.file_name}: no value")
        return row | {name: following[name] for name in self._leads.columns}

    def _has_targets(self, row: Step) -> bool:
        return not self._leads.targets or any(row[name] is not None for name in self._leads.targets)


def _kind(feature: Feature) -> Kind:
    if feature.kind == "number":
        return "number"
    return "text" if isinstance(feature.categories[0], str) else "integer"


def _fields(model: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the members of a document that this version knows."""
    return {name: value for name, value in document.items() if name in model.model_fields}
