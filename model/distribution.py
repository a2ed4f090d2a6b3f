"""What a head's outputs say as a distribution of each target: quantiles, means and draws, in numpy.

Owns the reading of the outputs of heads that predict numbers, and the functions of Student's t. Knows nothing of
sessions or of training. What the head `quantiles` says at a few levels is a whole distribution by straight lines
between them and exponential tails beyond (Park et al. 2022, "Learning quantile functions without quantile crossing for
distribution-free time series forecasting").
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.manifest import Head
from model.runner import Outputs

Array = NDArray[np.float64]

_NEEDED = {"gaussian": {"mean", "std"}, "student_t": {"mean", "scale", "df"}, "quantiles": {"quantiles"}}
_LEAST = 2.0**-54
"""Stands for a uniform draw of 0, where a tail has no end."""

_lgamma = np.vectorize(math.lgamma, otypes=[np.float64])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
"""Of Gauss and Legendre, on [-1, 1]."""
_BLOCK = 4096
"""Numbers integrated at once: bounded memory for any length of series."""


def known(head: Head) -> bool:
    """Whether the outputs say a distribution of numbers: not those of points, of categories, or of one quantile."""
    needed = _NEEDED.get(head.kind)
    return needed is not None and needed <= set(head.outputs) and (head.kind != "quantiles" or len(head.levels) > 1)


def quantile(head: Head, outputs: Outputs, levels: Sequence[float]) -> Array:
    """(..., targets, levels) of outputs (...). Raises ValueError where nothing says them."""
    told = _told(head, outputs)
    match head.kind:
        case "gaussian":
            normal = np.array([NormalDist().inv_cdf(level) for level in levels])
            return np.asarray(told["mean"][..., None] + told["std"][..., None] * normal, np.float64)
        case "student_t":
            t = student_t_quantile(levels, told["df"])
            return told["mean"][..., None] + told["scale"][..., None] * t
        case "quantiles":
            return np.asarray(told["quantiles"] @ _weights(head.levels, levels).T, np.float64)
    raise _nothing(head)


def mean(head: Head, outputs: Outputs) -> Array:
    """(..., targets) of outputs (...). Of quantiles the integral of lines and tails over all levels.

    Raises ValueError where nothing says it.
    """
    told = _told(head, outputs)
    if head.kind != "quantiles":
        return told["mean"]
    at = np.asarray(head.levels)
    share = np.zeros(len(at))  # of each quantile: a trapezoid to either side
    share[:-1] += np.diff(at) / 2
    share[1:] += np.diff(at) / 2
    low, high = at[0], 1 - at[-1]  # over a tail ln(u / tau) has the mean -1
    left, right = low / math.log(at[1] / at[0]), high / math.log((1 - at[-2]) / (1 - at[-1]))
    share[:2] += low + left, -left
    share[-2:] += -right, high + right
    return np.asarray(told["quantiles"] @ share, np.float64)


def draw(head: Head, outputs: Outputs, rng: np.random.Generator, temperature: float = 1.0) -> Array:
    """(..., targets) one draw of each target of outputs (...); `temperature` scales its distance from the centre.

    The centre is what a rollout without draws feeds back. Raises ValueError where there is no distribution.
    """
    told = _told(head, outputs)
    centre = outputs[head.outputs[0]].astype(np.float64)
    match head.kind:
        case "gaussian":
            drawn = told["mean"] + told["std"] * rng.standard_normal(centre.shape)
        case "student_t":
            drawn = told["mean"] + told["scale"] * rng.standard_t(told["df"], centre.shape)
        case _:
            weights = _weights(head.levels, np.maximum(rng.random(centre.shape), _LEAST))
            drawn = (told["quantiles"] * weights).sum(axis=-1)
    return np.asarray(centre + temperature * (drawn - centre), np.float64)


def _told(head: Head, outputs: Outputs) -> dict[str, Array]:
    if head.kind not in _NEEDED:
        raise _nothing(head)
    return {name: outputs[name].astype(np.float64) for name in head.outputs}


def _nothing(head: Head) -> ValueError:
    return ValueError(f"the head {head.kind} says no distribution of numbers")


def _weights(at: Sequence[float], levels: ArrayLike) -> Array:
    """(..., len(at)) what each quantile at the levels `at` counts at each of `levels` (...).

    Below tau_1 the quantile is q_1 + (q_2 - q_1) ln(u / tau_1) / ln(tau_2 / tau_1), and above mirrored: linear in what
    is known, as a straight line is.
    """
    u, tau = np.asarray(levels, np.float64), np.asarray(at, np.float64)
    weights = np.stack([np.interp(u, tau, one) for one in np.eye(len(tau))], axis=-1)
    if len(tau) > 1:
        below = np.log(np.minimum(u / tau[0], 1)) / np.log(tau[1] / tau[0])
        above = np.log(np.minimum((1 - u) / (1 - tau[-1]), 1)) / np.log((1 - tau[-2]) / (1 - tau[-1]))
        weights[..., 0] -= below
        weights[..., 1] += below
        weights[..., -1] -= above
        weights[..., -2] += above
    return weights


def student_t_cdf(x: ArrayLike, df: ArrayLike) -> Array:
    """The distribution function of Student's t.

    With x = sqrt(df) tan(u) the density becomes cos(u)^(df - 1) / B(1/2, df/2), smooth on a bounded interval, which
    Gauss and Legendre's 64 nodes integrate from 0 to far beyond single precision.
    """
    x, df = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(df, np.float64))
    end = np.minimum(np.arctan(np.abs(x) / np.sqrt(df)), 9 / np.sqrt(df))  # beyond, less than exp(-40) is left
    total, ends, dfs = np.empty(x.size), end.reshape(-1, 1), df.reshape(-1, 1)
    for start in range(0, x.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        total[block] = np.cos(ends[block] * (_NODES + 1) / 2) ** (dfs[block] - 1) @ _WEIGHTS
    return np.asarray(0.5 + np.sign(x) * np.exp(-log_beta(0.5, df / 2)) * total.reshape(x.shape) * end / 2, np.float64)


def student_t_quantile(levels: ArrayLike, df: Array) -> Array:
    """(*df, *levels) where the distribution function of Student's t is a level: bisection in u = atan(x / sqrt(df))."""
    at = np.asarray(levels, np.float64)
    each, places = np.unique(df, return_inverse=True)
    wide = each.reshape(-1, *[1] * at.ndim)
    low, high = (np.full((len(each), *at.shape), end) for end in (-math.pi / 2, math.pi / 2))
    for _ in range(60):
        middle = (low + high) / 2
        below = student_t_cdf(np.sqrt(wide) * np.tan(middle), wide) < at
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    found = np.sqrt(wide) * np.tan((low + high) / 2)
    return np.asarray(found[places.reshape(-1)].reshape(*df.shape, *at.shape), np.float64)


def log_beta(a: float, b: Array) -> Array:
    """The logarithm of B(a, b)."""
    return np.asarray(math.lgamma(a) + _lgamma(b) - _lgamma(a + b), np.float64)
