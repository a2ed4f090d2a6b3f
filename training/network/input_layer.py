"""What the first layer reads of a step: scaled numbers, masks of what is missing, embeddings of categories.

Owns scaling and embedding, for the network and for the graph: each formula is written once, over
`onward.training.network.ops`. Time comes first: raw values are (time, batch, features) in the data's units, missing
ones NaN, categories by place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from onward.model.manifest import Feature
from onward.training.config import Model
from onward.training.network.ops import Ops

GUESS = 0.5
"""The deviation that a session's first value gives it, as a share of that value; it fades with the number of values."""

FLOOR = 1e-6
"""The least deviation, as a share of the training part's: a session of zeros has one too."""


@dataclass(frozen=True, slots=True)
class Unit:
    """How a prediction becomes the data's units: (targets,) or (time, batch, targets) each."""

    mean: Any
    std: Any
    log_std: Any
    level: Any = None
    """What is said is around this, (time, batch, targets): the last values seen, where changes are read. It is kept
    apart from `mean`, since a small change added to a high level would lose its last digits.
    """

    @staticmethod
    def scaled(like: Tensor) -> "Unit":
        """None of it: the prediction stays in scaled units."""
        return Unit(torch.zeros_like(like), torch.ones_like(like), torch.zeros_like(like))


@dataclass(frozen=True, slots=True)
class Read:
    """What is read of a step's numbers."""

    terms: list[Any]
    """Scaled numbers and masks, each (time, batch, some)."""
    unit: Unit | None
    """Of the targets, after each step; None where they are no numbers."""
    base: Any = None
    """The level before each step, (time, batch, targets): around it came what a prediction is held to."""


class Scaling(nn.Module):
    """The training part's moments, kept in the graph so that clients send raw values."""

    mean: Tensor
    std: Tensor
    change_mean: Tensor
    change_std: Tensor

    def __init__(
        self, mean: Tensor, std: Tensor, change_mean: Tensor | None = None, change_std: Tensor | None = None
    ) -> None:
        """mean, std: (features,) in the data's units; a constant feature, and a category, has deviation 1.

        change_mean, change_std: those of the changes from value to value, for features that are read as changes.
        """
        super().__init__()
        change_mean = torch.zeros_like(mean) if change_mean is None else change_mean
        change_std = std if change_std is None else change_std
        for name, moment in (("mean", mean), ("change_mean", change_mean)):
            self.register_buffer(name, moment.float())
        for name, moment in (("std", std), ("change_std", change_std)):
            self.register_buffer(name, torch.where(moment > 0, moment, torch.ones_like(moment)).float())


