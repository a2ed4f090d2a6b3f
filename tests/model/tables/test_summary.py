"""The summary of a table: each fact with its number, and hints at what is probably a fault."""

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from onward.model.tables import policies, summary
from onward.model.tables.intervals import TimeAxis
from onward.model.tables.summary import Summary


def summarise(table: pl.DataFrame, series: str | None = None, **policy: Any) -> Summary:
    """Returns the summary of a table with the columns t and, of numbers, a and b."""
    rows = table.with_row_index("row", offset=1)
    nullable: Any = {"carried": ["b"], "nullable": ["a"]} if policy.get("gaps") == "missing" else {}
    _, findings = policies.apply("x.csv", rows, TimeAxis("row", "t", series), **policy, **nullable)
    return summary.summarise(
        "x.csv", rows, row="row", series=series, time="t", columns=["a", "b"], numbers=["a"],
        settings={"format": "separator ;, UTF-8"}, findings=findings, **policy,
    )  # fmt: skip


def test_every_fact_is_told() -> None:
    """Rows, series, times, interval, order, repetitions, gaps and missing values stand in the summary with numbers."""
    start = datetime.fromisoformat("2024-01-01")
    times = [start + timedelta(minutes=10 * step) for step in [0, 1, 2, 2, 5, 4, 6, 7]]
    a = [1.0, None, 2.0, 2.5, 4.0, 3.0, 5.0, 6.0]
    table = pl.DataFrame({"t": [*times, start], "s": ["x"] * 8 + ["y"], "a": [*a, 1.0], "b": ["c"] * 9})
    assert summarise(table, "s", duplicates="last").text().splitlines() == [
        "data: x.csv",
        "  rows            9",
        "  series          2, of 1 to 8 rows each",
        "  format          separator ;, UTF-8",
        "  times           2024-01-01 00:00:00 to 2024-01-01 01:10:00",
        "  interval        10 minutes",
        "  out of order    1 row, now sorted: row 6 (series x, 2024-01-01 00:40:00)",
        "  repeated times  1 row, the last of a time counts: row 4 (series x, 2024-01-01 00:20:00)",
        (
            '  gaps            1 gap of 1 row together, ignored (data.gaps = "missing" inserts them without values): '
            "after row 4 (series x, 2024-01-01 00:20:00) 1 row"
        ),
        "  missing values  a 1 (11.1%)",
        "  HINT: column b is c in all rows",
    ]
    inserted = summarise(table, "s", duplicates="first", gaps="missing").facts()["gaps"]
    assert (
        inserted
        == "1 gap of 1 row together, inserted without values: after row 3 (series x, 2024-01-01 00:20:00) 1 row"
    )


def test_poison_is_a_hint() -> None:
    """Readings of -9999 are a hint with their number, their rows, their distance and the setting that helps."""
    a = [float(step % 7) for step in range(100)]
    a[50] = a[51] = -9999.0
    found = summarise(pl.DataFrame({"t": range(100), "a": a, "b": range(100)}))
    (hint,) = found.hints()
    assert hint == (
        "column a: 2 values lie apart from all others, up to 5,001 deviations from the median 3: "
        "-9999 (rows 51, 52); if it stands for a missing value, set data.missing_values = [-9999]"
    )
    assert found.text(brief=True).splitlines()[-1] == f"  HINT: {hint}"


def test_a_column_without_values_is_a_hint() -> None:
    """A column of nulls is named."""
    table = pl.DataFrame({"t": [1, 2, 4], "a": [None] * 3, "b": [1, 2, 3]}, schema_overrides={"a": pl.Float64})
    assert summarise(table).hints() == ["column a has no value"]


def test_many_columns_are_not_all_named() -> None:
    """A line names some columns, and how many more there are."""
    table = pl.DataFrame({"row": [1, 2], **{f"c{index}": [None, "x"] for index in range(20)}})
    found = summary.summarise(
        "x.csv", table, row="row", columns=table.columns, numbers=[], settings={}, findings=policies.Findings()
    )
    assert found.facts()["missing values"].endswith("c7 1 (50.0%) and 12 more")
    assert found.facts().keys() == {"rows", "missing values"}


def test_a_summary_is_plain_data() -> None:
    """The summary can be written into a manifest as JSON."""
    found = summarise(pl.DataFrame({"t": range(30), "a": [1.0] * 29 + [1e9], "b": [1] * 30}))
    assert json.loads(json.dumps(asdict(found)))["rows"] == 30
