"""What a network says of the next input: the distributions and scores it can be asked for.

Owns the meaning of the readout's numbers. Each head is two formulas, written once for torch and for the graph: what is
told of the next input in the data's units, and the surprise of an input under what was told before it. The training
loss is that surprise in scaled units, so what a session reports is what the network was trained to make small.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from onward.model.manifest import RANKED, Score
from onward.training.config import Model
from onward.training.network.input_layer import Unit
from onward.training.network.ops import Ops, TorchOps

LOG_BOUND = 7.0
"""A deviation stays within exp(-7) and exp(7) of the target's own, so that no likelihood is infinite."""

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

_torch = TorchOps()


class Head(nn.Module):
    """`outputs` are what clients are told, the first is fed back. Readouts are (..., units) -> `said`, a few terms."""

    outputs: ClassVar[tuple[str, ...]]
    located: ClassVar[tuple[str, ...]] = ()
    """Of them those that lie on the target's own axis, and move with its level."""
    score: Score
    levels: tuple[float, ...] = ()

    def say(self, ops: Ops, hidden: Any) -> list[Any]:
        """The readout's numbers, each (..., targets) or as wide as the head needs."""
        raise NotImplementedError

    def told(self, ops: Ops, said: Sequence[Any], unit: Unit | None) -> dict[str, Any]:
        """In the data's units, around the level: `outputs`, and what else the surprise needs of the prediction."""
        raise NotImplementedError

    def surprise(self, ops: Ops, before: Mapping[str, Any], told: Mapping[str, Any], actual: Any) -> Any:
        """(..., targets) the score of the actual values under what was told before them."""
        raise NotImplementedError

    def marginal(self, unit: Unit | None) -> dict[str, Tensor]:
        """What is told before anything was read, without time and batch."""
        raise NotImplementedError

    def shifted(self, ops: Ops, told: Mapping[str, Any], level: Any) -> dict[str, Any]:
        """What was told around a level, at it."""
        del ops
        return {name: value + level if name in self.located else value for name, value in told.items()}

    def loss(self, hidden: Tensor, answers: Tensor) -> Tensor:
        """(..., targets) of one prediction each. answers: (..., targets), numbers in scaled units."""
        raise NotImplementedError


