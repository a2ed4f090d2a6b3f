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
from onward.model.manifest import Feature, Manifest
from onward.model.tables import reader
from onward.model.tables.cells import Column, Kind
from onward.model.tables.reader import SERIES, Reader
from onward.model.tables.settings import TableSettings
from onward.model.tables.table import Table
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

    @staticmethod
    def of_manifest(manifest: Manifest) -> "StepLayout":
        """Returns the layout of a bundle."""
        return StepLayout(manifest.features, manifest.data or TableSettings(), manifest.head.ranks_categories)

    @staticmethod
    def of_description(model: Mapping[str, Any]) -> "StepLayout":
        """Returns the layout of a model that a service describes, as `GET /v1/models/{model}` does."""
        features = tuple(Feature.model_validate(_fields(Feature, feature)) for feature in model["inputs"])
        settings = TableSettings.model_validate(_fields(TableSettings, model.get("data") or {}))
        return StepLayout(features, settings, model["head"]["kind"] in ("categorical", "label"))

    @property
    def derived(self) -> tuple[str, ...]:
        """The features that are computed from the time column."""
        if self.settings.time_name is None:
            return ()
        computed = calendar.names(self.settings.time_name, self.settings.calendar)
        return tuple(feature.name for feature in self.features if feature.name in computed)

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


def read(
    source: str | Path | IO[bytes],
    layout: StepLayout,
    *,
    only: Collection[str] | None = None,
    form: Format | None = None,
) -> list[SeriesSteps]:
    """Returns the steps of each series in a file or in a binary stream. Raises DataError.

    only: the features that are read, such as the future covariates of a forecast; by default all.
    """
    columns = layout.columns(only)
    static = [feature.name for feature in layout.features if feature.role == "static"]
    table = Table.read(source, layout.settings, columns, events=layout.events, constant=static, form=form)
    series: Sequence[str | None] = table.series or [None]
    steps, start = layout.steps(table.rows, only), 0
    parts = []
    for name, size in zip(series, table.sizes, strict=True):
        parts.append(SeriesSteps(name, steps[start : start + size]))
        start += size
    return parts


class StepStream:
    """Steps in order of arrival, as the bytes of a table arrive: `feed` returns those of the rows that are complete."""

    def __init__(self, layout: StepLayout, *, name: str = reader.STREAM, form: Format | None = None) -> None:
        self._layout = layout
        self._reader = Reader(name, layout.settings, layout.columns(), form)

    def feed(self, data: bytes, *, final: bool = False) -> list[tuple[str | None, Step]]:
        """Returns each step with the name of its series, None where no column tells series apart. Raises DataError."""
        self._reader.feed(data, final=final)
        rows = self._reader.take()
        if not rows.frame.height:
            return []
        frame = rows.with_calendar(rows.frame)
        series: Sequence[str | None] = [None] * frame.height
        if SERIES in frame.columns:
            series = frame[SERIES].cast(pl.String).to_list()
        return list(zip(series, self._layout.steps(frame), strict=True))


def _kind(feature: Feature) -> Kind:
    if feature.kind == "number":
        return "number"
    return "text" if isinstance(feature.categories[0], str) else "integer"


def _fields(model: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the members of a document that this version knows."""
    return {name: value for name, value in document.items() if name in model.model_fields}
