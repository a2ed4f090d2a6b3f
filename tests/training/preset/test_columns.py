"""Columns of a table that are found by the preset."""

from pathlib import Path

import polars as pl
import pytest

from onward.model.tables.preview import look
from onward.model.tables.settings import TableSettings
from onward.training.errors import DataError
from onward.training.preset import columns
from onward.training.preset.columns import Named

DAYS = [f"2024-01-{day:02d}" for day in range(1, 29)]


def found(file: Path, **named: object) -> dict[str, object]:
    choices = columns.find(file, look(file, TableSettings()), TableSettings(), Named(**named))  # type: ignore[arg-type]
    assert all(choice.reason for choice in choices)
    return {choice.key.removeprefix("data."): choice.value for choice in choices}


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "rows.csv"
    file.write_text(text)
    return file


def test_a_time_and_the_only_number(tmp_path: Path) -> None:
    """The column of dates is the time, and the only column of numbers that change is predicted."""
    file = written(tmp_path, "day,y,same\n" + "".join(f"{day},{i * i},7\n" for i, day in enumerate(DAYS)))
    assert found(file) == {"time": "day", "targets": ["y"]}


def test_repeated_times_have_the_series_that_makes_them_distinct(tmp_path: Path) -> None:
    rows = "".join(f"{shop},{day},red,{i}\n" for i, day in enumerate(DAYS) for shop in "ab")
    assert found(written(tmp_path, "shop,day,colour,y\n" + rows)) == {"time": "day", "series": "shop", "targets": ["y"]}


def test_date_and_time_of_day_are_joined(tmp_path: Path) -> None:
    """Semicolons, a decimal comma and empty cells are found with them."""
    rows = "".join(f"2024-01-01;{hour:02d}:30;{'' if hour == 3 else f'{hour},5'}\n" for hour in range(20))
    expected = {"decimal": ",", "time": ["Date", "Time"], "targets": ["y"], "missing": ["y"]}
    assert found(written(tmp_path, "Date;Time;y\n" + rows)) == expected


def test_named_columns_come_first(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i % 3},{i % 5},{i % 7}\n" for i in range(30))
    file = written(tmp_path, "t,a,b,plan\n" + rows)
    assert found(file) == {"time": "t", "targets": ["a", "b", "plan"]}
    expected = {"time": "t", "targets": ["b"], "features": ["b", "plan"], "known": ["plan"]}
    assert found(file, targets=("b",), plans=("plan",)) == expected


def test_columns_of_typed_files(tmp_path: Path) -> None:
    frame = pl.DataFrame({"at": DAYS, "y": [0.5 * i for i in range(28)], "word": ["x"] * 28})
    frame.with_columns(pl.col("at").str.to_date()).write_parquet(tmp_path / "rows.parquet")
    frame.write_ndjson(tmp_path / "rows.ndjson")
    for name in ("rows.parquet", "rows.ndjson"):
        assert found(tmp_path / name) == {"time": "at", "targets": ["y"]}


@pytest.mark.parametrize(
    ("text", "named", "message"),
    [
        ("a,b\n1,2\n", {"targets": ("c",)}, "no column c; it has a, b"),
        ("a,b\nx,y\nz,w\n", {}, "no column of numbers that change is left to predict: name one with --target"),
        (
            ",".join(f"c{i}" for i in range(20)) + "\n" + "".join(f"{','.join([str(i)] * 20)}\n" for i in range(9)),
            {},
            "20 columns of numbers could be predicted: name those to predict with --target",
        ),
        ("a,a\n1,2\n", {}, "two columns have one name: a"),
        ("", {}, "is empty"),
    ],
)
def test_what_cannot_be_chosen_is_refused(tmp_path: Path, text: str, named: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        found(written(tmp_path, text), **named)


def test_a_column_that_explains_the_target_is_named(tmp_path: Path) -> None:
    """A plan that is not declared as one has a share of the target that it explains; an unrelated column has none."""
    rows = "".join(f"{i % 7},{i % 2},{2 * (i % 7) + 0.1 * (i % 3)}\n" for i in range(42))
    file = written(tmp_path, "plan,other,y\n" + rows)
    preview = look(file, TableSettings())
    choices = columns.find(file, preview, TableSettings(), Named(targets=("y",)))
    shares = columns.explained_by(preview, choices)
    assert list(shares) == ["plan"]
    assert shares["plan"] > 0.98