class Numbers(Head):
    """`width` numbers of the readout for each target. The loss is the surprise in scaled units."""

    def __init__(self, units: int, targets: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.readout = nn.Linear(units, width * targets)
        nn.init.zeros_(self.readout.bias)

    def say(self, ops: Ops, hidden: Any) -> list[Any]:
        weight, bias = (
            ops.constant(f"readout_{name}", value)
            for name, value in (("weight", self.readout.weight), ("bias", self.readout.bias))
        )
        return ops.split(ops.linear(hidden, weight, bias), self.width)

    def loss(self, hidden: Tensor, answers: Tensor) -> Tensor:
        told = self.told(_torch, self.say(_torch, hidden), Unit.scaled(answers))
        value = self.surprise(_torch, told, told, answers)
        assert isinstance(value, Tensor)
        return value


class Point(Numbers):
    """One number. mae: the conditional median, not led by outliers; mse: the mean; huber: between (delta 1)."""

    outputs = located = ("point",)

    def __init__(self, units: int, targets: int, loss: str) -> None:
        super().__init__(units, targets, 1)
        self._loss = loss
        scores: dict[str, Score] = {
            "mae": "scaled_absolute_error",
            "mse": "scaled_squared_error",
            "huber": "scaled_huber_loss",
        }
        self.score = scores[loss]

    def told(self, ops: Ops, said: Sequence[Any], unit: Unit | None) -> dict[str, Any]:
        del ops
        assert unit is not None
        return {"point": said[0] * unit.std + unit.mean, "unit": said[0] * 0.0 + unit.std}

    def surprise(self, ops: Ops, before: Mapping[str, Any], told: Mapping[str, Any], actual: Any) -> Any:
        del told
        error = ops.abs((actual - before["point"]) / before["unit"])
        if self._loss == "mae":
            return error
        if self._loss == "mse":
            return error * error
        near = ops.clip(error, 0.0, 1.0)  # Huber 1964: quadratic up to 1, linear beyond
        return 0.5 * near * near + (error - near)

    def marginal(self, unit: Unit | None) -> dict[str, Tensor]:
        assert unit is not None
        return {"point": unit.mean, "unit": unit.std}


class Gaussian(Numbers):
    """Mean and standard deviation; the surprise is the negative log-likelihood in nats."""

    outputs, located = ("mean", "std"), ("mean",)
    score = "negative_log_likelihood"

    def __init__(self, units: int, targets: int) -> None:
        super().__init__(units, targets, 2)

    def told(self, ops: Ops, said: Sequence[Any], unit: Unit | None) -> dict[str, Any]:
        assert unit is not None
        log = ops.clip(said[1], -LOG_BOUND, LOG_BOUND) + unit.log_std
        return {"mean": said[0] * unit.std + unit.mean, "std": ops.exp(log), "log_std": log}

    def surprise(self, ops: Ops, before: Mapping[str, Any], told: Mapping[str, Any], actual: Any) -> Any:
        del ops, told
        error = (actual - before["mean"]) / before["std"]
        return 0.5 * error * error + before["log_std"] + HALF_LOG_TWO_PI

    def marginal(self, unit: Unit | None) -> dict[str, Tensor]:
        assert unit is not None
        return {"mean": unit.mean, "std": unit.std, "log_std": unit.log_std}


class StudentT(Numbers):
    """Location, scale and degrees of freedom, for data with outliers; the surprise is the negative log-likelihood.

    The degrees of freedom are learnt once for each target, not said anew at each step: their normaliser needs the log
    of the gamma function, which no graph has, and they describe the noise rather than the moment.
    """

    outputs, located = ("mean", "scale", "df"), ("mean",)
    score = "negative_log_likelihood"

    def __init__(self, units: int, targets: int) -> None:
        super().__init__(units, targets, 2)
        self.free = nn.Parameter(torch.full((targets,), 5.0))

    @property
    def df(self) -> Tensor:
        """(targets,) above 2, so that the variance is finite."""
        return 2.0 + softplus(self.free)

    def told(self, ops: Ops, said: Sequence[Any], unit: Unit | None) -> dict[str, Any]:
        assert unit is not None
        log = ops.clip(said[1], -LOG_BOUND, LOG_BOUND) + unit.log_std
        df = said[0] * 0.0 + ops.constant("t_df", self.df)  # one for each step, as the other outputs are
        return {"mean": said[0] * unit.std + unit.mean, "scale": ops.exp(log), "df": df, "log_scale": log}

    def surprise(self, ops: Ops, before: Mapping[str, Any], told: Mapping[str, Any], actual: Any) -> Any:
        """-log of the density of Student's t with location and scale."""
        del told
        df = self.df
        normaliser = torch.lgamma(df / 2) - torch.lgamma((df + 1) / 2) + 0.5 * torch.log(df * math.pi)
        error = (actual - before["mean"]) / before["scale"]
        tail = ops.log(error * error / ops.constant("t_df", df) + 1.0) * ops.constant("t_exponent", (df + 1) / 2)
        return tail + before["log_scale"] + ops.constant("t_normaliser", normaliser)

    def marginal(self, unit: Unit | None) -> dict[str, Tensor]:
        assert unit is not None
        return {"mean": unit.mean, "scale": unit.std, "df": self.df.detach(), "log_scale": unit.log_std}


class Quantiles(Numbers):
    """Quantiles that cannot cross: the median, and positive distances up and down from it.

    The surprise is the quantile loss, twice the mean over the levels in units of the scaling: it approaches the CRPS as
    levels are added (Gneiting and Ranjan 2011), and stands in for the likelihood, which quantiles do not have.
    """

    outputs = located = ("median", "quantiles")
    score = "scaled_quantile_loss"

    def __init__(self, units: int, targets: int, levels: tuple[float, ...]) -> None:
        """levels: rising, with 0.5 among them."""
        super().__init__(units, targets, len(levels))
        self.levels, self._middle = levels, levels.index(0.5)

    def told(self, ops: Ops, said: Sequence[Any], unit: Unit | None) -> dict[str, Any]:
        assert unit is not None
        places = [said[self._middle]]
        for number in said[self._middle + 1 :]:
            places.append(places[-1] + _positive(ops, number))
        for number in reversed(said[: self._middle]):
            places.insert(0, places[0] - _positive(ops, number))
        told = [place * unit.std + unit.mean for place in places]
        return {
            "median": told[self._middle],
            "quantiles": ops.stack(told),
            "unit": said[0] * 0.0 + unit.std,
        }

    def shifted(self, ops: Ops, told: Mapping[str, Any], level: Any) -> dict[str, Any]:
        moved = ops.stack([quantile + level for quantile in ops.unstack(told["quantiles"], self.width)])
        return {**told, "median": told["median"] + level, "quantiles": moved}

    def surprise(self, ops: Ops, before: Mapping[str, Any], told: Mapping[str, Any], actual: Any) -> Any:
        del told
        losses = []
        for level, quantile in zip(self.levels, ops.unstack(before["quantiles"], self.width), strict=True):
            error = (actual - quantile) / before["unit"]
            losses.append(ops.greater(error * level, error * (level - 1.0)))
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total * (2.0 / self.width)

    def marginal(self, unit: Unit | None) -> dict[str, Tensor]:
        assert unit is not None
        normal = torch.tensor([NormalDist().inv_cdf(level) for level in self.levels])
        return {
            "median": unit.mean,
            "quantiles": unit.mean[:, None] + unit.std[:, None] * normal,
            "unit": unit.std,
        }


class Choice(Head):
    """One of `places`, by a softmax over query . weight[place] + bias[place]: the likeliest places are told.

    What is kept of a prediction is its query and the softmax's normaliser: enough for the likelihood of any place, and
    little where there are 100,000 of them. Before anything was read, the query is that of a hidden state of zeros.
    """

    outputs = RANKED

    def __init__(self, model: Model, target: str, counts: Tensor, embedding: nn.Embedding | None = None) -> None:
        """counts: (places,) how often the training part has each; the bias begins as their log share.

        With the target's embedding the weight is that (Press and Wolf 2017); a hidden state of another width is
        projected.
        """
        super().__init__()
        units, places = model.units, len(counts)
        self.target, self.places, self.top = target, places, min(model.top, places)
        share = (counts.double() + 1) / (counts.double() + 1).sum()
        self.bias = nn.Parameter(share.log().float())
        self.tied = embedding
        width = embedding.embedding_dim if embedding is not None else units
        self.projection = nn.Linear(units, width) if width != units else None
        self.own = None if embedding is not None else nn.Parameter(torch.empty(places, units))
        if self.own is not None:
            nn.init.xavier_uniform_(self.own)

    @property
    def weight(self) -> Tensor:
        """(places, width of the query)"""
        if self.own is not None:
            return self.own
        assert self.tied is not None
        return self.tied.weight[: self.places]

    def query(self, ops: Ops, hidden: Any) -> Any:
        if self.projection is None:
            return hidden
        weight, bias = (
            ops.constant(f"projection_{name}", value)
            for name, value in (("weight", self.projection.weight), ("bias", self.projection.bias))
        )
        return ops.linear(hidden, weight, bias)

    def _matrix(self, ops: Ops) -> tuple[Any, Any]:
        whole = self.tied is not None and self.tied.num_embeddings == self.places
        name = f"embedding_{self.target}" if whole else "choice_weight"  # the one tensor, where it is the one
        return ops.constant(name, self.weight), ops.constant("choice_bias", self.bias)

    def say(self, ops: Ops, hidden: Any) -> list[Any]:
        query = self.query(ops, hidden)
        return [query, ops.linear(query, *self._matrix(ops))]

    def told(self, ops: Ops, said: Sequence[Any], unit: Unit | None) -> dict[str, Any]:
        del unit
        query, logits = said
        normaliser = ops.log_sum_exp(logits)
        scores, top = ops.top(logits, self.top)
        return {"top": top, "log_probability": scores - normaliser, "query": query, "normaliser": normaliser}

    def marginal(self, unit: Unit | None) -> dict[str, Tensor]:
        del unit
        units = self.projection.in_features if self.projection is not None else self.weight.shape[1]
        zeros = torch.zeros(units, device=self.bias.device)
        return {name: value.detach() for name, value in self.told(_torch, self.say(_torch, zeros), None).items()}

    def loss(self, hidden: Tensor, answers: Tensor) -> Tensor:
        _, logits = self.say(_torch, hidden)
        return nn.functional.cross_entropy(logits.flatten(0, -2), answers.long().flatten(), reduction="none").view_as(
            answers
        )


class Categorical(Choice):
    """The next category; the surprise is the negative log-likelihood in nats."""

    score = "negative_log_likelihood"

    drawn: Tensor

    def __init__(self, model: Model, target: str, counts: Tensor, embedding: nn.Embedding | None = None) -> None:
        """With `negatives` the loss, while training, is over the true place and so many others, drawn by the square
        root of their share, each score corrected by how likely its draw was (Bengio and Senecal 2008): the gradient
        approaches that of the whole softmax as more are drawn. The true one counts as often as it is drawn, or it
        would seem as likely as the draws are many.
        """
        super().__init__(model, target, counts, embedding)
        self.negatives = model.negatives
        self.register_buffer("drawn", ((counts.double() + 1) ** 0.5).float(), persistent=False)

    def surprise(self, ops: Ops, before: Mapping[str, Any], told: Mapping[str, Any], actual: Any) -> Any:
        del told
        weight, _ = self._matrix(ops)
        column = ops.constant("choice_bias_column", self.bias[:, None])
        places = ops.place(actual, self.places)
        own = ops.dot(before["query"], ops.rows(weight, places)) + ops.rows(column, places)
        return before["normaliser"] - own

    def loss(self, hidden: Tensor, answers: Tensor) -> Tensor:
        if not (self.training and self.negatives):
            return super().loss(hidden, answers)
        others = torch.multinomial(self.drawn, self.negatives, replacement=True)
        expected = (self.drawn / self.drawn.sum() * self.negatives).log()
        query, true = self.query(_torch, hidden), answers.long()
        own = (query * self.weight[true.squeeze(-1)]).sum(dim=-1, keepdim=True) + self.bias[true] - expected[true]
        scores = nn.functional.linear(query, self.weight[others], self.bias[others] - expected[others])
        nll: Tensor = torch.cat((own, scores), dim=-1).logsumexp(dim=-1, keepdim=True) - own
        return nll


class Label(Choice):
    """The label of a step, or of the sequence so far.

    No input is predicted, so what stands in for its likelihood is how far it moves what is believed: the divergence of
    the prediction after it from the one before (Itti and Baldi 2009, "Bayesian surprise"), in nats.
    """

    score = "bayesian_surprise"

    def told(self, ops: Ops, said: Sequence[Any], unit: Unit | None) -> dict[str, Any]:
        told = super().told(ops, said, unit)
        return {**{name: told[name] for name in RANKED}, "belief": said[1] - told["normaliser"]}

    def surprise(self, ops: Ops, before: Mapping[str, Any], told: Mapping[str, Any], actual: Any) -> Any:
        del actual
        now = told["belief"]
        return ops.dot(ops.exp(now), now - before["belief"])


def _positive(ops: Ops, x: Any) -> Any:
    """exp(x) below 0, at least exp(-7); 1 + x above: smooth, positive, and exact in any batch."""
    return ops.exp(ops.clip(x, -LOG_BOUND, 0.0)) + ops.clip(x, 0.0, float(np.finfo(np.float32).max))


def kept(ops: Ops, head: Head, told: Mapping[str, Any], unit: Unit | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a session keeps of a prediction: as clients are told it, and, where there is a level, around that too.

    An input's surprise is taken around the level: what is added to a high one has lost its last digits.
    """
    if unit is None or unit.level is None:
        return dict(told), {}
    return head.shifted(ops, told, unit.level), {name: told[name] for name in head.located}


def make(model: Model, targets: int) -> Numbers:
    """The head that the configuration asks for, of those that predict numbers."""
    match model.head:
        case "point":
            return Point(model.units, targets, model.loss)
        case "gaussian":
            return Gaussian(model.units, targets)
        case "student_t":
            return StudentT(model.units, targets)
        case "quantiles":
            return Quantiles(model.units, targets, model.quantiles)
    raise ValueError(f"the head {model.head} does not predict numbers")
