"""Table reader: the columns of a table that a configuration names, arranged by series and time, and their summary.

Owns which columns training reads, and as what. `onward.model.tables` owns how a table is read.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from onward.model.manifest import Category, Feature
from onward.model.tables import leads, reader, summary
from onward.model.tables.cells import Column, Kind
from onward.model.tables.leads import Leads
from onward.model.tables.reader import ROW, SERIES, Rows
from onward.model.tables.settings import TableSettings
from onward.model.tables.summary import Summary
from onward.model.tables.table import Table, arrange
from onward.training.config import Data

PART = "__part of the series"
"""The column of the table that assigns each series to a part."""


def read(file: Path, data: Data, features: Sequence[Feature] = (), classes: Sequence[Category] = ()) -> Table:
    """Returns the table in `file`, with its summary. Raises DataError.

    features, classes: those of a bundle, whose categories have the types that the columns are read as, and whose leads
    the columns have. Otherwise the leads are those of the configuration.
    """
    columns = _columns(data, features, classes)
    settings = TableSettings.model_validate({name: getattr(data, name) for name in TableSettings.model_fields})
    per_series = [data.label] if data.label and data.per == "sequence" else []
    constant = [*data.static, *per_series, *([PART] if data.part else [])]
    ahead = [feature.name for feature in features if feature.lead] if features else data.ahead
    leading = Leads(frozenset(ahead) - set(data.derived), frozenset(data.targets))
    rows = reader.read(file, settings, leading.readable(columns, constant))
    table = arrange(
        rows,
        columns,
        events=data.predicts != "numbers",
        constant=constant,
        calendar_lead=not set(data.derived).isdisjoint(ahead),
    )
    led = leads.shift(table, columns, leading)
    return replace(led.table, summary=_summarise(file, rows, data, table, led.future))


def _columns(data: Data, features: Sequence[Feature], classes: Sequence[Category]) -> list[Column]:
    categories: dict[str, Sequence[Category]] = {feature.name: feature.categories for feature in features}
    columns = [
        Column(
            name,
            category_kind(categories.get(name, ())) if name in data.categories else "number",
            nullable=name in data.missing,
        )
        for name in data.columns
    ]
    if data.label:
        columns.append(Column(data.label, category_kind(classes)))
    if data.series:
        columns.append(Column(SERIES, "category", source=data.series))
    if data.part:
        columns.append(Column(PART, "text", source=data.part))
    return columns


def category_kind(categories: Sequence[Category]) -> Kind:
    """Returns the kind of a column that has the categories; that of the file where there are none yet."""
    if not categories:
        return "category"
    return "text" if isinstance(categories[0], str) else "integer"


def _summarise(file: Path, rows: Rows, data: Data, table: Table, future: pl.Series) -> Summary:
    return summary.summarise(
        file.name,
        rows.frame.filter(~pl.col(ROW).is_in(future.implode())) if len(future) else rows.frame,
        row=ROW,
        series=SERIES if data.series else None,
        time=data.time_name,
        columns=list(dict.fromkeys([*data.columns, *((data.label,) if data.label else ())])),
        numbers=[name for name in data.columns if name not in data.categories],
        settings=rows.found,
        findings=table.findings,
        duplicates=data.duplicates,
        gaps=data.gaps,
        future_rows=len(future),
    )
