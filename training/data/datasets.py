"""Data sets: series, events or a text, checked, ordered, split, and turned into numbers.

Owns what a file must contain to be training data. Knows nothing of networks.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onward.model import calendar, transforms
from onward.model.inputs import InputArray, InputDtype
from onward.model.manifest import Category, Feature
from onward.model.tables.settings import TableSettings
from onward.model.tables.summary import Summary
from onward.model.tables.table import Table
from onward.training.config import TOKEN, Data
from onward.training.data import limits, precision, split, table_reader, texts, vocabulary
from onward.training.data.feature_transforms import fit_transform, require_domain
from onward.training.data.split import ONLY, SeriesSplit
from onward.training.errors import DataError


@dataclass(frozen=True, slots=True)
class Series:
    """A series in time order: a training part, then a validation part, then a test part. Any of them may be empty.

    values: (time, features), categories as indices, missing values NaN. labels: (time,) class indices, where a label is
    predicted.
    """

    name: str
    values: InputArray
    validation_from: int
    test_from: int
    labels: NDArray[np.int64] | None = None

    @property
    def train(self) -> InputArray:
        """The values of the training part."""
        return self.values[: self.validation_from]


@dataclass(frozen=True, slots=True)
class Dataset:
    """The series of one file, with the features and classes that their numbers stand for."""

    series: tuple[Series, ...]
    sha256: str
    """The hash of the file's bytes."""
    features: tuple[Feature, ...]
    classes: tuple[Category, ...] = ()
    """The classes of the label."""
    doubles: Mapping[str, precision.Scale] = field(default_factory=dict)
    """The columns that single precision does not carry."""
    table: TableSettings | None = None
    """The settings by which the table was read, with what was found in it; none for a text."""
    summary: Summary | None = None
    """The facts about the table; none for a text."""

    @property
    def steps(self) -> int:
        return sum(len(series.values) for series in self.series)

    @property
    def dtype(self) -> InputDtype:
        """The precision of the values: double where single has too few digits for a column."""
        return self.series[0].values.dtype

    @property
    def train(self) -> list[Series]:
        """The series that have a training part."""
        return [series for series in self.series if len(series.train)]

    @property
    def digest(self) -> str:
        """The hash of all that is learnt from: values, parts, labels and features, not the bytes of the file."""
        digest = hashlib.sha256()
        for described in (*self.features, *self.classes):
            digest.update(repr(described).encode())
        for series in self.series:
            digest.update(repr((series.values.shape, series.validation_from, series.test_from)).encode())
            digest.update(np.ascontiguousarray(series.values).tobytes())
            digest.update(b"" if series.labels is None else series.labels.tobytes())
        return digest.hexdigest()

    @property
    def parts(self) -> dict[str, int]:
        """The number of steps of each part, over all series."""
        return {
            "train": sum(series.validation_from for series in self.series),
            "validation": sum(series.test_from - series.validation_from for series in self.series),
            "test": sum(len(series.values) - series.test_from for series in self.series),
        }

    @property
    def has_validation(self) -> bool:
        """True if some steps validate."""
        return self.parts["validation"] > 0

    @property
    def has_test(self) -> bool:
        """True if some steps are held out for the test."""
        return self.parts["test"] > 0


def load(
    file: Path,
    data: Data,
    declared: tuple[Sequence[Feature], Sequence[Category]] | None = None,
    dtype: InputDtype | None = None,
) -> Dataset:
    """Returns the series in `file`. Raises DataError.

    `declared` are the features and classes of a bundle, whose categories are then used; without it the categories are
    those of the training part. dtype: that of the bundle's inputs; without it, that which the training part needs.
    """
    features, classes = declared or ((), ())
    digest = _digest(file)
    if data.text:
        return _load_text(file, data, digest, tuple(features))
    table = table_reader.read(file, data, features, classes)
    table, splits = split.split_table(table, data)
    in_training = np.concatenate([np.arange(*part.rows) < part.rows[0] + part.validation_from for part in splits])
    declared_features = {feature.name: feature for feature in features}
    described, columns = [], []
    for name in data.inputs:
        feature, column = _column(table, data, name, in_training, declared_features.get(name))
        described.append(feature)
        columns.append(column)
    scales = _scales(data, described, columns, precision.Rows.of(in_training, [part.rows[0] for part in splits]))
    values: InputArray = np.stack(columns, axis=-1, dtype=precision.choose(file, scales, dtype), casting="same_kind")
    labels: NDArray[np.int64] | None = None
    if data.label:
        classes = tuple(classes) or vocabulary.build(table, data.label, in_training, 1)
        labels = vocabulary.encode(table, data.label, classes).astype(np.int64)
        if data.per == "sequence":
            table.require_constant(data.label, "a label of whole series")
    series = tuple(
        Series(
            part.name,
            np.ascontiguousarray(values[slice(*part.rows)]),
            part.validation_from,
            part.test_from,
            None if labels is None else labels[slice(*part.rows)],
        )
        for part in splits
    )
    doubles = precision.needing_double(scales)
    assert table.summary is not None
    summary = replace(table.summary, limits=limits.described(described))
    return Dataset(series, digest, tuple(described), tuple(classes), doubles, table.settings, summary)


