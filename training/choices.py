"""How well a bundle chooses among categories: the next token or item, or a label.

Owns what is read and scored, and the counts that it is held to. Knows nothing of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.manifest import RANKED, Category
from model.runner import StepModel
from training import playback, ranking
from training.data import Series
from training.ranking import Ids
from training.scores import Array

SHOWN = 600
"""Tokens of the stretch that a page shows."""

MOST = 20
"""Ranks that count."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Held-out categories as they came, with how surprising each was."""

    series: str
    categories: tuple[Category | None, ...]
    surprise: Array


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each class (row) was told for which (column)."""

    classes: tuple[Category, ...]
    counts: Ids


def tokens(model: StepModel, series: Sequence[Series]) -> tuple[dict[str, Any], Stretch]:
    """The held-out categories, each but its sequence's first, under what was said before it.

    Beside the model: `unigram`, each category by its share of the training part (the most popular ones), and `bigram`,
    by the category before it (an item-to-item Markov chain).
    """
    manifest = model.manifest
    (target,) = manifest.head.targets
    place = model.features.index(target)
    found: list[tuple[Array, Ids, Ids, Ids]] = []  # surprise, top, actual, the one before
    shown = Stretch("", (), np.zeros(0))
    for one in series:
        places = one.values[:, place]
        steps = np.arange(max(1, one.test_from), len(places))
        steps = steps[~np.isnan(places[steps])]
        if not len(steps):
            continue
        outputs, _ = playback.session(model, one.values)
        surprise = outputs[manifest.head.surprise][steps].astype(np.float64)
        before = places[steps - 1]
        context = np.where(np.isnan(before), -1, before).astype(np.int64)
        found.append((surprise, outputs[RANKED[0]][steps - 1], places[steps].astype(np.int64), context))
        if len(shown.categories) < min(SHOWN, len(steps)):
            names = [_category(manifest.categories, int(each)) for each in places[steps[:SHOWN]]]
            shown = Stretch(one.name, tuple(names), surprise[:SHOWN])
    if not found:
        raise ValueError("no category is held out: every held-out sequence has a single step")
    surprise, top, actual, context = (np.concatenate(parts) for parts in zip(*found, strict=True))
    counted = ranking.Bigram([_trained(one, place) for one in series], manifest.places)
    most = min(MOST, top.shape[1])
    table = {"model": ranking.tokens(surprise, top[:, :most], actual)}
    table["unigram"] = ranking.tokens(*counted.unigram(actual, most), actual)
    table["bigram"] = ranking.tokens(*counted.bigram(context, actual, most), actual)
    metrics = {"steps": len(actual), "targets": {target: table}, "mean_surprise": float(surprise.mean())}
    return metrics, shown


def labels(model: StepModel, series: Sequence[Series]) -> tuple[dict[str, Any], Confusion]:
    """The held-out labels: each step's, or each sequence's by what is said at its end.

    Beside the model: `most_common`, the training part's most common label for all.
    """
    head = model.manifest.head
    said, actual, trained, surprises = [], [], [], []
    for one in series:
        assert one.labels is not None
        steps = np.arange(one.test_from, len(one.values))
        trained.append(_counted(one.labels[: one.validation_from], head.per))
        if not len(steps):
            continue
        outputs, _ = playback.session(model, one.values)
        surprises.append(outputs[head.surprise][steps].astype(np.float64))
        counted = _counted(steps, head.per)
        said.append(outputs[RANKED[0]][counted, 0])
        actual.append(one.labels[counted])
    if not said:
        raise ValueError("no label is held out")
    told, true = np.concatenate(said), np.concatenate(actual)
    classes = len(head.classes)
    common = np.full(len(true), np.bincount(np.concatenate(trained), minlength=classes).argmax())
    table = {"model": ranking.labels(told, true, classes), "most_common": ranking.labels(common, true, classes)}
    counts = np.bincount(true * classes + told, minlength=classes * classes).reshape(classes, classes)
    metrics = {
        "steps": len(true),
        "targets": {head.targets[0]: table},
        "mean_surprise": float(np.concatenate(surprises).mean()),
    }
    return metrics, Confusion(head.classes, counts)


def _counted(steps: Ids, per: str) -> Ids:
    return steps[-1:] if per == "sequence" else steps


def _trained(one: Series, place: int) -> Ids:
    places = one.train[:, place]
    return places[~np.isnan(places)].astype(np.int64)


def _category(categories: Sequence[Category], place: int) -> Category | None:
    return categories[place] if place < len(categories) else None
