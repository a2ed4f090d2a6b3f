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


def test_the_names_of_a_thing_lie_in_one_part_and_in_one_language_each() -> None:
    """5,141 names, a row for each character; no name belongs to two languages, and translations share a part."""
    table = pl.read_parquet(EXAMPLES / "languages" / "names.parquet")
    assert table.columns == ["name", "position", "character", "language", "part"]
    assert table.null_count().sum_horizontal().item() == 0
    assert table["character"].str.len_chars().to_list() == [1] * 56_985
    names = table.group_by("name", "language", "part", maintain_order=True).agg(
        pl.col("character").str.join("").alias("text"), (pl.col("position") == pl.int_range(pl.len())).all()
    )
    assert names["name"].to_list() == list(range(1, 5_142))
    assert names["position"].all()
    assert names["text"].is_unique().all()
    assert dict(names.group_by("part").agg(pl.len()).rows()) == {"train": 4_069, "test": 1_072}
    found = {text: (language, part) for _, language, part, text, _ in names.rows()}
    for translations in (
        {
            "Schweden": "de",
            "Sweden": "en",
            "Suecia": "es",
            "Ruotsi": "fi",
            "Suède": "fr",
            "Svezia": "it",
            "İsveç": "tr",
        },
        {"Griechisch": "de", "kreikka": "fi", "görög": "hu", "Grieks": "nl", "grecki": "pl", "Yunanca": "tr"},
    ):
        assert {text: found[text][0] for text in translations} == translations
        assert len({found[text][1] for text in translations}) == 1


def test_the_notice_names_every_data_set_that_ships() -> None:
    """NOTICE has the source and licence of every data file of the examples, and of every shipped model's weights."""
    notice = (EXAMPLES.parent / "NOTICE").read_text()
    data = [file for file in EXAMPLES.glob("*/*") if file.suffix in {".csv", ".parquet", ".txt", ".json"}]
    assert len(data) == 5
    for shipped in (*data, *(EXAMPLES.parent / "model" / "zoo").iterdir()):
        entry = notice.partition(str(shipped.relative_to(EXAMPLES.parent)))[2].partition("\n\n")[0]
        assert "Licence: " in entry or "part of this work" in entry, shipped
