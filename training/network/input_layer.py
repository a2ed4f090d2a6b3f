"""The input layer: scaled numbers, masks of missing values, and embeddings of categories.

Owns scaling, differencing and embedding, for the network and for the graph: each formula is written once, over
`onward.training.network.ops`. Time comes first: raw values are (time, batch, features) in the data's units, missing
ones NaN, categories as indices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from onward.model import transforms
from onward.model.manifest import Feature
from onward.training.config import Model
from onward.training.network.ops import Ops
from onward.training.network.running_statistics import BEYOND, RunningStatistics, memory


@dataclass(frozen=True, slots=True)
class TargetScale:
    """The affine map from scaled predictions to the data's units: (targets,) or (time, batch, targets) each."""

    mean: Any
    std: Any
    log_std: Any
    level: Any = None
    """The last values seen, (time, batch, targets), where targets are differenced: predictions are relative to it.

    It is not added to `mean`, since a small difference added to a high level would lose its last digits.
    """
    offset: Any = None
    """The mean in double precision, plus the level if targets are differenced: (targets,) or (time, batch, targets).

    Predictions are relative to it, and `mean` is 0.
    """

    @staticmethod
    def identity(like: Tensor) -> "TargetScale":
        """Returns the scale under which a prediction stays in scaled units."""
        return TargetScale(torch.zeros_like(like), torch.ones_like(like), torch.zeros_like(like))


@dataclass(frozen=True, slots=True)
class ScaledNumbers:
    """The numeric features of a sequence as the network reads them."""

    terms: list[Any]
    """Scaled numbers and masks, each (time, batch, some)."""
    target_scale: TargetScale | None
    """The targets' scale after each step; None where the targets are not numbers."""
    previous_level: Any = None
    """The level before each step, (time, batch, targets): the step's own value is compared relative to it.

    None in double precision, which compares absolute values.
    """


