"""Tables whose rows are arranged: series by series, in order of time, by the policies of their settings.

Owns what training and the commands of a client do alike between a file and numbers. Knows nothing of what the columns
are used for.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onward.model.errors import DataError
from onward.model.tables import policies, reader
from onward.model.tables.cells import Column
from onward.model.tables.intervals import Interval, TimeAxis
from onward.model.tables.policies import Findings
from onward.model.tables.reader import LEAD_ROW, ROW, SERIES, Rows
from onward.model.tables.refusals import Refusal
from onward.model.tables.settings import TableSettings
from onward.model.tables.summary import Summary
from onward.model.tables.text_files import Format

NO_FINDINGS = Findings()


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of a table and its calendar features, with the rows of each series together and ordered by time."""

    file: str
    rows: pl.DataFrame
    sizes: tuple[int, ...]
    """The number of rows of each series."""
    settings: TableSettings
    """The settings of the reading, with what was found: the format of times, the zone of the clock, the interval."""
    names: Mapping[str, str]
    """The names that the file has for columns, where they differ."""
    found: Mapping[str, str]
    """Words for what was found in the file, and not set."""
    findings: Findings = NO_FINDINGS
    calendar_lead: Interval | None = None
    """The interval by which the calendar features are ahead of the time of their row, if they are."""
    leads: Collection[str] = ()
    """The columns whose values are from the next row; LEAD_ROW has its number."""
    summary: Summary | None = None
    """The facts about the rows before they were arranged, if they were asked for."""

    @staticmethod
    def read(
        source: str | Path | IO[bytes],
        settings: TableSettings,
        columns: Sequence[Column],
        *,
        events: bool = False,
        constant: Collection[str] = (),
        calendar_lead: bool = False,
        form: Format | None = None,
    ) -> "Table":
        """Returns the table in a file or a binary stream. Raises DataError. The other parameters are `arrange`'s."""
        rows = reader.read(source, settings, columns, form=form)
        return arrange(rows, columns, events=events, constant=constant, calendar_lead=calendar_lead)

    @property
    def series(self) -> list[str]:
        """The names of the series, in the order of the rows; none where no column tells series apart."""
        if SERIES not in self.rows.columns:
            return []
        starts = np.cumsum([0, *self.sizes[:-1]])
        return [str(name) for name in self.rows[SERIES].gather(starts)]

    def without(self, series: Collection[int]) -> "Table":
        """Returns the table without some series, by their positions."""
        remains = np.repeat([position not in series for position in range(len(self.sizes))], self.sizes)
        sizes = tuple(size for position, size in enumerate(self.sizes) if position not in series)
        return replace(self, rows=self.rows.filter(pl.Series(remains)), sizes=sizes)

    def error_at(self, row: int, column: str, what: str) -> DataError:
        """Returns an error that names the file's row and column. row: the index in `rows`."""
        number = self._row_numbers(column)[row]
        return DataError(f"{self.file}: row {number}, column {self.names.get(column, column)}: {what}")

    def _row_numbers(self, column: str) -> pl.Series:
        """Returns the rows of the file that the values of a column are from."""
        return self.rows[LEAD_ROW if column in self.leads else ROW]

    def error_at_all(
        self, refused: NDArray[np.bool_], column: str, what: str, hint: str = "", *, quoted: bool = True
    ) -> DataError:
        """Returns an error that counts the refused rows (rows,) and names the first of them with their cells."""
        cells = pl.DataFrame({"row": self._row_numbers(column), "cell": self.rows[column]})
        refusal = Refusal(self.file, self.names.get(column, column))
        for number, cell in cells.filter(pl.Series(refused)).sort("row").iter_rows():
            refusal.add([0], [cell], number)
        return refusal.error(what, hint, quoted=quoted)

    def numbers(self, column: str, *, nullable: bool) -> NDArray[np.float64]:
        """Returns a column of numbers (rows,), NaN where a value is missing. Raises DataError."""
        values = self.rows[column].cast(pl.Float64).to_numpy()
        refused = np.isinf(values) | (np.abs(values) > float(np.finfo(np.float32).max))
        if not nullable:
            refused |= np.isnan(values)
        if refused.any():
            hint = "if it stands for a missing value, list it under data.missing_values"
            raise self.error_at_all(refused, column, "is not a finite 32-bit number", hint, quoted=False)
        return values

    def require_constant(self, column: str, what: str) -> None:
        """Raises DataError if the column changes within a series."""
        values, starts = self.rows[column], np.cumsum([0, *self.sizes[:-1]])
        changed = values.ne_missing(values.shift(1)).to_numpy(writable=True)
        changed[starts] = False
        if changed.any():
            raise self.error_at(int(changed.argmax()), column, f"{what} changes within its series")


def arrange(
    rows: Rows,
    columns: Sequence[Column],
    *,
    events: bool = False,
    constant: Collection[str] = (),
    calendar_lead: bool = False,
) -> Table:
    """Returns the rows by series and time, as the policies of their settings say. Raises DataError.

    events: rows of one time are different events. constant: columns that are constant within a series. calendar_lead:
    the calendar features are those of the time one interval later, if the times are regular.
    """
    settings, findings = rows.settings, NO_FINDINGS
    if rows.axis is None:
        frame, _ = policies.order(rows.name, rows.frame, _in_file_order(rows), "sort")
    else:
        frame, findings = policies.apply(
            rows.name,
            rows.frame,
            rows.axis,
            unsorted=settings.unsorted,
            duplicates=settings.duplicates,
            gaps=settings.gaps,
            interval=settings.interval,
            events=events,
            carried=constant,
            nullable=[column.name for column in columns if column.nullable],
        )
        if findings.sampling is not None:
            settings = settings.model_copy(update={"interval": findings.sampling.interval.setting})
    lead = findings.sampling.interval if calendar_lead and findings.sampling and settings.calendar else None
    frame = rows.with_calendar(frame, lead)
    if SERIES in frame.columns:
        sizes = tuple(frame.group_by(SERIES, maintain_order=True).len()["len"].to_list())
    else:
        sizes = (frame.height,)
    names = {column.name: column.file_name for column in columns}
    return Table(rows.name, frame, sizes, settings, names, rows.found, findings, lead)


def _in_file_order(rows: Rows) -> TimeAxis:
    return TimeAxis(ROW, ROW, SERIES if SERIES in rows.frame.columns else None)
