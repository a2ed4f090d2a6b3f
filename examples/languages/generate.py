"""Writes names.parquet from Unicode's locale data: pip install babel, then python generate.py.

The names are those of countries, regions and languages, in ten languages that are written in the Latin script. A name
that two of the ten languages share, such as Oman, is left out, so that every name has a single correct label. All
translations of a name are in the same part: a model that is tested on `Schweden` has not been trained on `Svezia`.
"""

from collections import Counter
from pathlib import Path
from random import Random

import polars as pl
from babel import Locale

LANGUAGES = ("de", "en", "es", "fi", "fr", "hu", "it", "nl", "pl", "tr")
TEST_SHARE, SEED = 0.2, 1
LONGEST = 40
"""The most characters of a name; a few longer names, of about 60 characters, are left out."""


def names() -> list[tuple[str, str, str]]:
    """Returns (named entity, language of the name, name), in a fixed order."""
    entries = []
    for language in LANGUAGES:
        locale = Locale(language)
        for kind, table in (("territory", locale.territories), ("language", locale.languages)):
            entries += [(f"{kind}-{code}", language, name) for code, name in table.items()]
    count = Counter(name for _, _, name in entries)
    return sorted(entry for entry in entries if count[entry[2]] == 1 and len(entry[2]) <= LONGEST)


def table() -> pl.DataFrame:
    """Returns a row for each character, in the order of the names."""
    entries = names()
    entities = sorted({entity for entity, _, _ in entries})
    tested = set(Random(SEED).sample(entities, round(TEST_SHARE * len(entities))))  # noqa: S311  (a split, no secret)
    rows = [
        (number, position, character, language, "test" if entity in tested else "train")
        for number, (entity, language, name) in enumerate(entries, 1)
        for position, character in enumerate(name)
    ]
    return pl.DataFrame(rows, schema=["name", "position", "character", "language", "part"], orient="row")


if __name__ == "__main__":
    written = table()
    written.write_parquet(Path(__file__).with_name("names.parquet"), compression="zstd", compression_level=19)
    different = written["character"].n_unique()
    print(f"{written['name'].n_unique():,} names, {len(written):,} characters, {different} of them different")
    print(written.group_by("language", "part").agg(pl.col("name").n_unique()).sort("language", "part"))
