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

from model.manifest import Score
from training.config import Model
from training.formula import Ops, TorchOps

LOG_BOUND = 7.0
"""A deviation stays within exp(-7) and exp(7) of the target's own, so that no likelihood is infinite."""

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

_torch = TorchOps()


class Head(nn.Module):
    """`width` numbers of the readout for each target; `outputs` are what clients are told, the first is fed back."""

    outputs: ClassVar[tuple[str, ...]]
    width: int
    score: Score
    levels: tuple[float, ...] = ()

    def told(self, ops: Ops, said: Sequence[Any], mean: Any, std: Any, log_std: Any) -> dict[str, Any]:
        """In the data's units: `outputs`, and what else the surprise needs. said: `width` terms (..., targets).

        mean, std, log_std: (targets,) or (..., targets), the scaling of the targets.
        """
        raise NotImplementedError

    def surprise(self, ops: Ops, before: Mapping[str, Any], actual: Any, std: Any) -> Any:
        """(..., targets) the score of the actual values under what was told before them."""
        raise NotImplementedError

    def marginal(self, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
        """What is told before anything was read, (targets, ...): the target's own mean and deviation."""
        raise NotImplementedError

    def loss(self, said: Tensor, actual: Tensor) -> Tensor:
        """(..., targets) the surprise in scaled units. said: (..., targets, width), actual: (..., targets)."""
        zero, one = torch.zeros_like(actual), torch.ones_like(actual)
        told = self.told(_torch, said.unbind(-1), zero, one, zero)
        value = self.surprise(_torch, told, actual, one)
        assert isinstance(value, Tensor)
        return value


class Point(Head):
    """One number. mae: the conditional median, not led by outliers; mse: the mean; huber: between (delta 1)."""

    outputs = ("point",)
    width = 1

    def __init__(self, loss: str) -> None:
        super().__init__()
        self._loss = loss
        scores: dict[str, Score] = {
            "mae": "scaled_absolute_error",
            "mse": "scaled_squared_error",
            "huber": "scaled_huber_loss",
        }
        self.score = scores[loss]

    def told(self, ops: Ops, said: Sequence[Any], mean: Any, std: Any, log_std: Any) -> dict[str, Any]:
        del ops, log_std
        return {"point": said[0] * std + mean}

    def surprise(self, ops: Ops, before: Mapping[str, Any], actual: Any, std: Any) -> Any:
        error = ops.abs((actual - before["point"]) / std)
        if self._loss == "mae":
            return error
        if self._loss == "mse":
            return error * error
        near = ops.clip(error, 0.0, 1.0)  # Huber 1964: quadratic up to 1, linear beyond
        return 0.5 * near * near + (error - near)

    def marginal(self, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
        del std
        return {"point": mean}


class Gaussian(Head):
    """Mean and standard deviation; the surprise is the negative log-likelihood in nats."""

    outputs = ("mean", "std")
    width = 2
    score = "negative_log_likelihood"

    def told(self, ops: Ops, said: Sequence[Any], mean: Any, std: Any, log_std: Any) -> dict[str, Any]:
        log = ops.clip(said[1], -LOG_BOUND, LOG_BOUND) + log_std
        return {"mean": said[0] * std + mean, "std": ops.exp(log), "log_std": log}

    def surprise(self, ops: Ops, before: Mapping[str, Any], actual: Any, std: Any) -> Any:
        del ops, std
        error = (actual - before["mean"]) / before["std"]
        return 0.5 * error * error + before["log_std"] + HALF_LOG_TWO_PI

    def marginal(self, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
        return {"mean": mean, "std": std, "log_std": std.log()}


class StudentT(Head):
    """Location, scale and degrees of freedom, for data with outliers; the surprise is the negative log-likelihood.

    The degrees of freedom are learnt once for each target, not said anew at each step: their normaliser needs the log
    of the gamma function, which no graph has, and they describe the noise rather than the moment.
    """

    outputs = ("mean", "scale", "df")
    width = 2
    score = "negative_log_likelihood"

    def __init__(self, targets: int) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.full((targets,), 5.0))

    @property
    def df(self) -> Tensor:
        """(targets,) above 2, so that the variance is finite."""
        return 2.0 + softplus(self.free)

    def told(self, ops: Ops, said: Sequence[Any], mean: Any, std: Any, log_std: Any) -> dict[str, Any]:
        log = ops.clip(said[1], -LOG_BOUND, LOG_BOUND) + log_std
        df = said[0] * 0.0 + ops.constant("t_df", self.df)  # one for each step, as the other outputs are
        return {"mean": said[0] * std + mean, "scale": ops.exp(log), "df": df, "log_scale": log}

    def surprise(self, ops: Ops, before: Mapping[str, Any], actual: Any, std: Any) -> Any:
        """-log of the density of Student's t with location and scale."""
        del std
        df = self.df
        normaliser = torch.lgamma(df / 2) - torch.lgamma((df + 1) / 2) + 0.5 * torch.log(df * math.pi)
        error = (actual - before["mean"]) / before["scale"]
        tail = ops.log(error * error / ops.constant("t_df", df) + 1.0) * ops.constant("t_exponent", (df + 1) / 2)
        return tail + before["log_scale"] + ops.constant("t_normaliser", normaliser)

    def marginal(self, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
        return {"mean": mean, "scale": std, "df": self.df.detach(), "log_scale": std.log()}


class Quantiles(Head):
    """Quantiles that cannot cross: the median, and positive distances up and down from it.

    The surprise is the quantile loss, twice the mean over the levels in units of the scaling: it approaches the CRPS as
    levels are added (Gneiting and Ranjan 2011), and stands in for the likelihood, which quantiles do not have.
    """

    outputs = ("median", "quantiles")
    score = "scaled_quantile_loss"

    def __init__(self, levels: tuple[float, ...]) -> None:
        """levels: rising, with 0.5 among them."""
        super().__init__()
        self.levels, self.width, self._middle = levels, len(levels), levels.index(0.5)

    def told(self, ops: Ops, said: Sequence[Any], mean: Any, std: Any, log_std: Any) -> dict[str, Any]:
        del log_std
        places = [said[self._middle]]
        for number in said[self._middle + 1 :]:
            places.append(places[-1] + _positive(ops, number))
        for number in reversed(said[: self._middle]):
            places.insert(0, places[0] - _positive(ops, number))
        told = [place * std + mean for place in places]
        return {"median": told[self._middle], "quantiles": ops.stack(told)}

    def surprise(self, ops: Ops, before: Mapping[str, Any], actual: Any, std: Any) -> Any:
        losses = []
        for level, quantile in zip(self.levels, ops.unstack(before["quantiles"], self.width), strict=True):
            error = (actual - quantile) / std
            losses.append(ops.greater(error * level, error * (level - 1.0)))
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total * (2.0 / self.width)

    def marginal(self, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
        normal = torch.tensor([NormalDist().inv_cdf(level) for level in self.levels])
        return {"median": mean, "quantiles": mean[:, None] + std[:, None] * normal}


def _positive(ops: Ops, x: Any) -> Any:
    """exp(x) below 0, at least exp(-7); 1 + x above: smooth, positive, and exact in any batch."""
    return ops.exp(ops.clip(x, -LOG_BOUND, 0.0)) + ops.clip(x, 0.0, float(np.finfo(np.float32).max))


def make(model: Model, targets: int) -> Head:
    """The head that the configuration asks for."""
    match model.head:
        case "point":
            return Point(model.loss)
        case "gaussian":
            return Gaussian()
        case "student_t":
            return StudentT(targets)
        case "quantiles":
            return Quantiles(model.quantiles)
