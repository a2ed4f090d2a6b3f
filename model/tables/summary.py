"""The summary of a table: what was found in it, before anything is learnt from it.

Owns the facts and their wording, so that the terminal and the report say the same. Hints are facts that are probably
faults, with the setting that helps.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from onward.model.tables import extremes
from onward.model.tables.extremes import Extremes
from onward.model.tables.policies import Duplicates, Findings, Gaps, counted

MOST_COLUMNS = 8
"""The most columns that a line of the summary names."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts about a table's rows, series, times and columns."""

    file: str
    settings: Mapping[str, str]
    """The settings that were found in the file or given, by name, such as the separator and the clock."""
    rows: int
    series: int | None
    """The number of series; None where no column tells series apart."""
    lengths: tuple[int, int]
    """The rows of the shortest and of the longest series."""
    times: tuple[str, str] | None
    """The first and the last time; None where rows have no time."""
    findings: Findings
    duplicates: Duplicates
    gaps: Gaps
    missing: Mapping[str, int]
    """The number of missing values of each column that has any."""
    constant: Mapping[str, str]
    """The value of each column that has the same in every row."""
    extremes: Mapping[str, Extremes]
    short_series: str = ""
    """The series that are left out or are in the training part as a whole because they are short, in words."""
    future_rows: int = 0
    """The number of further rows that only give future covariates."""
    limits: str = ""
    """The limits of the columns beyond which a number is refused, in words."""

    def facts(self) -> dict[str, str]:
        """Returns each fact by its label."""
        facts = {"rows": f"{self.rows:,}"}
        if self.future_rows:
            facts["future rows"] = f"{self.future_rows:,} more at the ends, without targets"
        if self.series is not None:
            shortest, longest = self.lengths
            length = f"{shortest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
            facts["series"] = f"{self.series:,}, of {length} rows each"
        facts |= self.settings
        if self.times is not None:
            facts["times"] = f"{self.times[0]} to {self.times[1]}"
            facts["interval"] = self._interval()
        found = self.findings
        if found.unsorted.count:
            facts["out of order"] = f"{counted(found.unsorted.count, 'row')}, now sorted: {found.unsorted}"
        if found.duplicates.count:
            taken = "their mean counts" if self.duplicates == "mean" else f"the {self.duplicates} of a time counts"
            facts["repeated times"] = f"{counted(found.duplicates.count, 'row')}, {taken}: {found.duplicates}"
        if found.gaps.missing:
            facts["gaps"] = self._gaps()
        if self.missing:
            shares = [f"{name} {count:,} ({count / self.rows:.1%})" for name, count in self.missing.items()]
            facts["missing values"] = _listed(shares)
        if self.short_series:
            facts["short series"] = self.short_series
        if self.limits:
            facts["limits"] = self.limits
        return facts

    def hints(self) -> list[str]:
        """Returns what is probably a fault in the data, each with the setting that helps."""
        hints = [_hint(name, found) for name, found in self.extremes.items()]
        hints += [f"column {name} is {value} in all rows" for name, value in self.constant.items()]
        return hints + [f"column {name} has no value" for name, count in self.missing.items() if count == self.rows]

    def text(self, *, brief: bool = False) -> str:
        """Returns the summary as lines of plain text; of a brief one only the hints, if there are any."""
        facts = {} if brief else self.facts()
        width = max(map(len, facts), default=0)
        lines = [f"  {label:<{width}}  {fact}" for label, fact in facts.items()]
        lines += [f"  HINT: {hint}" for hint in self.hints()]
        return "".join(f"{line}\n" for line in [f"data: {self.file}", *lines]) if lines else ""

    def _interval(self) -> str:
        sampling = self.findings.sampling
        if sampling is None:
            return "none, the times are irregular"
        if not sampling.exact:
            return f"about {sampling.interval}; the times vary"
        uneven = self.findings.gaps.uneven
        return str(sampling.interval) + (f"; {counted(uneven, 'step')} no multiple of it" if uneven else "")

    def _gaps(self) -> str:
        gaps = self.findings.gaps
        text = f"{counted(gaps.affected.count, 'gap')} of {counted(gaps.missing, 'row')} together"
        if self.findings.inserted:
            return f"{text}, inserted without values: {gaps.affected}"
        return f'{text}, ignored (data.gaps = "missing" inserts them without values): {gaps.affected}'


def summarise(
    file: str,
    frame: pl.DataFrame,
    *,
    row: str,
    series: str | None = None,
    time: str | None = None,
    columns: Collection[str],
    numbers: Collection[str],
    settings: Mapping[str, str],
    findings: Findings,
    duplicates: Duplicates = "refuse",
    gaps: Gaps = "ignore",
    future_rows: int = 0,
) -> Summary:
    """Returns the summary of the rows of a file.

    frame: the rows as they were read, before any policy. row: the column of their numbers in the file. columns: those
    that are read or predicted; of them, `numbers` are searched for values that lie apart from all others.
    """
    sizes = frame.group_by(series).len()["len"] if series else pl.Series([frame.height])
    of_series = frame[series] if series else None
    apart = {name: extremes.find(frame[name], frame[row], of_series) for name in numbers}
    return Summary(
        file=file,
        settings=settings,
        rows=frame.height,
        series=len(sizes) if series else None,
        lengths=(int(sizes.min()), int(sizes.max())),  # type: ignore[arg-type]
        times=_range(frame[time]) if time else None,
        findings=findings,
        duplicates=duplicates,
        gaps=gaps,
        missing={name: count for name in columns if (count := frame[name].null_count())},
        constant=_constants(frame, columns),
        extremes={name: found for name, found in apart.items() if found},
        future_rows=future_rows,
    )


def _range(times: pl.Series) -> tuple[str, str]:
    return str(times.min()), str(times.max())


def _constants(frame: pl.DataFrame, columns: Collection[str]) -> dict[str, str]:
    constants = {}
    for name in columns:
        values = frame[name].drop_nulls()
        if len(values) > 1 and not values.dtype.is_nested() and (values == values[0]).all():
            constants[name] = str(values[0])
    return constants


def _listed(items: Sequence[str]) -> str:
    more = len(items) - MOST_COLUMNS
    return ", ".join(items[:MOST_COLUMNS]) + (f" and {more:,} more" if more > 0 else "")


def _hint(name: str, found: Extremes) -> str:
    values = [f"{value:.12g}" for value in found.values]
    many = found.count > 1
    amount = f"{found.count:,} values lie" if many else "1 value lies"
    text = f"column {name}: {amount} apart from all others, up to {found.deviations:,.0f} deviations from the median "
    text += f"{found.median:.6g}: {', '.join(values)} (row{'s' if many else ''} {', '.join(map(str, found.rows))}"
    text += " and more)" if found.count > len(found.rows) else ")"
    return f"{text}; if it stands for a missing value, set data.missing_values = [{', '.join(values)}]"