def _column(
    table: Table, data: Data, name: str, in_training: NDArray[np.bool_], declared: Feature | None
) -> tuple[Feature, InputArray]:
    """Returns a feature and its column, (rows,)."""
    feature = declared or _feature(table, data, name, in_training)
    if feature.kind == "category":
        column: InputArray = vocabulary.encode(
            table, name, feature.categories, unknown=feature.unknown, nullable=feature.nullable
        )
    else:
        column = table.numbers(name, nullable=feature.nullable)
        if in_training.any() and np.isnan(column[in_training]).all():
            raise DataError(f"{table.file}: column {name}: no value in all of the training part")
        transform = feature.transform if declared else fit_transform(table, data, name, column, in_training)
        if transform is not None:
            require_domain(table, name, column, transform)
            feature = feature.model_copy(update={"transform": transform})
        if declared is None and data.refuse_beyond is not None and in_training.any():
            feature = _with_limits(feature, column[in_training], data.refuse_beyond)
        limits.require(table, feature, column)
    if feature.role == "static":
        table.require_constant(name, "a static feature")
    return feature, column


def _feature(table: Table, data: Data, name: str, in_training: NDArray[np.bool_]) -> Feature:
    """Returns the feature that a column is for a model which is trained on the table."""
    if name in data.derived:
        return _calendar_feature(table, data, name)
    is_category = name in data.categories
    return Feature(
        name=name,
        kind="category" if is_category else "number",
        role="static" if name in data.static else "known" if name in data.known else "observed",
        lead=1 if name in table.leads else 0,
        nullable=name in data.missing,
        categories=vocabulary.build(table, name, in_training, data.min_count) if is_category else (),
        unknown=is_category and data.unknown,
        differenced=name in data.differenced,
    )


def _calendar_feature(table: Table, data: Data, name: str) -> Feature:
    time, lead = data.time_name or "", table.calendar_lead
    interval = None if lead is None else lead.setting
    categories = calendar.categories(time, data.calendar).get(name, ())
    return Feature(
        name=name,
        kind="category" if categories else "number",
        role="known",
        lead=0 if lead is None else 1,
        formula=calendar.formulas(time, data.calendar, table.settings.time_zone, interval)[name],
        categories=categories,
    )


def _with_limits(feature: Feature, values: InputArray, deviations: float) -> Feature:
    """Returns the feature with limits by the values (rows,) of the training part.

    A feature that is differenced has none, because its level may go anywhere, and one that is computed needs none.
    """
    if feature.differenced or feature.formula is not None:
        return feature
    return feature.model_copy(update={"limits": limits.find(values, deviations)})


def _scales(
    data: Data, features: Sequence[Feature], columns: Sequence[InputArray], rows: precision.Rows
) -> dict[str, precision.Scale]:
    """Returns the scale of each column of numbers (rows,)."""
    by_steps, scales = {*data.targets, *data.differenced}, {}
    for feature, column in zip(features, columns, strict=True):
        if feature.kind == "number":
            values = np.asarray(column, np.float64)
            scales[feature.name] = precision.scale(values, rows, by_steps=feature.name in by_steps)
            if feature.transform is not None:
                values = feature.transform.forward(transforms.NUMPY, values)
                scale = precision.scale(values, rows, by_steps=feature.name in by_steps)
                scales[feature.name] = precision.finer(scales[feature.name], scale)
    return scales


def _load_text(file: Path, data: Data, digest: str, features: tuple[Feature, ...]) -> Dataset:
    assert data.text is not None
    codes = texts.read(file, data.text)
    whole = SeriesSplit(ONLY, (0, len(codes)), 0, 0)
    part = whole.trained() if data.split == "none" else split.split_ends(file, whole, data)
    feature = features[0] if features else None
    if feature is None:
        feature = Feature(
            name=TOKEN,
            kind="category",
            categories=texts.categories(codes[: part.validation_from], data.text, data.min_count),
            unknown=data.unknown,
            text=data.text,
        )
    tokens = texts.encode(file, codes, feature)
    series = Series(ONLY, tokens[:, np.newaxis].astype(np.float32), part.validation_from, part.test_from)
    return Dataset((series,), digest, (feature,))


def _digest(file: Path) -> str:
    if file.is_fifo() or file.is_char_device():
        raise DataError(f"{file}: cannot be read twice, as training does: write what it gives to a file")
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
