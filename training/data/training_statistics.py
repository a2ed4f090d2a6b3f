"""What a data set's training part says of itself: moments by which numbers are scaled, and how often categories occur.

Owns these figures. Knows nothing of what a network does with them.
"""

from collections.abc import Sequence

import numpy as np
import torch

from onward.training.data.datasets import Dataset
from onward.training.evaluation.point_metrics import Array
from onward.training.network.input_layer import Scaling
from onward.training.network.network import Signature


def scaling(dataset: Dataset) -> Scaling:
    """Mean and deviation of the training parts, and of their changes; categories are left as they are."""
    parts = [one.train.astype(np.float64) for one in dataset.series]
    moments = [*_moments(parts, dataset), *_moments([changes(part) for part in parts], dataset)]
    return Scaling(*(torch.from_numpy(moment) for moment in moments))


def _moments(parts: Sequence[Array], dataset: Dataset) -> tuple[Array, Array]:
    values = np.concatenate(parts)
    there = ~np.isnan(values)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, values, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(there, values - mean, 0.0) ** 2).sum(axis=0) / count)
    numbers = np.array([feature.kind == "number" for feature in dataset.features])
    return np.where(numbers, mean, 0.0), np.where(numbers, std, 1.0)


def changes(values: Array) -> Array:
    """(time, features) from the last value seen to each; NaN where there is none."""
    steps = np.where(np.isnan(values), -1, np.arange(len(values))[:, np.newaxis])
    last = np.maximum.accumulate(steps, axis=0)[:-1]
    before = np.where(last < 0, np.nan, np.take_along_axis(values, np.maximum(last, 0), axis=0))
    return np.concatenate([np.full_like(values[:1], np.nan), values[1:] - before])


def counts(dataset: Dataset, signature: Signature) -> torch.Tensor:
    """(places,) how often the training part has each category or class that is predicted."""
    if not signature.chosen:
        return torch.zeros(0)
    seen = [
        one.train[:, signature.places[0]] if one.labels is None else one.labels[: one.validation_from]
        for one in dataset.series
    ]
    places = np.concatenate(seen)
    places = places[~np.isnan(places)].astype(np.int64)
    return torch.from_numpy(np.bincount(places, minlength=signature.chosen).astype(np.float32))
