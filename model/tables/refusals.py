"""Refused cells and rows: how many there are, and the first of them, for one message about all.

Knows nothing of why they are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from onward.model.errors import DataError

NAMED_ROWS = 3
"""The number of rows that a message names, of all that it is about."""

UNITS = "if the row has units, set data.lines_below_header = 1"
"""The hint for the first row, if it alone is refused."""

_LONGEST = 60


@dataclass(slots=True)
class Refusal:
    """Rows of a file that are refused for one reason; rows count from 1, the first below the header."""

    name: str
    column: str | None
    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)
    """The first rows, each with its cell."""

    def add(self, indices: Sequence[int], cells: pl.Series | Sequence[object], first_row: int = 1) -> None:
        """Adds the rows at the indices; `cells` are those of all rows, of which the first is row `first_row`."""
        self.count += len(indices)
        for index in indices[: NAMED_ROWS - len(self.first)]:
            cell = cells[index]
            self.first.append((first_row + index, str(cell.to_list() if isinstance(cell, pl.Series) else cell)))

    def error(self, what: str, hint: str = "", *, quoted: bool = True) -> DataError:
        """Returns the error: the first row and its cell, what is wrong with it, and how many more there are."""
        (row, cell), *next_rows = self.first
        column = "" if self.column is None else f", column {self.column}"
        show = shown if quoted else str
        subject = f"{show(cell)} {what}" if cell else what
        more = ""
        if self.count > 1:
            named = ", ".join(f"row {row}" + (f": {show(cell)}" if cell else "") for row, cell in next_rows)
            more = f" ({self.count:,} such rows; also {named}{', ...' if self.count > len(self.first) else ''})"
        return DataError(f"{self.name}: row {row}{column}: {subject}{more}" + (f"; {hint}" if hint else ""))


@dataclass(slots=True)
class Refusals:
    """The refusals of a file, by reason, until all of its rows are read."""

    name: str
    column: str | None
    first_row: int = 1
    _by_reason: dict[str, Refusal] = field(default_factory=dict)

    def add(self, indices: Sequence[int], cells: pl.Series | Sequence[object], reason: str) -> None:
        """Adds rows that are refused for the reason."""
        if indices:
            refusal = self._by_reason.setdefault(reason, Refusal(self.name, self.column))
            refusal.add(indices, cells, self.first_row)

    def raise_first(self) -> None:
        """Raises DataError for the first reason, if there is any."""
        for reason, refusal in self._by_reason.items():
            raise refusal.error(reason)


def shown(cell: str) -> str:
    """Returns a cell as a message has it."""
    return repr(cell if len(cell) <= _LONGEST else f"{cell[:_LONGEST]}...")
