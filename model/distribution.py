"""What a head's outputs say as a distribution of each target: quantiles, means and draws, in numpy.

Owns the reading of the outputs of heads that predict numbers, and the functions of Student's t. Knows nothing of
sessions or of training. What the head `quantiles` says at a few levels is a whole distribution by straight lines
between them and exponential tails beyond (Park et al. 2022, "Learning quantile functions without quantile crossing for
distribution-free time series forecasting").
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onward.model.manifest import Head
from onward.model.runner import Outputs

Array = NDArray[np.float64]

_NEEDED = {"gaussian": {"mean", "std"}, "student_t": {"mean", "scale", "df"}, "quantiles": {"quantiles"}}
_LEAST = 2.0**-54
"""Stands for a uniform draw of 0, where a tail has no end."""

_lgamma = np.vectorize(math.lgamma, otypes=[np.float64])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
"""Of Gauss and Legendre, on [-1, 1]."""
_HALVES = (_NODES + 1) / 2
"""The same on [0, 1]."""
_NEAREST = float(np.finfo(np.float64).tiny)
"""Stands for an angle of 0, which is infinitely far out."""
_MOST_STEPS, _SETTLED = 60, 1e-9
"""Of Newton: a step so small has left nothing, as the next is about its square."""
_BLOCK = 4096
"""Numbers integrated at once: bounded memory for any length of series."""


def has_distribution(head: Head) -> bool:
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
    centre = outputs[head.outputs[0]].astype(np.float64)
    match head.kind:
        case "gaussian":
            away = outputs["std"] * rng.standard_normal(centre.shape)
        case "student_t":
            away = outputs["scale"] * rng.standard_t(outputs["df"].astype(np.float64), centre.shape)
        case "quantiles":
            weights = _weights(head.levels, np.maximum(rng.random(centre.shape), _LEAST))
            away = (outputs["quantiles"] * weights).sum(axis=-1) - centre
        case _:
            raise _nothing(head)
    return np.asarray(centre + temperature * away, np.float64)


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
    """The distribution function of Student's t, to the last few digits of the nearer tail."""
    x, df = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(df, np.float64))
    whole, _ = _log_tail(np.asarray(math.pi / 2), df)
    tail = np.exp(_log_tail(np.maximum(np.arctan2(np.sqrt(df), np.abs(x)), _NEAREST), df)[0] - whole) / 2
    return np.asarray(np.where(x < 0, tail, 1 - tail), np.float64)


def student_t_quantile(levels: ArrayLike, df: Array) -> Array:
    """(*df, *levels) where the distribution function of Student's t is a level, each above 0 and below 1."""
    at = np.asarray(levels, np.float64)
    each, places = np.unique(df, return_inverse=True)
    found = (_kept if each.size * at.size <= _BLOCK else _found)(each.tobytes(), at.tobytes())
    return found[places.reshape(-1)].reshape((*df.shape, *at.shape))


def _found(dfs: bytes, levels: bytes) -> Array:
    """(dfs, levels). The nearer tail is found, and mirrored: 1 - level is exact above a half."""
    df, at = np.frombuffer(dfs)[:, np.newaxis], np.frombuffer(levels)
    nearer, places = np.unique(np.minimum(at, 1 - at), return_inverse=True)
    tail = np.sqrt(df) / np.tan(_end_of_tail(*np.broadcast_arrays(nearer, df)))
    return np.asarray((np.sign(at - 0.5) * tail[:, places.reshape(-1)]), np.float64)


_kept = lru_cache(maxsize=64)(_found)
"""Degrees of freedom are mostly constants of a model, and asked for again with every forecast."""


def _end_of_tail(share: Array, df: Array) -> Array:
    """The w at which the integral of `_log_tail` has this share, at most a half, of twice what it has at pi / 2.

    Newton's steps for its logarithm over that of w, of which it is nearly a straight line far out; as it bends one way
    only, they come from one side. Each number's steps end with itself, so that it is the same beside any others.
    """
    top = math.log(math.pi / 2)
    whole, slope = _log_tail(np.asarray(math.pi / 2), df)
    wanted = whole + np.log(2 * share)
    at = np.minimum(np.maximum((wanted + np.log(df)) / df, top + np.log(2 * share) * slope), top)
    left = np.ones(at.shape, np.bool_)
    for _ in range(_MOST_STEPS):
        reached, slope = _log_tail(np.exp(at[left]), df[left])
        step = (wanted[left] - reached) * slope
        at[left] = np.minimum(at[left] + step, top)
        left[left] = np.abs(step) > _SETTLED
        if not left.any():
            break
    return np.exp(at)


def _log_tail(w: Array, df: Array) -> tuple[Array, Array]:
    """The logarithm of the integral of sin(s)^(df - 1) over s from 0 to w, and what log(w) grows by as it grows by 1.

    With x = sqrt(df) / tan(w) it is the tail of Student's t beyond x, times B(1/2, df/2). With s = w exp(-r) it is
    w sin(w)^(df - 1) times the integral over r from 0 of exp((df - 1) log(sin(s) / sin(w)) - r), smooth and falling,
    which Gauss and Legendre's 64 nodes take until exp(-40) is left of it: with no digit lost, however far out.
    """
    w, df = np.broadcast_arrays(w, df)
    sine, over, narrow = np.sin(w), np.maximum(df - 1, 0), 9 / np.sqrt(df) / w
    with np.errstate(divide="ignore", invalid="ignore"):
        end = np.minimum.reduce([  # each is enough: what falls least is its first slope, its last, and a normal curve
            40 / np.minimum(df, 1 + (df - 1) * w / np.tan(w)),
            (40 + over * np.log(w / sine)) / np.minimum(df, 1 + over),
            np.where(narrow < 1, -np.log1p(-narrow), np.inf),
        ])  # fmt: skip
    total = np.empty(w.size)
    ends, ws, sines, powers = (one.reshape(-1, 1) for one in (end, w, sine, df - 1))
    for start in range(0, w.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        r = ends[block] * _HALVES
        total[block] = (
            np.exp(powers[block] * np.log(np.sin(ws[block] * np.exp(-r)) / sines[block]) - r) * _WEIGHTS
        ).sum(axis=1)
    integral = total.reshape(w.shape) * end / 2
    return (df - 1) * np.log(sine) + np.log(w) + np.log(integral), integral


def log_beta(a: float, b: Array) -> Array:
    """The logarithm of B(a, b)."""
    return np.asarray(math.lgamma(a) + _lgamma(b) - _lgamma(a + b), np.float64)
