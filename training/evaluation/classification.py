"""The evaluation of a bundle that predicts categories: the next token or item, or a label.

Owns which steps are read and scored, and the baselines of category counts. Knows nothing of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onward.model.manifest import RANKED, Category
from onward.model.runner import StepModel
from onward.training.data.datasets import Series
from onward.training.evaluation import held_out, ranking_metrics, rollout
from onward.training.evaluation.point_metrics import Array
from onward.training.evaluation.ranking_metrics import Ids

SHOWN_TOKENS = 600
"""The most tokens that a report shows."""

MAX_RANK = 20
"""The ranks that are scored; a lower rank counts as a miss."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive held-out categories, each with its surprise."""

    series: str
    categories: tuple[Category | None, ...]
    surprise: Array


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix: counts by true class (row) and predicted class (column)."""

    classes: tuple[Category, ...]
    counts: Ids


def tokens(model: StepModel, series: Sequence[Series]) -> tuple[dict[str, Any], Stretch]:
    """Returns the metrics of the held-out categories, and a stretch of them for the report.

    Each category except the first of its sequence is scored by the prediction made before it. Beside the model stand
    two baselines: `unigram` predicts each category by its share of the training part (the most popular ones), and
    `bigram` predicts from the category before it (an item-to-item Markov chain). Where unknown categories are allowed,
    `unknown` is their share of the scored steps, which are misses of all three. Raises ValueError if no category is
    held out.
    """
    manifest = model.manifest
    (target,) = manifest.head.targets
    column = model.features.index(target)
    held_out.require_categories(series, column)
    parts: list[tuple[Array, Ids, Ids, Ids]] = []  # surprise, top, actual, the category before
    stretch = Stretch("", (), np.zeros(0))
    for item in series:
        ids, steps = item.values[:, column], held_out.category_steps(item, column)
        if not len(steps):
            continue
        outputs, _ = rollout.session(model, item.values)
        surprise = outputs[manifest.head.surprise][steps].astype(np.float64)
        before = ids[steps - 1]
        context = np.where(np.isnan(before), -1, before).astype(np.int64)
        parts.append((surprise, outputs[RANKED[0]][steps - 1], ids[steps].astype(np.int64), context))
        if len(stretch.categories) < min(SHOWN_TOKENS, len(steps)):
            categories = [_category(manifest.categories, int(number)) for number in ids[steps[:SHOWN_TOKENS]]]
            stretch = Stretch(item.name, tuple(categories), surprise[:SHOWN_TOKENS])
    surprise, top, actual, context = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    counts = ranking_metrics.Bigram([_training_ids(item, column) for item in series], manifest.category_count)
    ranks = min(MAX_RANK, top.shape[1])
    listed = len(manifest.categories)
    table = {
        "model": ranking_metrics.tokens(surprise, top[:, :ranks], actual, listed),
        "unigram": ranking_metrics.tokens(*counts.unigram(actual, ranks), actual, listed),
        "bigram": ranking_metrics.tokens(*counts.bigram(context, actual, ranks), actual, listed),
    }
    metrics = {"steps": len(actual), "targets": {target: table}, "mean_surprise": float(surprise.mean())}
    if manifest.category_count > listed:
        metrics["unknown"] = float((actual == listed).mean())
    return metrics, stretch


def labels(model: StepModel, series: Sequence[Series]) -> tuple[dict[str, Any], Confusion]:
    """Returns the metrics of the held-out labels, and their confusion matrix.

    A label belongs to a step, or to a whole sequence; then the prediction after its last step is scored. The baseline
    `most_common` always predicts the most common label of the training part. Raises ValueError if no label is held out.
    """
    held_out.require_labels(series)
    head = model.manifest.head
    predictions, truths, trained, surprises = [], [], [], []
    for item in series:
        assert item.labels is not None
        steps = np.arange(item.test_from, len(item.values))
        trained.append(_scored(item.labels[: item.validation_from], head.per))
        if not len(steps):
            continue
        outputs, _ = rollout.session(model, item.values)
        surprises.append(outputs[head.surprise][steps].astype(np.float64))
        scored = _scored(steps, head.per)
        predictions.append(outputs[RANKED[0]][scored, 0])
        truths.append(item.labels[scored])
    predicted, actual = np.concatenate(predictions), np.concatenate(truths)
    classes = len(head.classes)
    common = np.full(len(actual), np.bincount(np.concatenate(trained), minlength=classes).argmax())
    table = {
        "model": ranking_metrics.labels(predicted, actual, classes),
        "most_common": ranking_metrics.labels(common, actual, classes),
    }
    counts = np.bincount(actual * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    metrics = {
        "steps": len(actual),
        "targets": {head.targets[0]: table},
        "mean_surprise": float(np.concatenate(surprises).mean()),
    }
    return metrics, Confusion(head.classes, counts)


def _scored(steps: Ids, per: str) -> Ids:
    return steps[-1:] if per == "sequence" else steps


def _training_ids(series: Series, column: int) -> Ids:
    ids = series.train[:, column]
    return ids[~np.isnan(ids)].astype(np.int64)


def _category(categories: Sequence[Category], number: int) -> Category | None:
    return categories[number] if number < len(categories) else None
