"""Writes names.parquet from Unicode's locale data: pip install babel, then python generate.py.

The names are those of countries, regions and languages, each in ten languages that are written in the Latin script. A
name that two of the ten share, such as Oman, is left out, so every name has one right answer. All translations of one
thing lie in the same part: a model that is tested on `Schweden` has not been trained on `Svezia`.
"""

from collections import Counter
from pathlib import Path
from random import Random

import polars as pl
from babel import Locale

LANGUAGES = ("de", "en", "es", "fi", "fr", "hu", "it", "nl", "pl", "tr")
TEST_SHARE, SEED = 0.2, 1
LONGEST = 40
"""A few longer names, of some 60 characters, are left out."""


def names() -> list[tuple[str, str, str]]:
    """(what is named, the language of the name, the name), in a fixed order."""
    found = []
    for language in LANGUAGES:
        locale = Locale(language)
        for kind, table in (("territory", locale.territories), ("language", locale.languages)):
            found += [(f"{kind}-{code}", language, name) for code, name in table.items()]
    count = Counter(name for _, _, name in found)
    return sorted(entry for entry in found if count[entry[2]] == 1 and len(entry[2]) <= LONGEST)


def table() -> pl.DataFrame:
    """One row a character, in the order of the names."""
    found = names()
    things = sorted({thing for thing, _, _ in found})
    tested = set(Random(SEED).sample(things, round(TEST_SHARE * len(things))))  # noqa: S311  (a split, no secret)
    rows = [
        (number, position, character, language, "test" if thing in tested else "train")
        for number, (thing, language, name) in enumerate(found, 1)
        for position, character in enumerate(name)
    ]
    return pl.DataFrame(rows, schema=["name", "position", "character", "language", "part"], orient="row")


if __name__ == "__main__":
    written = table()
    written.write_parquet(Path(__file__).with_name("names.parquet"), compression="zstd", compression_level=19)
    different = written["character"].n_unique()
    print(f"{written['name'].n_unique():,} names, {len(written):,} characters, {different} of them different")
    print(written.group_by("language", "part").agg(pl.col("name").n_unique()).sort("language", "part"))