class Reading(nn.Module):
    """Numbers that are read as changes become so first: what is said of the next change is added to the last value.

    Fixed numbers are scaled by the training part's moments; streaming ones by those of the session itself, so far.

    Streaming are the observed numbers of a model whose scaling is causal, or by the mean: what is known in advance or
    static has no scale of its own.
    """

    def __init__(
        self,
        model: Model,
        features: Sequence[Feature],
        scaling: Scaling,
        *,
        changes: Sequence[str] = (),
        embedded: str | None = None,
    ) -> None:
        """`changes` are the features that are read as such; `embedded` is the one whose embedding has the width that
        the configuration asks for.
        """
        super().__init__()
        self.features, self.scaling, self.kind = tuple(features), scaling, model.scaling
        numbers = [place for place, feature in enumerate(features) if feature.kind == "number"]
        self.streaming = [i for i in numbers if model.scaling != "fixed" and features[i].role == "observed"]
        self.fixed = [i for i in numbers if i not in self.streaming]
        self.changes = [i for i in numbers if features[i].name in changes]
        self.masked = [i for i in numbers if features[i].nullable]
        self.categories = [place for place, feature in enumerate(features) if feature.kind == "category"]
        widths = [
            model.embedding if features[i].name == embedded and model.embedding else embedding_width(features[i].places)
            for i in self.categories
        ]
        self.tables = [
            nn.Embedding(features[i].places + features[i].nullable, width)
            for i, width in zip(self.categories, widths, strict=True)
        ]
        self.embeddings = nn.ModuleList(self.tables)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)
        self.dense = len(numbers) + len(self.masked)
        self.width = self.dense + sum(widths)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """(features,) mean and deviation of what is scaled: values, or changes."""
        changed = torch.zeros_like(self.scaling.mean, dtype=torch.bool)
        changed[self.changes] = True
        mean = torch.where(changed, self.scaling.change_mean, self.scaling.mean)
        return mean, torch.where(changed, self.scaling.change_std, self.scaling.std)

    @property
    def sums(self) -> tuple[str, ...]:
        """The running sums that a session carries, (batch, streaming) each, in double precision."""
        return {"fixed": (), "mean": ("seen", "sum"), "causal": ("seen", "sum", "squares")}[
            self.kind if self.streaming else "fixed"
        ]

    def table(self, feature: str) -> nn.Embedding:
        tables = zip(self.categories, self.tables, strict=True)
        return next(table for place, table in tables if self.features[place].name == feature)

    @property
    def first_values(self) -> Tensor:
        """(changes,) what a session's first values are changes from: they count as none."""
        return self.scaling.mean[self.changes]

    def initial_unit(self, targets: Sequence[int]) -> Unit:
        """Before anything was read: the training part's moments of these features."""
        mean, std = self.scaling.mean[list(targets)], self.scaling.std[list(targets)]
        if not set(targets) & set(self.changes):
            return Unit(mean, std, std.log())
        moved = torch.tensor([float(i in self.changes) for i in targets], device=mean.device)
        return Unit(mean * (1 - moved), std, std.log(), mean * moved)

    def numbers(self, ops: Ops, raw: Any, targets: Sequence[int]) -> Read:
        """`targets` are the places of those that are numbers."""
        terms: list[Any] = []
        unit, level, base = None, None, None
        if self.changes:
            raw, last, previous = self._changed(ops, raw)
            if set(targets) & set(self.changes):
                level, base = (self._of_targets(ops, values, targets) for values in (last, previous))
        if self.fixed:
            mean, std = self._moments(ops, "scaling", self.fixed)
            value = ops.columns(raw, self.fixed)
            if set(self.fixed) & set(self.masked):
                value = ops.filled(value, mean)
            terms.append((value - mean) / std)
        if self.streaming:
            scaled, unit = self._streaming(ops, ops.columns(raw, self.streaming), targets)
            terms.append(scaled)
        elif targets:
            mean, std = self._moments(ops, "target", targets)
            unit = Unit(mean, std, ops.constant("target_log_std", self.moments[1][list(targets)].log()))
        if self.masked:
            terms.append(1.0 - ops.present(ops.columns(raw, self.masked)))
        return Read(terms, None if unit is None else replace(unit, level=level), base)

    def _changed(self, ops: Ops, raw: Any) -> tuple[Any, Any, Any]:
        """Changes in place of values; and the last values seen of what changes, after each step and before it."""
        first = ops.constant("first_values", self.first_values)
        values = ops.columns(raw, self.changes)
        last = ops.last_seen("previous", values, first) if set(self.changes) & set(self.masked) else values
        previous, there = ops.before("previous", last, first), ops.present(values)
        begun = ops.clip(ops.single(ops.running("begun", ops.double(there))) - there, 0.0, 1.0)
        count = len(self.features)
        places = [count + self.changes.index(i) if i in self.changes else i for i in range(count)]
        return ops.columns(ops.join([raw, (values - previous) * begun]), places), last, previous

    def _of_targets(self, ops: Ops, values: Any, targets: Sequence[int]) -> Any:
        """(time, batch, targets) of values (time, batch, changes): 0 for a target that is no change."""
        at = [self.changes.index(i) if i in self.changes else len(self.changes) for i in targets]
        return ops.columns(ops.join([values, ops.columns(values, [0]) * 0.0]), at)

    def embedded(self, ops: Ops, places: Any) -> list[Any]:
        """(time, batch, width) of each category. places: (time, batch, categories)."""
        terms = []
        for column, (i, table) in enumerate(zip(self.categories, self.tables, strict=True)):
            feature = self.features[i]
            place = ops.place(ops.columns(places, [column]), feature.places)
            terms.append(ops.rows(ops.constant(f"embedding_{feature.name}", table.weight), place))
        return terms

    def _moments(self, ops: Ops, name: str, places: Sequence[int]) -> tuple[Any, Any]:
        mean, std = self.moments
        return ops.constant(f"{name}_mean", mean[list(places)]), ops.constant(f"{name}_std", std[list(places)])

    def _streaming(self, ops: Ops, raw: Any, targets: Sequence[int]) -> tuple[Any, Unit | None]:
        """Scaled by the moments of all that the session has seen, this step among it: nothing of the future.

        causal: running mean and deviation. The deviation of few values says little, so a guess that fades is added:
        var + (0.5 rms / n)^2, rms being the root of the mean square. mean: 1 plus the mean of the magnitudes (Salinas
        et al. 2020, section 3.4), for positive data. Both follow the data's scale; sums are in double precision.
        """
        first_mean, first_std = (
            ops.constant(f"first_{name}", moment[self.streaming].double())
            for name, moment in zip(("mean", "std"), self.moments, strict=True)
        )
        there = ops.double(ops.present(raw))
        value = ops.double(ops.filled(raw, ops.constant("missing", torch.zeros_like(self.scaling.mean[:1]))))
        seen = ops.running("seen", there)
        any_seen, count = ops.clip(seen, 0.0, 1.0), ops.clip(seen, 1.0, 2.0**53)
        none_seen = 1.0 - any_seen
        if self.kind == "mean":
            mean = any_seen * 0.0
            std = ops.running("sum", ops.abs(value)) / count + 1.0 + none_seen * ops.abs(first_mean)
        else:
            average = ops.running("sum", value) / count
            square = ops.running("squares", value * value) / count
            variance = ops.greater(square - average * average, square * 0.0)
            guess = square * (GUESS * GUESS) / (count * count)
            floor = first_std * first_std * (none_seen + FLOOR * FLOOR)
            mean, std = average + none_seen * first_mean, ops.sqrt(variance + guess + floor)
        value = ops.filled(ops.double(raw), mean)
        scaled = ops.single((value - mean) / std)
        if not targets:
            return scaled, None
        places = [self.streaming.index(target) for target in targets]
        mean, std = (ops.single(ops.columns(moment, places)) for moment in (mean, std))
        return scaled, Unit(mean, std, ops.log(std))


def embedding_width(places: int) -> int:
    """A rule of thumb: 1.6 n^0.56, at most 128 (fastai's, from tabular data)."""
    return min(128, round(1.6 * float(places**0.56)))
