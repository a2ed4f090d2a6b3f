"""The data that examples ship are the published ones."""

from pathlib import Path

import polars as pl

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_co2_has_every_week_and_says_which_are_missing() -> None:
    """2,284 weeks from 1958-03-29 to 2001-12-29, 59 of them empty, the levels those of the record."""
    table = pl.read_csv(EXAMPLES / "co2" / "co2.csv", try_parse_dates=True)
    assert table.schema == {"date": pl.Date, "co2": pl.Float64}
    assert table["co2"].null_count() == 59
    expected = pl.date_range(pl.date(1958, 3, 29), pl.date(2001, 12, 29), "1w", eager=True)
    assert table["date"].to_list() == expected.to_list()
    assert len(table) == 2284
    assert table["co2"][0, -1].to_list() == [316.1, 371.5]
    assert table["co2"].is_between(312, 375).sum() == 2225


def test_vowels_are_split_as_published() -> None:
    """30 utterances of each speaker train; the test part has the numbers that its donors gave."""
    table = pl.read_parquet(EXAMPLES / "vowels" / "vowels.parquet")
    coefficients = [f"c{i}" for i in range(1, 13)]
    assert table.columns == ["utterance", "frame", *coefficients, "speaker", "part"]
    assert set(table.select(coefficients).dtypes) == {pl.Float32}
    assert table.null_count().sum_horizontal().item() == 0
    frames = pl.col("frame") == pl.int_range(pl.len())
    each = table.group_by("utterance", "speaker", "part", maintain_order=True).agg(pl.len(), frames.all())
    assert each["utterance"].to_list() == list(range(1, 641))
    assert each["frame"].all()
    assert (each["len"].min(), each["len"].max()) == (7, 29)
    count = {(speaker, part): n for speaker, part, n in each.group_by("speaker", "part").agg(pl.len()).rows()}
    assert [count[f"speaker-{i}", "train"] for i in range(1, 10)] == [30] * 9
    assert [count[f"speaker-{i}", "test"] for i in range(1, 10)] == [31, 35, 88, 44, 29, 24, 40, 50, 29]
