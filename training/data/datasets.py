"""Series, events or a text, checked, ordered, split, and turned into numbers.

Owns what a file must be to be learnt from. Knows nothing of networks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import Category, Feature
from onward.training.config import TOKEN, Data
from onward.training.data import split, texts, vocabulary
from onward.training.data.split import ONLY, Cut
from onward.training.data.table_reader import Table
from onward.training.errors import DataError


@dataclass(frozen=True, slots=True)
class Series:
    """One series in time order: trained on, then validated on, then held out for the test. Any part may be empty.

    values: (time, features), categories by their places, missing values NaN. labels: (time,) places, where a label is
    what is predicted.
    """

    name: str
    values: NDArray[np.float32]
    validation_from: int
    test_from: int
    labels: NDArray[np.int64] | None = None

    @property
    def train(self) -> NDArray[np.float32]:
        return self.values[: self.validation_from]


@dataclass(frozen=True, slots=True)
class Dataset:
    series: tuple[Series, ...]
    sha256: str
    """Of the file's bytes."""
    features: tuple[Feature, ...]
    classes: tuple[Category, ...] = ()
    """Of the label."""

    @property
    def steps(self) -> int:
        return sum(len(one.values) for one in self.series)

    @property
    def train(self) -> list[Series]:
        """The series that training reads."""
        return [one for one in self.series if len(one.train)]


def load(file: Path, data: Data, declared: tuple[Sequence[Feature], Sequence[Category]] | None = None) -> Dataset:
    """The series in `file`. Raises DataError.

    `declared` are a bundle's features and classes, whose categories then hold; otherwise they are the training part's.
    """
    features, classes = declared or ((), ())
    digest = _digest(file)
    if data.text:
        return _text(file, data, digest, tuple(features))
    table = Table.read(file, data)
    cuts = split.cuts(table, data)
    trained = np.concatenate([np.arange(*cut.rows) < cut.rows[0] + cut.validation_from for cut in cuts])
    known = {feature.name: feature for feature in features}
    described, columns = [], []
    for name in data.inputs:
        feature, column = _column(table, data, name, trained, known.get(name))
        described.append(feature)
        columns.append(column)
    values = np.stack(columns, axis=-1)
    labels: NDArray[np.int64] | None = None
    if data.label:
        classes = tuple(classes) or vocabulary.of(table, data.label, trained, 1)
        labels = vocabulary.places(table, data.label, classes).astype(np.int64)
        if data.per == "sequence":
            table.constant(data.label, "a label of whole series")
    series = tuple(
        Series(
            cut.name,
            np.ascontiguousarray(values[slice(*cut.rows)]),
            cut.validation_from,
            cut.test_from,
            None if labels is None else labels[slice(*cut.rows)],
        )
        for cut in cuts
    )
    return Dataset(series, digest, tuple(described), tuple(classes))


def _column(
    table: Table, data: Data, name: str, trained: NDArray[np.bool_], known: Feature | None
) -> tuple[Feature, NDArray[np.float32]]:
    """A feature and its column, (rows,)."""
    role: Literal["observed", "known", "static"] = "static" if name in data.static else "observed"
    if name in (*data.known, *data.derived):
        role = "known"
    feature = known or Feature(name=name, role=role, nullable=name in data.missing, formula=data.derived.get(name))
    if name in data.categories:
        if known is None:
            categories = vocabulary.of(table, name, trained, data.min_count)
            feature = Feature(
                name=name,
                kind="category",
                role=role,
                nullable=name in data.missing,
                categories=categories,
                unknown=data.unknown,
            )
        column = vocabulary.places(table, name, feature.categories, unknown=feature.unknown, nullable=feature.nullable)
    else:
        column = table.numbers(name, nullable=feature.nullable)
        if trained.any() and np.isnan(column[trained]).all():
            raise DataError(f"{table.file}: column {name}: no value in all of the training part")
    if feature.role == "static":
        table.constant(name, "a static feature")
    return feature, column


def _text(file: Path, data: Data, digest: str, features: tuple[Feature, ...]) -> Dataset:
    assert data.text is not None
    codes = texts.read(file, data.text)
    cut = split.ends(file, Cut(ONLY, (0, len(codes)), 0, 0), None)
    feature = features[0] if features else None
    if feature is None:
        feature = Feature(
            name=TOKEN,
            kind="category",
            categories=texts.categories(codes[: cut.validation_from], data.text, data.min_count),
            unknown=data.unknown,
            text=data.text,
        )
    places = texts.places(file, codes, feature)
    series = Series(ONLY, places[:, np.newaxis].astype(np.float32), cut.validation_from, cut.test_from)
    return Dataset((series,), digest, (feature,))


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
