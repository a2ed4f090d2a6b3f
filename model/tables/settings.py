"""The settings of a table: how its bytes, its cells and its times are read.

Training takes them from `[data]`, and a bundle keeps them in its manifest, so that every command reads a table in the
same way. Knows nothing of polars.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from onward.model.calendar import Entry


class TableSettings(BaseModel):
    """The settings by which a table is read. What is left out is found in the file, or does not apply."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    separator: Annotated[
        str | None,
        Field(min_length=1, max_length=1, description="character between the cells of a text file; by default found"),
    ] = None
    decimal: Annotated[Literal[".", ","], Field(description="decimal mark of the numbers in a text file")] = "."
    thousands: Annotated[
        Literal[".", ",", "'", " "] | None, Field(description="mark between the thousands of numbers in a text file")
    ] = None
    encoding: Annotated[
        str | None, Field(description="encoding of a text file; by default UTF-8, or what its byte-order mark says")
    ] = None
    lines_above_header: Annotated[
        int, Field(ge=0, description="lines of a text file above the names of its columns, which are not read")
    ] = 0
    lines_below_header: Annotated[
        int, Field(ge=0, description="lines below the names, such as one of units, which are not read")
    ] = 0
    missing_values: Annotated[
        tuple[str | int | float, ...],
        Field(strict=False, description="cells that are missing values, besides the empty ones"),
    ] = ()
    series: Annotated[str | None, Field(description="column that identifies the series of a row")] = None
    time: Annotated[
        str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None,
        Field(
            description="column by which each series is ordered, or several that are joined by a blank; "
            "by default the order of the file"
        ),
    ] = None
    time_format: Annotated[
        str | None, Field(description="format of a text's times, as strftime has it; ISO 8601 and numbers need none")
    ] = None
    time_zone: Annotated[
        str | None,
        Field(description='zone of the clock, as Europe/Berlin; "written": the clock as written, which is the default'),
    ] = None
    calendar: Annotated[
        tuple[Entry, ...],
        Field(
            strict=False,
            description="features of the time that the model reads: phases of cycles, parts as categories, a trend",
        ),
    ] = ()
    duplicates: Annotated[
        Literal["refuse", "first", "last", "mean"],
        Field(description="which of several rows of one time counts, where numbers are predicted"),
    ] = "refuse"
    gaps: Annotated[
        Literal["refuse", "missing", "ignore"],
        Field(description="what to do where rows are absent: steps of missing values are inserted, or nothing is"),
    ] = "ignore"
    unsorted: Annotated[
        Literal["refuse", "sort"], Field(description="what to do with a series that is not in order of its time")
    ] = "sort"
    interval: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False, strict=False)]
        | Annotated[str, Field(pattern=r"^[1-9]\d* (day|business day|month|month end)$")]
        | None,
        Field(
            description="time between rows: seconds, units of a time that is a number, or as 1 day, 1 business day, "
            "1 month or 1 month end; by default found"
        ),
    ] = None

    @classmethod
    def of_provenance(cls, provenance: Mapping[str, Any]) -> Self:
        """Returns the settings of a bundle that has none of its own: those that its training recorded."""
        configured: dict[str, Any] = provenance.get("config", {}).get("data", {})
        recorded = {name: value for name, value in configured.items() if name in cls.model_fields}
        # bundles without settings of a table were trained on the clock of UTC
        return cls.model_validate(recorded | ({"time_zone": "UTC"} if recorded.get("time") else {}))

    @field_validator("missing_values")
    @classmethod
    def _markers_are_cells(cls, markers: tuple[str | float, ...]) -> tuple[str | float, ...]:
        if True in markers and any(isinstance(marker, bool) for marker in markers):
            raise ValueError("missing_values are texts and numbers, not true or false")
        return markers

    @model_validator(mode="after")
    def _marks_of_numbers_differ(self) -> Self:
        if self.thousands == self.decimal:
            raise ValueError(f"thousands and decimal are both {self.decimal!r}: set decimal to the other mark")
        return self

    @field_validator("separator")
    @classmethod
    def _separator_is_a_byte(cls, separator: str | None) -> str | None:
        if separator is not None and (separator in '"\n\r' or not separator.isascii()):
            raise ValueError("separator is an ASCII character, and neither a quote nor the end of a line")
        return separator

    @property
    def time_columns(self) -> tuple[str, ...]:
        """The columns that make the time, none if the order of the file counts."""
        if self.time is None:
            return ()
        return (self.time,) if isinstance(self.time, str) else self.time

    @property
    def time_name(self) -> str | None:
        """The name of the time, after which its calendar features are named: its columns, joined by a blank."""
        return " ".join(self.time_columns) if self.time else None