class TrainingStatistics(nn.Module):
    """Mean and deviation of the training part, stored in the graph so that clients send raw values.

    The precision of the means is that in which a network reads its inputs and returns its predictions.
    """

    mean: Tensor
    std: Tensor
    difference_mean: Tensor
    difference_std: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        difference_mean: Tensor | None = None,
        difference_std: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Takes (features,) each in the data's units. Where a deviation is 0, 1 is stored instead.

        difference_mean, difference_std: those of the differences from value to value, for differenced features.
        """
        super().__init__()
        difference_mean = torch.zeros_like(mean) if difference_mean is None else difference_mean
        difference_std = std if difference_std is None else difference_std
        for name, value in (("mean", mean), ("difference_mean", difference_mean)):
            self.register_buffer(name, value.to(dtype))
        for name, value in (("std", std), ("difference_std", difference_std)):
            self.register_buffer(name, torch.where(value > 0, value, torch.ones_like(value)).float())


class InputLayer(nn.Module):
    """Turns raw values into the input of the first recurrent layer.

    `transform` comes first; the statistics, the levels and the scale of predictions are in transformed units.
    Differenced numbers are replaced by their differences first; a prediction of the next difference is added to the
    last value. Fixed numbers are scaled by the training part's statistics, streaming ones by those of the session so
    far. Streaming are the observed numbers of a model whose scaling is `causal` or `mean`; future covariates and static
    features always keep the training part's scale.

    Channels are targets that the recurrent layers read apart, as rows of their own, with the same weights. The row of
    a channel has its own number and mask, and all features that are no channel.
    """

    def __init__(
        self,
        model: Model,
        features: Sequence[Feature],
        statistics: TrainingStatistics,
        *,
        differenced: Sequence[str] = (),
        embedded: str | None = None,
        channels: Sequence[int] = (),
    ) -> None:
        """Takes the feature `embedded` whose embedding has the width that the configuration sets.

        channels: the columns of the targets that are read apart, if they are.
        """
        super().__init__()
        self.features, self.statistics = tuple(features), statistics
        # The attributes below are columns of the raw input.
        numbers = [column for column, feature in enumerate(features) if feature.kind == "number"]
        self.streaming = [i for i in numbers if model.scaling != "fixed" and features[i].role == "observed"]
        self.fixed = [i for i in numbers if i not in self.streaming]
        self.differenced = [i for i in numbers if features[i].name in differenced]
        self.transforms = tuple(feature.transform for feature in features)
        self.masked = [i for i in numbers if features[i].nullable]
        if set(self.masked) & set(channels):  # the rows of all channels are alike
            self.masked = [i for i in numbers if i in self.masked or i in channels]
        self.running = (
            RunningStatistics(model.scaling, memory(model.half_life), bool(set(self.streaming) & set(self.masked)))
            if model.scaling != "fixed" and self.streaming
            else None
        )
        """The statistics that a session carries of its streaming numbers, if there are any."""
        self.categories = [column for column, feature in enumerate(features) if feature.kind == "category"]
        widths = [
            model.embedding
            if features[i].name == embedded and model.embedding
            else embedding_width(features[i].category_count)
            for i in self.categories
        ]
        self.tables = [
            nn.Embedding(features[i].category_count + features[i].nullable, width)
            for i, width in zip(self.categories, widths, strict=True)
        ]
        self.embeddings = nn.ModuleList(self.tables)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)
        self.dense = len(numbers) + len(self.masked)
        self.joined = self.dense + sum(widths)
        """The number of values of a step: scaled numbers, masks and embeddings."""
        order = [*self.fixed, *self.streaming]
        own = [[order.index(i), *([len(order) + self.masked.index(i)] if i in self.masked else [])] for i in channels]
        shared = set(range(self.joined)).difference(*own)
        self.channel_rows = [[*positions, *sorted(shared)] for positions in own]
        """The values of a step that each channel reads."""
        self.width = len(self.channel_rows[0]) if channels else self.joined
        """The number of values that the first recurrent layer reads."""

    @property
    def is_double(self) -> bool:
        """True if the inputs are in double precision."""
        return self.statistics.mean.dtype == torch.float64

    @property
    def scaling_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (features,) of the values that are scaled: differences where a feature is differenced."""
        is_differenced = torch.zeros_like(self.statistics.mean, dtype=torch.bool)
        is_differenced[self.differenced] = True
        mean = torch.where(is_differenced, self.statistics.difference_mean, self.statistics.mean)
        return mean, torch.where(is_differenced, self.statistics.difference_std, self.statistics.std)

    @property
    def first_statistics(self) -> Tensor:
        """The running statistics (parts, streaming) before a session's first value."""
        assert self.running is not None
        return self.running.initial(*self._streaming_moments)

    @property
    def _streaming_moments(self) -> tuple[Tensor, Tensor]:
        mean, std = self.scaling_statistics
        return mean[self.streaming].double(), std[self.streaming].double()

    def running_statistics(self, ops: Ops, values: Any) -> list[Any]:
        """Returns the parts of the running statistics after each step. values: (time, batch, streaming) in doubles."""
        assert self.running is not None
        counted = ops.abs(values) if self.running.kind == "mean" else values
        constants = self.running.constants(*self._streaming_moments)
        return ops.recursion("statistics", counted, constants, self.first_statistics, self.running.update)

    def table(self, feature: str) -> nn.Embedding:
        """Returns the embedding of a category feature."""
        tables = zip(self.categories, self.tables, strict=True)
        return next(table for column, table in tables if self.features[column].name == feature)

    @property
    def first_values(self) -> Tensor:
        """The level (differenced,) before a session's first values, whose differences from it count as 0."""
        return self.statistics.mean[self.differenced]

    def initial_target_scale(self, targets: Sequence[int]) -> TargetScale:
        """Returns the scale before any input: the training part's statistics of these columns."""
        mean, std = self.statistics.mean[list(targets)], self.statistics.std[list(targets)]
        if self.is_double:
            return TargetScale(torch.zeros_like(std), std, std.log(), offset=mean)
        if not set(targets) & set(self.differenced):
            return TargetScale(mean, std, std.log())
        is_differenced = torch.tensor([float(i in self.differenced) for i in targets], device=mean.device)
        return TargetScale(mean * (1 - is_differenced), std, std.log(), mean * is_differenced)

    def transform(self, ops: Ops, raw: Any) -> Any:
        """Returns raw values in transformed units, in which all else of the network computes."""
        return transforms.forward(ops, self.transforms, raw)

    def scale_numbers(self, ops: Ops, raw: Any, targets: Sequence[int]) -> ScaledNumbers:
        """Returns the scaled numbers and masks of `transform`; `targets` are the columns of the number targets."""
        terms: list[Any] = []
        scale, level, previous_level = None, None, None
        if self.differenced:
            raw, last, previous = self._difference(ops, raw)
            if set(targets) & set(self.differenced):
                level, previous_level = (self._of_targets(ops, values, targets) for values in (last, previous))
        if self.fixed:
            mean, std = self._constants(ops, "scaling", self.fixed)
            value = ops.columns(raw, self.fixed)
            if set(self.fixed) & set(self.masked):
                value = ops.fill_missing(value, mean)
            terms.append(ops.single(value - mean) / std)
        if self.running:
            scaled, scale = self._scale_streaming(ops, self.running, ops.columns(raw, self.streaming), targets)
            terms.append(scaled)
        elif targets:
            mean, std = self._constants(ops, "target", targets)
            log_std = self.scaling_statistics[1][list(targets)].log()
            scale = TargetScale(mean, std, ops.constant("target_log_std", log_std))
        if self.masked:
            terms.append(1.0 - ops.present(ops.columns(raw, self.masked)))
        if scale is None:
            return ScaledNumbers(terms, None)
        if self.is_double:
            offset = scale.mean if level is None else level + scale.mean
            none = ops.constant("no_mean", torch.zeros_like(self.statistics.std[list(targets)]))
            return ScaledNumbers(terms, replace(scale, mean=none, offset=offset))
        return ScaledNumbers(terms, replace(scale, level=level), previous_level)

    def _difference(self, ops: Ops, raw: Any) -> tuple[Any, Any, Any]:
        """Returns raw with differences in place of values; and the last values seen, after each step and before it."""
        first = ops.constant("first_values", self.first_values)
        values = ops.columns(raw, self.differenced)
        last = ops.last_present("previous", values, first) if set(self.differenced) & set(self.masked) else values
        previous, present = ops.previous("previous", last, first), ops.present(values)
        begun = ops.like(ops.running_sums("begun", [ops.double(present)])[0], values) - ops.like(present, values)
        begun = ops.clip(begun, 0.0, 1.0)
        count = len(self.features)
        columns = [count + self.differenced.index(i) if i in self.differenced else i for i in range(count)]
        return ops.columns(ops.join([raw, (values - previous) * begun]), columns), last, previous

    def _of_targets(self, ops: Ops, values: Any, targets: Sequence[int]) -> Any:
        """Returns (time, batch, targets) of (time, batch, differenced): 0 for a target that is not differenced."""
        columns = [self.differenced.index(i) if i in self.differenced else len(self.differenced) for i in targets]
        return ops.columns(ops.join([values, ops.columns(values, [0]) * 0.0]), columns)

    def embed(self, ops: Ops, indices: Any) -> list[Any]:
        """Returns the embedding of each category, (time, batch, width). indices: (time, batch, categories)."""
        terms = []
        for column, (i, table) in enumerate(zip(self.categories, self.tables, strict=True)):
            feature = self.features[i]
            index = ops.category_index(ops.columns(indices, [column]), feature.category_count)
            terms.append(ops.gather_rows(ops.constant(f"embedding_{feature.name}", table.weight), index))
        return terms

    def by_channel(self, ops: Ops, values: Any) -> Any:
        """Returns joined values (time, batch, joined) as the layers read them: (time, batch * channels, width)."""
        if not self.channel_rows:
            return values
        return ops.rows(ops.columns(values, [i for row in self.channel_rows for i in row]), self.width)

    def _constants(self, ops: Ops, name: str, columns: Sequence[int]) -> tuple[Any, Any]:
        mean, std = self.scaling_statistics
        return ops.constant(f"{name}_mean", mean[list(columns)]), ops.constant(f"{name}_std", std[list(columns)])

    def _scale_streaming(
        self, ops: Ops, running: RunningStatistics, raw: Any, targets: Sequence[int]
    ) -> tuple[Any, TargetScale | None]:
        """Scales by the statistics of what the session has seen, this step included and nothing of the future.

        Beyond `BEYOND` deviations all numbers read alike, so that no value drives the recurrent state to a place from
        which it takes long to return.
        """
        value = ops.double(raw)
        least_variance = ops.constant("least_variance", running.constants(*self._streaming_moments)[1])
        mean, std = running.scale(ops, least_variance, self.running_statistics(ops, value))
        if running.nullable:
            value = ops.fill_missing(value, mean)
        scaled = ops.clip(ops.single((value - mean) / std), -BEYOND, BEYOND)
        if not targets:
            return scaled, None
        columns = [self.streaming.index(target) for target in targets]
        mean, std = ops.like(ops.columns(mean, columns), raw), ops.single(ops.columns(std, columns))
        return scaled, TargetScale(mean, std, ops.log(std))


def embedding_width(categories: int) -> int:
    """Returns a width by a rule of thumb: 1.6 n^0.56, at most 128 (fastai's, from tabular data)."""
    return min(128, round(1.6 * float(categories**0.56)))
