"""Statistics of a data set's training part: the moments that scale its numbers, and the counts of its categories.

Knows nothing of what a network does with them.
"""

from collections.abc import Sequence

import numpy as np
import torch

from onward.model import transforms
from onward.training.data.datasets import Dataset
from onward.training.evaluation.point_metrics import Array
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Signature


def compute(dataset: Dataset) -> TrainingStatistics:
    """Returns mean and deviation of the training parts, and of their differences; 0 and 1 for categories.

    They are those of the transforms, where a feature has one.
    """
    kinds = tuple(feature.transform for feature in dataset.features)
    parts = [transforms.forward(transforms.NUMPY, kinds, series.train.astype(np.float64)) for series in dataset.series]
    moments = [*_moments(parts, dataset), *_moments([differences(part) for part in parts], dataset)]
    dtype = torch.float64 if dataset.dtype == np.float64 else torch.float32
    return TrainingStatistics(*(torch.from_numpy(moment) for moment in moments), dtype=dtype)


def _moments(parts: Sequence[Array], dataset: Dataset) -> tuple[Array, Array]:
    values = np.concatenate(parts)
    present = ~np.isnan(values)
    count = np.maximum(present.sum(axis=0), 1)
    mean = np.where(present, values, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(axis=0) / count)
    numbers = np.array([feature.kind == "number" for feature in dataset.features])
    return np.where(numbers, mean, 0.0), np.where(numbers, std, 1.0)


def differences(values: Array) -> Array:
    """Returns (time, features): each value less the last value present before it, NaN where either is missing."""
    steps = np.where(np.isnan(values), -1, np.arange(len(values))[:, np.newaxis])
    last = np.maximum.accumulate(steps, axis=0)[:-1]
    previous = np.where(last < 0, np.nan, np.take_along_axis(values, np.maximum(last, 0), axis=0))
    return np.concatenate([np.full_like(values[:1], np.nan), values[1:] - previous])


def category_counts(dataset: Dataset, signature: Signature) -> torch.Tensor:
    """Returns the counts (categories,) of each predicted category or class in the training part; none for numbers."""
    if not signature.category_count:
        return torch.zeros(0)
    parts = [
        series.train[:, signature.target_columns[0]]
        if series.labels is None
        else series.labels[: series.validation_from]
        for series in dataset.series
    ]
    indices = np.concatenate(parts)
    indices = indices[~np.isnan(indices)].astype(np.int64)
    return torch.from_numpy(np.bincount(indices, minlength=signature.category_count).astype(np.float32))
