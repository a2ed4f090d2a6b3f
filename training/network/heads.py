"""The heads: the distribution that a network predicts for the next input, and the score of the input that follows.

Each head is two formulas, written once for torch and for the graph: the prediction of the next input in the data's
units, and the surprise of an input under the prediction made before it. The training loss is that surprise in scaled
units, so that a session reports the quantity that the network was trained to minimise.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from onward.model import transforms
from onward.model.manifest import RANKED, Score
from onward.model.transforms import Transform, Transforms
from onward.training.config import Model
from onward.training.network.input_layer import TargetScale
from onward.training.network.ops import Ops, TorchOps

LOG_BOUND = 7.0
"""A predicted deviation stays within exp(-7) and exp(7) of the target's own, so that no likelihood is infinite."""

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

_torch = TorchOps()


class Head(nn.Module):
    """A readout of the hidden state, and the meaning of its values.

    A prediction is a dict of named values: `outputs`, which clients receive and of which the first is fed back, and
    whatever else the surprise needs.
    """

    outputs: tuple[str, ...]
    location_outputs: ClassVar[tuple[str, ...]] = ()
    """The outputs that lie on the target's own axis, and so move with its level."""
    score: Score
    levels: tuple[float, ...] = ()
    transforms: Transforms = ()
    """The transforms of the targets, if any of them has one."""

    def read_out(self, ops: Ops, hidden: Any) -> list[Any]:
        """Returns the readout's values for hidden (..., units): each (..., targets), or as wide as the head needs."""
        raise NotImplementedError

    def predict(self, ops: Ops, readouts: Sequence[Any], scale: TargetScale | None) -> dict[str, Any]:
        """Returns the prediction in the data's units, relative to the level or the offset that `scale` has."""
        raise NotImplementedError

    def in_data_units(self, ops: Ops, prediction: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an absolute prediction of transformed targets with its `outputs`, the first in the data's units."""
        raise NotImplementedError

    def in_transformed_units(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what `surprise` reads of a prediction by `in_data_units`."""
        raise NotImplementedError

    def surprise(self, ops: Ops, previous: Mapping[str, Any], current: Mapping[str, Any], actual: Any) -> Any:
        """Returns the score of the actual values, (..., targets).

        `previous` is the prediction made before them, `current` the one made after them.
        """
        raise NotImplementedError

    def marginal(self, scale: TargetScale | None) -> dict[str, Tensor]:
        """Returns the prediction before any input, without time and batch axes."""
        raise NotImplementedError

    def shift(self, ops: Ops, prediction: Mapping[str, Any], level: Any) -> dict[str, Any]:
        """Returns a prediction that is relative to a level as an absolute one."""
        return {
            name: ops.like(value, level) + level if name in self.location_outputs else value
            for name, value in prediction.items()
        }

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each prediction, (..., targets). targets: (..., targets), numbers in scaled units."""
        raise NotImplementedError


class NumberHead(Head):
    """A head of `width` readouts for each target. The loss is the surprise in scaled units.

    The formulas are those of the transformed targets, where targets are transformed. Then they are stored
    beside the outputs in the data's units, and the surprise is computed of them.
    """

    outputs_in_data_units: ClassVar[tuple[str, ...]]
    """The outputs of a prediction of transformed targets."""
    stored_names: ClassVar[dict[str, str]]
    """The names under which the values of such a prediction that are in transformed units are stored."""

    def __init__(self, units: int, targets: Sequence[Transform | None], width: int, channels: int) -> None:
        """Takes the transform of each target, or None.

        channels: 1, or the number of targets, each of which then has hidden states of its own.
        """
        super().__init__()
        self.width, self.channels = width, channels
        if any(targets):
            self.transforms, self.outputs = tuple(targets), self.outputs_in_data_units
        self.readout = nn.Linear(units, width * len(targets) // channels)
        nn.init.zeros_(self.readout.bias)

    def read_out(self, ops: Ops, hidden: Any) -> list[Any]:
        weight, bias = (
            ops.constant(f"readout_{name}", value)
            for name, value in (("weight", self.readout.weight), ("bias", self.readout.bias))
        )
        readouts = ops.linear(hidden, weight, bias)
        if self.channels > 1:  # (time, batch * channels, width) as (time, batch, width * channels)
            readouts = ops.rows(readouts, self.channels * self.width)
            columns = range(self.channels * self.width)
            readouts = ops.columns(readouts, [i for part in range(self.width) for i in columns[part :: self.width]])
        return ops.split(readouts, self.width)

    def in_data_units(self, ops: Ops, prediction: Mapping[str, Any]) -> dict[str, Any]:
        parameters = {self.stored_names.get(name, name): value for name, value in prediction.items()}
        return parameters | self.back_transform(ops, prediction)

    def back_transform(self, ops: Ops, prediction: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs in the data's units of an absolute prediction in transformed units."""
        raise NotImplementedError

    def in_transformed_units(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        return {**prediction, **{name: prediction[stored] for name, stored in self.stored_names.items()}}

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        prediction = self.predict(_torch, self.read_out(_torch, hidden), TargetScale.identity(targets))
        value = self.surprise(_torch, prediction, prediction, targets)
        assert isinstance(value, Tensor)
        return value


class Point(NumberHead):
    """A number. mae: the conditional median, robust to outliers; mse: the mean; huber: between them (delta 1).

    Of a transformed target it is the inverse of that number: the median, with mse if the noise is symmetric in
    transformed units.
    """

    outputs = outputs_in_data_units = location_outputs = ("point",)
    stored_names: ClassVar = {"point": "location"}

    def __init__(self, units: int, targets: Sequence[Transform | None], loss: str, *, channels: int = 1) -> None:
        super().__init__(units, targets, 1, channels)
        self._loss = loss
        scores: dict[str, Score] = {
            "mae": "scaled_absolute_error",
            "mse": "scaled_squared_error",
            "huber": "scaled_huber_loss",
        }
        self.score = scores[loss]

    def predict(self, ops: Ops, readouts: Sequence[Any], scale: TargetScale | None) -> dict[str, Any]:
        assert scale is not None
        point, unit = ops.fuse_linear([readouts[0] * scale.std + scale.mean, readouts[0] * 0.0 + scale.std])
        return {"point": point, "unit": unit}

    def back_transform(self, ops: Ops, prediction: Mapping[str, Any]) -> dict[str, Any]:
        return {"point": transforms.inverse(ops, self.transforms, prediction["point"])}

    def surprise(self, ops: Ops, previous: Mapping[str, Any], current: Mapping[str, Any], actual: Any) -> Any:
        del current
        error = ops.abs(ops.single(actual - previous["point"]) / previous["unit"])
        if self._loss == "mae":
            return error
        if self._loss == "mse":
            return error * error
        near = ops.clip(error, 0.0, 1.0)  # Huber 1964: quadratic up to 1, linear beyond
        return 0.5 * near * near + (error - near)

    def marginal(self, scale: TargetScale | None) -> dict[str, Tensor]:
        assert scale is not None
        return {"point": scale.mean, "unit": scale.std}


class Gaussian(NumberHead):
    """Mean and standard deviation. The surprise is the negative log-likelihood in nats.

    Of a transformed target they are the location and the scale, and the mean is that of its values.
    """

    outputs, location_outputs = ("mean", "std"), ("mean",)
    outputs_in_data_units = ("mean", "location", "scale")
    stored_names: ClassVar = {"mean": "location", "std": "scale"}
    score = "negative_log_likelihood"

    def __init__(self, units: int, targets: Sequence[Transform | None], *, channels: int = 1) -> None:
        super().__init__(units, targets, 2, channels)

    def predict(self, ops: Ops, readouts: Sequence[Any], scale: TargetScale | None) -> dict[str, Any]:
        assert scale is not None
        mean, free = ops.fuse_linear([readouts[0] * scale.std + scale.mean, readouts[1]])
        log_std = ops.clip(free, -LOG_BOUND, LOG_BOUND) + scale.log_std
        return {"mean": mean, "std": ops.exp(log_std), "log_std": log_std}

    def back_transform(self, ops: Ops, prediction: Mapping[str, Any]) -> dict[str, Any]:
        return {"mean": transforms.mean(ops, self.transforms, prediction["mean"], prediction["std"])}

    def surprise(self, ops: Ops, previous: Mapping[str, Any], current: Mapping[str, Any], actual: Any) -> Any:
        del current
        error = ops.single(actual - previous["mean"]) / previous["std"]
        return 0.5 * error * error + previous["log_std"] + HALF_LOG_TWO_PI

    def marginal(self, scale: TargetScale | None) -> dict[str, Tensor]:
        assert scale is not None
        return {"mean": scale.mean, "std": scale.std, "log_std": scale.log_std}


class StudentT(NumberHead):
    """Location, scale and degrees of freedom, for data with outliers. The surprise is the negative log-likelihood.

    The degrees of freedom are one learnt parameter for each target, or for all channels, not a function of the hidden
    state: their normaliser needs the log-gamma function, which ONNX does not have, and they describe the noise rather
    than the step.

    Under a logarithm a variable with the tails of Student's t has no finite mean: of a transformed target the
    prediction is the median.
    """

    outputs, location_outputs = ("mean", "scale", "df"), ("mean",)
    outputs_in_data_units = ("median", "location", "scale", "df")
    stored_names: ClassVar = {"mean": "location"}
    score = "negative_log_likelihood"

    def __init__(self, units: int, targets: Sequence[Transform | None], *, channels: int = 1) -> None:
        super().__init__(units, targets, 2, channels)
        self.free = nn.Parameter(torch.full((len(targets) // channels,), 5.0))

    @property
    def df(self) -> Tensor:
        """The degrees of freedom (targets,), above 2 so that the variance is finite."""
        return 2.0 + softplus(self.free).repeat(self.channels)

    def predict(self, ops: Ops, readouts: Sequence[Any], scale: TargetScale | None) -> dict[str, Any]:
        assert scale is not None
        df = readouts[0] * 0.0 + ops.constant("t_df", self.df)  # broadcast to every step, as the other outputs are
        mean, free, df = ops.fuse_linear([readouts[0] * scale.std + scale.mean, readouts[1], df])
        log_scale = ops.clip(free, -LOG_BOUND, LOG_BOUND) + scale.log_std
        return {"mean": mean, "scale": ops.exp(log_scale), "df": df, "log_scale": log_scale}

    def back_transform(self, ops: Ops, prediction: Mapping[str, Any]) -> dict[str, Any]:
        return {"median": transforms.inverse(ops, self.transforms, prediction["mean"])}

    def surprise(self, ops: Ops, previous: Mapping[str, Any], current: Mapping[str, Any], actual: Any) -> Any:
        """Returns -log of the density of Student's t with location and scale."""
        del current
        df = self.df
        normaliser = torch.lgamma(df / 2) - torch.lgamma((df + 1) / 2) + 0.5 * torch.log(df * math.pi)
        error = ops.single(actual - previous["mean"]) / previous["scale"]
        tail = ops.log(error * error / ops.constant("t_df", df) + 1.0) * ops.constant("t_exponent", (df + 1) / 2)
        return tail + previous["log_scale"] + ops.constant("t_normaliser", normaliser)

    def marginal(self, scale: TargetScale | None) -> dict[str, Tensor]:
        assert scale is not None
        return {"mean": scale.mean, "scale": scale.std, "df": self.df.detach(), "log_scale": scale.log_std}


class Quantiles(NumberHead):
    """Quantiles that cannot cross: the median, and positive distances up and down from it.

    The surprise is the quantile loss, twice the mean over the levels in units of the scaling: it approaches the CRPS as
    levels are added (Gneiting and Ranjan 2011), and stands in for the likelihood, which quantiles do not have.
    """

    outputs = outputs_in_data_units = location_outputs = ("median", "quantiles")
    stored_names: ClassVar = {"quantiles": "transformed_quantiles"}
    score = "scaled_quantile_loss"

    def __init__(
        self, units: int, targets: Sequence[Transform | None], levels: tuple[float, ...], *, channels: int = 1
    ) -> None:
        """Takes levels in rising order, with 0.5 among them."""
        super().__init__(units, targets, len(levels), channels)
        self.levels, self._middle = levels, levels.index(0.5)

    def predict(self, ops: Ops, readouts: Sequence[Any], scale: TargetScale | None) -> dict[str, Any]:
        assert scale is not None
        median, unit, *distances = ops.fuse_linear(
            [
                readouts[self._middle],
                readouts[0] * 0.0 + scale.std,
                *readouts[: self._middle],
                *readouts[self._middle + 1 :],
            ]
        )
        quantiles = [median]
        if distances:
            distances = ops.split(_positive(ops, ops.join(distances)), len(distances))
        for distance in distances[self._middle :]:
            quantiles.append(quantiles[-1] + distance)
        for distance in reversed(distances[: self._middle]):
            quantiles.insert(0, quantiles[0] - distance)
        scaled = ops.stack(quantiles) * ops.stack([scale.std]) + ops.stack([scale.mean])
        return {"median": ops.element(scaled, self._middle), "quantiles": scaled, "unit": unit}

    def shift(self, ops: Ops, prediction: Mapping[str, Any], level: Any) -> dict[str, Any]:
        median, quantiles = (ops.like(prediction[name], level) for name in self.location_outputs)
        return {**prediction, "median": median + level, "quantiles": quantiles + ops.stack([level])}

    def back_transform(self, ops: Ops, prediction: Mapping[str, Any]) -> dict[str, Any]:
        quantiles = [ops.element(prediction["quantiles"], index) for index in range(self.width)]
        quantiles = ops.split(transforms.inverse(ops, self.transforms * self.width, ops.join(quantiles)), self.width)
        return {"median": quantiles[self._middle], "quantiles": ops.stack(quantiles)}

    def surprise(self, ops: Ops, previous: Mapping[str, Any], current: Mapping[str, Any], actual: Any) -> Any:
        del current
        error = ops.single(ops.stack([actual]) - previous["quantiles"]) / ops.stack([previous["unit"]])
        levels = torch.tensor(self.levels, device=self.readout.weight.device)
        over, under = ops.constant("levels", levels), ops.constant("levels_below", levels - 1.0)
        mean = torch.full_like(levels, 2.0 / self.width)
        return ops.weighted_sum(ops.greater(error * over, error * under), ops.constant("levels_mean", mean))

    def marginal(self, scale: TargetScale | None) -> dict[str, Tensor]:
        assert scale is not None
        normal = torch.tensor([NormalDist().inv_cdf(level) for level in self.levels])
        return {
            "median": scale.mean,
            "quantiles": scale.mean[:, None] + scale.std[:, None] * normal,
            "unit": scale.std,
        }


class SoftmaxHead(Head):
    """A softmax over categories or classes, with the scores query . weight[category] + bias[category].

    Clients receive the likeliest categories. The prediction holds the query and the softmax's normaliser: enough for
    the likelihood of any category, and small where there are 100,000 of them. Before any input, the query is that of a
    hidden state of zeros.
    """

    outputs = RANKED

    def __init__(self, model: Model, target: str, counts: Tensor, embedding: nn.Embedding | None = None) -> None:
        """Initialises the bias to the log share of each category in the training part, from its counts (categories,).

        With `embedding`, the target's, its matrix is the softmax's weight too (Press and Wolf 2017); a hidden state of
        another width is projected.
        """
        super().__init__()
        units, categories = model.units, len(counts)
        self.target, self.categories, self.top = target, categories, min(model.top, categories)
        self.label_smoothing = model.label_smoothing
        share = (counts.double() + 1) / (counts.double() + 1).sum()
        self.bias = nn.Parameter(share.log().float())
        self.tied = embedding
        width = embedding.embedding_dim if embedding is not None else units
        self.projection = nn.Linear(units, width) if width != units else None
        self.own = None if embedding is not None else nn.Parameter(torch.empty(categories, units))
        if self.own is not None:
            nn.init.xavier_uniform_(self.own)

    @property
    def weight(self) -> Tensor:
        """The softmax's matrix, (categories, width of the query)."""
        if self.own is not None:
            return self.own
        assert self.tied is not None
        return self.tied.weight[: self.categories]

    def query(self, ops: Ops, hidden: Any) -> Any:
        if self.projection is None:
            return hidden
        weight, bias = (
            ops.constant(f"projection_{name}", value)
            for name, value in (("weight", self.projection.weight), ("bias", self.projection.bias))
        )
        return ops.linear(hidden, weight, bias)

    def _matrix(self, ops: Ops) -> tuple[Any, Any]:
        shared = self.tied is not None and self.tied.num_embeddings == self.categories
        name = f"embedding_{self.target}" if shared else "choice_weight"  # a tied matrix is stored once in the graph
        return ops.constant(name, self.weight), ops.constant("choice_bias", self.bias)

    def read_out(self, ops: Ops, hidden: Any) -> list[Any]:
        query = self.query(ops, hidden)
        return [query, ops.linear(query, *self._matrix(ops))]

    def predict(self, ops: Ops, readouts: Sequence[Any], scale: TargetScale | None) -> dict[str, Any]:
        del scale
        query, logits = readouts
        normaliser = ops.log_sum_exp(logits)
        scores, top = ops.top_k(logits, self.top)
        return {"top": top, "log_probability": scores - normaliser, "query": query, "normaliser": normaliser}

    def marginal(self, scale: TargetScale | None) -> dict[str, Tensor]:
        del scale
        units = self.projection.in_features if self.projection is not None else self.weight.shape[1]
        zeros = torch.zeros(units, device=self.bias.device)
        return {
            name: value.detach() for name, value in self.predict(_torch, self.read_out(_torch, zeros), None).items()
        }

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        _, logits = self.read_out(_torch, hidden)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, -2),
            targets.long().flatten(),
            reduction="none",
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )
        return losses.view_as(targets)


class Categorical(SoftmaxHead):
    """The next category. The surprise is the negative log-likelihood in nats."""

    score = "negative_log_likelihood"

    noise_weights: Tensor
    """The unnormalised probability with which each category is drawn as a negative."""

    def __init__(self, model: Model, target: str, counts: Tensor, embedding: nn.Embedding | None = None) -> None:
        """Configures, with `negatives`, a sampled softmax as the loss during training.

        The loss is then over the true category and so many others, drawn with the square root of their share, each
        score corrected by the expected number of its draws (Bengio and Senecal 2008): the gradient approaches that of
        the full softmax as more are drawn. The true category's score is corrected in the same way; otherwise it would
        be overestimated by a factor that grows with the number of draws.
        """
        super().__init__(model, target, counts, embedding)
        self.negatives = model.negatives
        self.register_buffer("noise_weights", ((counts.double() + 1) ** 0.5).float(), persistent=False)

    def surprise(self, ops: Ops, previous: Mapping[str, Any], current: Mapping[str, Any], actual: Any) -> Any:
        del current
        weight, _ = self._matrix(ops)
        column = ops.constant("choice_bias_column", self.bias[:, None])
        indices = ops.category_index(actual, self.categories)
        score = ops.dot(previous["query"], ops.gather_rows(weight, indices)) + ops.gather_rows(column, indices)
        return previous["normaliser"] - score

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        if not (self.training and self.negatives):
            return super().loss(hidden, targets)
        negatives = torch.multinomial(self.noise_weights, self.negatives, replacement=True)
        log_expected = (self.noise_weights / self.noise_weights.sum() * self.negatives).log()
        query, true = self.query(_torch, hidden), targets.long()
        true_weight = self.weight[true.squeeze(-1)]
        true_score = (query * true_weight).sum(dim=-1, keepdim=True) + self.bias[true] - log_expected[true]
        scores = nn.functional.linear(query, self.weight[negatives], self.bias[negatives] - log_expected[negatives])
        nll: Tensor = torch.cat((true_score, scores), dim=-1).logsumexp(dim=-1, keepdim=True) - true_score
        return nll


class Label(SoftmaxHead):
    """The label of a step, or of the sequence so far.

    No input is predicted, so the surprise is not a likelihood but the Kullback-Leibler divergence of the prediction
    after the input from the one before it (Itti and Baldi 2009, "Bayesian surprise"), in nats.
    """

    score = "bayesian_surprise"

    def predict(self, ops: Ops, readouts: Sequence[Any], scale: TargetScale | None) -> dict[str, Any]:
        prediction = super().predict(ops, readouts, scale)
        return {**{name: prediction[name] for name in RANKED}, "belief": readouts[1] - prediction["normaliser"]}

    def surprise(self, ops: Ops, previous: Mapping[str, Any], current: Mapping[str, Any], actual: Any) -> Any:
        del actual
        belief = current["belief"]  # log-probabilities of all classes
        return ops.dot(ops.exp(belief), belief - previous["belief"])


def _positive(ops: Ops, x: Any) -> Any:
    """Returns exp(x) below 0, at least exp(-7), and 1 + x above: smooth, positive, and exact in any batch."""
    return ops.exp(ops.clip(x, -LOG_BOUND, 0.0)) + ops.clip(x, 0.0, float(np.finfo(np.float32).max))


NEAR = "near_"
"""The prefix of stored values that are relative to the level."""


def stored_prediction(ops: Ops, head: Head, prediction: Mapping[str, Any], scale: TargetScale | None) -> dict[str, Any]:
    """Returns the values of a prediction that a session stores: absolute, and the locations relative to a level too.

    The surprise is computed relative to the level, because a small difference added to a high level loses its last
    digits. In double precision it does not lose them, and the locations are absolute. Where targets are transformed,
    the values in the data's units are stored beside those in transformed units.
    """
    absolute, near = dict(prediction), dict[str, Any]()
    if scale is not None and scale.offset is not None:
        absolute = head.shift(ops, prediction, scale.offset)
    elif scale is not None and scale.level is not None:
        near = {f"{NEAR}{name}": prediction[name] for name in head.location_outputs}
        absolute = head.shift(ops, prediction, scale.level)
    return (head.in_data_units(ops, absolute) if head.transforms else absolute) | near


def surprise(
    ops: Ops, head: Head, stored: Mapping[str, Any], current: Mapping[str, Any], actual: Any, level: Any = None
) -> Any:
    """Returns the score of the actual values (..., targets), in transformed units, under a stored prediction.

    The prediction is read relative to the level where there is one. level: the level before each step. A likelihood of
    transformed values becomes that of the values: models are comparable whatever their transforms are.
    """
    near = {name.removeprefix(NEAR): value for name, value in stored.items() if name.startswith(NEAR)}
    previous = (head.in_transformed_units(stored) if head.transforms else dict(stored)) | near
    scores = head.surprise(ops, previous, current, actual if level is None else actual - level)
    if head.transforms and head.score == "negative_log_likelihood":
        scores = scores + transforms.log_derivative(ops, head.transforms, actual)
    return scores


def number_head(model: Model, targets: Sequence[Transform | None], *, channels: int = 1) -> NumberHead:
    """Returns the head for numbers that the configuration names. Raises ValueError for a head of categories.

    targets: the transform of each target. channels: see `NumberHead`.
    """
    match model.head:
        case "point":
            return Point(model.units, targets, model.loss, channels=channels)
        case "gaussian":
            return Gaussian(model.units, targets, channels=channels)
        case "student_t":
            return StudentT(model.units, targets, channels=channels)
        case "quantiles":
            return Quantiles(model.units, targets, model.quantiles, channels=channels)
    raise ValueError(f"the head {model.head} does not predict numbers")
