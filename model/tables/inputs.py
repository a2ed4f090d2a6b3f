"""The steps of a model in a table: each series' inputs in order of time, read as the table of the training was.

Owns the way from a file or a live stream to the inputs of sessions. A `StepLayout` comes from a manifest or from the
service's description of a model. Knows nothing of sessions and of how inputs are sent.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import polars as pl
from pydantic import BaseModel

from onward.model import calendar
from onward.model.errors import DataError
from onward.model.manifest import Feature, Manifest
from onward.model.tables import leads, reader
from onward.model.tables.cells import Column, Kind
from onward.model.tables.intervals import Interval
from onward.model.tables.leads import Leads
from onward.model.tables.reader import ROW, SERIES, Reader, Rows
from onward.model.tables.settings import TableSettings
from onward.model.tables.table import arrange
from onward.model.tables.text_files import Format

Value = float | int | str | None
Step = dict[str, Value]
"""The value of each feature by name: a number, a category, or None for a missing value."""


@dataclass(frozen=True, slots=True)
class StepLayout:
    """The layout of a model's inputs in a table."""

    features: tuple[Feature, ...]
    settings: TableSettings
    events: bool = False
    """True if rows of one time are different events, because categories or labels are predicted."""
    targets: tuple[str, ...] = ()
    """The features that are predicted: a row at the end of a series without any of them is a future row."""

    @staticmethod
    def of_manifest(manifest: Manifest) -> "StepLayout":
        """Returns the layout of a bundle."""
        head, settings = manifest.head, manifest.data or TableSettings()
        return StepLayout(manifest.features, settings, head.ranks_categories, head.targets)

    @staticmethod
    def of_description(model: Mapping[str, Any]) -> "StepLayout":
        """Returns the layout of a model that a service describes, as `GET /v1/models/{model}` does."""
        features = tuple(Feature.model_validate(_fields(Feature, feature)) for feature in model["inputs"])
        settings = TableSettings.model_validate(_fields(TableSettings, model.get("data") or {}))
        events = model["head"]["kind"] in ("categorical", "label")
        return StepLayout(features, settings, events, tuple(model["targets"]))

    @property
    def derived(self) -> tuple[str, ...]:
        """The features that are computed from the time column."""
        if self.settings.time_name is None:
            return ()
        computed = calendar.names(self.settings.time_name, self.settings.calendar)
        return tuple(feature.name for feature in self.features if feature.name in computed)

    @property
    def calendar_lead(self) -> Interval | None:
        """The interval after which the step is whose calendar a row has, if it is not its own. Raises DataError."""
        if not any(feature.lead for feature in self.features if feature.name in self.derived):
            return None
        if self.settings.interval is None:
            raise DataError("the calendar of this model is that of the next step, and its data has no interval")
        return Interval.parse(self.settings.interval, temporal=True)

    def leads(self, only: Collection[str] | None = None) -> Leads:
        """Returns the columns of a file whose values a step has from the next row. only: see `columns`."""
        names = {column.name for column in self.columns(only)}
        ahead = {feature.name for feature in self.features if feature.lead}
        return Leads(frozenset(ahead & names), frozenset(names.intersection(self.targets)))

    def columns(self, only: Collection[str] | None = None) -> list[Column]:
        """Returns the columns that are read from a file; `only` are the features that are read, by default all."""
        columns = [
            Column(feature.name, _kind(feature), nullable=feature.nullable)
            for feature in self.features
            if feature.name not in self.derived and (only is None or feature.name in only)
        ]
        if self.settings.series is not None:
            columns.append(Column(SERIES, "category", source=self.settings.series))
        return columns

    def steps(self, frame: pl.DataFrame, only: Collection[str] | None = None) -> list[Step]:
        """Returns the rows of a frame as steps."""
        names = [feature.name for feature in self.features if only is None or feature.name in only]
        selected = frame.select(
            pl.col(name).fill_nan(None) if frame.schema[name].is_float() else pl.col(name) for name in names
        )
        return selected.to_dicts()


@dataclass(frozen=True, slots=True)
class SeriesSteps:
    """The steps of a series, in order of time."""

    name: str | None
    """The name of the series; None where no column tells series apart."""
    steps: list[Step]
    note: str = ""
    """Words for a last row that is no step."""


def read(
    source: str | Path | IO[bytes],
    layout: StepLayout,
    *,
    only: Collection[str] | None = None,
    form: Format | None = None,
) -> list[SeriesSteps]:
    """Returns the steps of each series in a file or in a binary stream. Raises DataError.

    only: the features that are read, such as the future covariates of a forecast; by default all. A feature with a lead
    has the value of the next row, and a row without a next one is no step: see `onward.model.tables.leads`.
    """
    columns, leading = layout.columns(only), layout.leads(only)
    static = [feature.name for feature in layout.features if feature.role == "static"]
    rows = reader.read(source, layout.settings, leading.readable(columns, static), form=form)
    led = leads.shift(
        arrange(
            rows,
            columns,
            events=layout.events,
            constant=static,
            calendar_lead=layout.calendar_lead is not None,
        ),
        columns,
        leading,
    )
    series: Sequence[str | None] = led.table.series or [None]
    steps, start = layout.steps(led.table.rows, only), 0
    parts = []
    for name, size in zip(series, led.table.sizes, strict=True):
        stop = start + size
        is_complete = bool(led.complete[stop - 1])
        note = "" if is_complete else _incomplete(leading, name)
        parts.append(SeriesSteps(name, steps[start : stop if is_complete else stop - 1], note))
        start = stop
    return parts


def _incomplete(leading: Leads, series: str | None) -> str:
    """Returns words for the last row of a series, which is no step."""
    names = ", ".join(sorted(leading.columns))
    of_series = "" if series is None else f" of series {series}"
    targets = f" and no {', '.join(sorted(leading.targets))}" if leading.targets else ""
    return (
        f"the last row{of_series} is no step: a step has the {names} of the next row; for a step of it, append a row "
        f"with {names}{targets}"
    )


class StepStream:
    """Steps in order of arrival, as the bytes of a table arrive: `feed` returns those of the rows that are complete.

    If a feature has a lead, a row's step is complete when the next row of its series has arrived. A row without targets
    is a step only if a later one has targets. `notes` say at the end in words which rows are no steps.
    """

    def __init__(self, layout: StepLayout, *, name: str = reader.STREAM, form: Format | None = None) -> None:
        self.notes: list[str] = []
        self._layout, self._leads, self._calendar_lead = layout, layout.leads(), layout.calendar_lead
        self._columns, self._name = layout.columns(), name
        static = [feature.name for feature in layout.features if feature.role == "static"]
        self._reader = Reader(name, layout.settings, self._leads.readable(self._columns, static), form)
        self._waiting: dict[str | None, list[tuple[int, Step]]] = {}
        """The rows of each series that are no steps yet, with their numbers: at most one with targets, the first."""

    def feed(self, data: bytes, *, final: bool = False) -> list[tuple[str | None, Step]]:
        """Returns each step with the name of its series, None where no column tells series apart. Raises DataError."""
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
