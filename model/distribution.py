"""Predictive distributions of the targets, from a head's outputs: quantiles, means and random draws, in numpy.

Owns the interpretation of the outputs of heads that predict numbers, and the functions of Student's t. Knows nothing of
sessions or of training. A distribution of a transformed target is that of the head in transformed units, mapped to the
data's units: quantiles and draws by the inverse transform. The quantiles of the head `quantiles` are completed to a
distribution by straight lines between them and exponential tails beyond (Park et al. 2022, "Learning quantile functions
without quantile crossing for distribution-free time series forecasting").
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onward.model import transforms
from onward.model.manifest import Head
from onward.model.runner import Outputs

Array = NDArray[np.float64]
Named = Mapping[str, NDArray[Any]] | Outputs
"""Arrays of a prediction by output."""

_REQUIRED_OUTPUTS = {"gaussian": {"mean", "std"}, "student_t": {"mean", "scale", "df"}, "quantiles": {"quantiles"}}
_REQUIRED_OF_TRANSFORMED = {
    "gaussian": {"mean", "location", "scale"},
    "student_t": {"median", "location", "scale", "df"},
    "quantiles": {"quantiles"},
}
_SMALLEST_DRAW = 2.0**-54
"""Replaces a uniform draw of 0, at which an exponential tail would be infinite."""

_lgamma = np.vectorize(math.lgamma, otypes=[np.float64])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
"""Nodes and weights of the Gauss-Legendre quadrature on [-1, 1]."""
_UNIT_NODES = (_NODES + 1) / 2
"""The nodes on [0, 1]."""
_SMALLEST_ANGLE = float(np.finfo(np.float64).tiny)
"""Replaces an angle of 0, which stands for an infinite x."""
_MAX_NEWTON_STEPS, _CONVERGED = 60, 1e-9
"""Newton's method: the most steps, and the step that ends it (the next would be about its square)."""
_BLOCK = 4096
"""The number of integrals evaluated at once, so that memory is bounded for any length of series."""


def has_distribution(head: Head) -> bool:
    """True if the outputs describe a distribution of numbers; not points, categories, or a single quantile."""
    required = (_REQUIRED_OF_TRANSFORMED if head.transforms else _REQUIRED_OUTPUTS).get(head.kind)
    return required is not None and required <= set(head.outputs) and (head.kind != "quantiles" or len(head.levels) > 1)


def quantile(head: Head, outputs: Outputs, levels: Sequence[float]) -> Array:
    """Returns quantiles (..., targets, levels) of outputs (...). Raises ValueError if the head has no distribution."""
    if head.kind == "quantiles":
        transformed = _transformed_quantiles(head, outputs) @ _quantile_weights(head.levels, levels).T
    else:
        centre, scale = (outputs[name].astype(np.float64)[..., None] for name in location_and_scale(head))
        if head.kind == "gaussian":
            transformed = centre + scale * np.array([NormalDist().inv_cdf(level) for level in levels])
        else:
            transformed = centre + scale * student_t_quantile(levels, outputs["df"].astype(np.float64))
    return to_data_units(head, transformed, axis=-2)


def mean(head: Head, outputs: Outputs) -> Array:
    """Returns means (..., targets) of outputs (...); for quantiles the integral of lines and tails over all levels.

    The tails of `student_t` and `quantiles` have no finite mean under a logarithm: of transformed targets the median is
    returned. Raises ValueError if the head has no distribution.
    """
    if head.kind not in _REQUIRED_OUTPUTS:
        raise _no_distribution(head)
    first = outputs[head.outputs[0]].astype(np.float64)
    if head.kind != "quantiles":
        return first
    at = np.asarray(head.levels)
    weights = np.zeros(len(at))  # of each quantile: a trapezoid to either side
    weights[:-1] += np.diff(at) / 2
    weights[1:] += np.diff(at) / 2
    low, high = at[0], 1 - at[-1]  # the mean of ln(u / tau) over a tail is -1
    left, right = low / math.log(at[1] / at[0]), high / math.log((1 - at[-2]) / (1 - at[-1]))
    weights[:2] += low + left, -left
    weights[-2:] += -right, high + right
    means = np.asarray(outputs["quantiles"].astype(np.float64) @ weights, np.float64)
    return np.where(has_mean(head), means, first)


def has_mean(head: Head) -> NDArray[np.bool_]:
    """Returns for each target whether its distribution has a finite mean; otherwise `mean` returns the median."""
    transforms_of = head.transforms or (None,) * len(head.targets)
    return np.array([head.kind == "gaussian" or transform is None for transform in transforms_of], np.bool_)


def draw(head: Head, outputs: Outputs, rng: np.random.Generator, temperature: float = 1.0) -> Array:
    """Returns one draw (..., targets) per target of outputs (...); `temperature` scales its distance from the centre.

    The centre is the value that a rollout without draws feeds back; of a transformed target it is the median. Raises
    ValueError if the head has no distribution.
    """
    centre = location(head, outputs)
    match head.kind:
        case "gaussian":
            deviation = outputs[location_and_scale(head)[1]] * rng.standard_normal(centre.shape)
        case "student_t":
            deviation = outputs["scale"] * rng.standard_t(outputs["df"].astype(np.float64), centre.shape)
        case "quantiles":
            weights = _quantile_weights(head.levels, np.maximum(rng.random(centre.shape), _SMALLEST_DRAW))
            deviation = (_transformed_quantiles(head, outputs) * weights).sum(axis=-1) - centre
        case _:
            raise _no_distribution(head)
    return to_data_units(head, np.asarray(centre + temperature * deviation, np.float64))


def location_and_scale(head: Head) -> tuple[str, str]:
    """Returns the outputs with the location and the scale of a distribution in transformed units.

    Raises ValueError if the head has none.
    """
    if head.kind not in ("gaussian", "student_t"):
        raise _no_distribution(head)
    if head.transforms:
        return "location", "scale"
    return "mean", "std" if head.kind == "gaussian" else "scale"


def location(head: Head, outputs: Named) -> Array:
    """Returns the centre (..., targets) of predictions of numbers in transformed units."""
    if head.transforms and "location" in head.outputs:
        return outputs["location"].astype(np.float64)
    return to_transformed_units(head, outputs[head.outputs[0]].astype(np.float64))


def to_transformed_units(head: Head, values: Array, *, axis: int = -1) -> Array:
    """Returns the transforms of values of the targets, which are on that axis."""
    return _by_target(transforms.forward, head, values, axis)


def to_data_units(head: Head, values: Array, *, axis: int = -1) -> Array:
    """Returns the values of the targets, on that axis, whose transforms are `values`."""
    return _by_target(transforms.inverse, head, values, axis)


def _by_target(function: Callable[..., Array], head: Head, values: Array, axis: int) -> Array:
    if not head.transforms:
        return values
    if axis == -1:  # at less cost
        return function(transforms.NUMPY, head.transforms, values)
    return np.moveaxis(function(transforms.NUMPY, head.transforms, np.moveaxis(values, axis, -1)), -1, axis)


def _transformed_quantiles(head: Head, outputs: Named) -> Array:
    return to_transformed_units(head, outputs["quantiles"].astype(np.float64), axis=-2)


def _no_distribution(head: Head) -> ValueError:
    return ValueError(f"the head {head.kind} has no distribution of numbers")


def _quantile_weights(at: Sequence[float], levels: ArrayLike) -> Array:
    """Returns the weights (..., len(at)) of the quantiles at the levels `at` in the quantile at each of `levels` (...).

    Below tau_1 the quantile is q_1 + (q_2 - q_1) ln(u / tau_1) / ln(tau_2 / tau_1), and the upper tail mirrors it: like
    a straight line between two quantiles, both are linear in the quantiles.
    """
    u, tau = np.asarray(levels, np.float64), np.asarray(at, np.float64)
    weights = np.stack([np.interp(u, tau, unit) for unit in np.eye(len(tau))], axis=-1)
    if len(tau) > 1:
        below = np.log(np.minimum(u / tau[0], 1)) / np.log(tau[1] / tau[0])
        above = np.log(np.minimum((1 - u) / (1 - tau[-1]), 1)) / np.log((1 - tau[-2]) / (1 - tau[-1]))
        weights[..., 0] -= below
        weights[..., 1] += below
        weights[..., -1] -= above
        weights[..., -2] += above
    return weights


def student_t_cdf(x: ArrayLike, df: ArrayLike) -> Array:
    """Returns the distribution function of Student's t, accurate to the last few digits of the nearer tail."""
    x, df = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(df, np.float64))
    whole, _ = _log_tail(np.asarray(math.pi / 2), df)
    tail = np.exp(_log_tail(np.maximum(np.arctan2(np.sqrt(df), np.abs(x)), _SMALLEST_ANGLE), df)[0] - whole) / 2
    return np.asarray(np.where(x < 0, tail, 1 - tail), np.float64)


def student_t_quantile(levels: ArrayLike, df: Array) -> Array:
    """Returns quantiles (*df, *levels) of Student's t; each level lies above 0 and below 1."""
    at = np.asarray(levels, np.float64)
    distinct, indices = np.unique(df, return_inverse=True)
    solve = _cached_quantiles if distinct.size * at.size <= _BLOCK else _solve_quantiles
    return solve(distinct.tobytes(), at.tobytes())[indices.reshape(-1)].reshape((*df.shape, *at.shape))


def _solve_quantiles(dfs: bytes, levels: bytes) -> Array:
    """Returns quantiles (dfs, levels), by the nearer tail and its mirror image: 1 - level is exact above a half."""
    df, at = np.frombuffer(dfs)[:, np.newaxis], np.frombuffer(levels)
    nearer, indices = np.unique(np.minimum(at, 1 - at), return_inverse=True)
    tail = np.sqrt(df) / np.tan(_end_of_tail(*np.broadcast_arrays(nearer, df)))
    return np.asarray((np.sign(at - 0.5) * tail[:, indices.reshape(-1)]), np.float64)


_cached_quantiles = lru_cache(maxsize=64)(_solve_quantiles)
"""Cached because degrees of freedom are mostly constants of a model, needed again by every forecast."""


def _end_of_tail(share: Array, df: Array) -> Array:
    """Returns the w at which the integral of `_log_tail` is `share`, at most a half, of twice its value at pi / 2.

    Newton's method solves for the logarithm of w: the logarithm of the integral is a nearly linear function of it far
    out, and bends one way only, so that the iterates approach from one side. Each number stops on its own, so that its
    result does not depend on the others in the array.
    """
    top = math.log(math.pi / 2)
    whole, slope = _log_tail(np.asarray(math.pi / 2), df)
    target = whole + np.log(2 * share)
    at = np.minimum(np.maximum((target + np.log(df)) / df, top + np.log(2 * share) * slope), top)
    left = np.ones(at.shape, np.bool_)
    for _ in range(_MAX_NEWTON_STEPS):
        reached, slope = _log_tail(np.exp(at[left]), df[left])
        step = (target[left] - reached) * slope
        at[left] = np.minimum(at[left] + step, top)
        left[left] = np.abs(step) > _CONVERGED
        if not left.any():
            break
    return np.exp(at)


def _log_tail(w: Array, df: Array) -> tuple[Array, Array]:
    """Returns the logarithm of the integral of sin(s)^(df - 1) over s from 0 to w, and the derivative of log(w) by it.

    With x = sqrt(df) / tan(w) the integral is the tail of Student's t beyond x, times B(1/2, df/2). With s = w exp(-r)
    it is w sin(w)^(df - 1) times the integral over r from 0 of exp((df - 1) log(sin(s) / sin(w)) - r), smooth and
    falling. Gauss-Legendre quadrature with 64 nodes covers it down to exp(-40), without loss of digits however far out.
    """
    w, df = np.broadcast_arrays(w, df)
    sine, over, narrow = np.sin(w), np.maximum(df - 1, 0), 9 / np.sqrt(df) / w
    with np.errstate(divide="ignore", invalid="ignore"):
        end = np.minimum.reduce([  # each bound suffices: by the first slope, the last slope, and a normal curve
            40 / np.minimum(df, 1 + (df - 1) * w / np.tan(w)),
            (40 + over * np.log(w / sine)) / np.minimum(df, 1 + over),
            np.where(narrow < 1, -np.log1p(-narrow), np.inf),
        ])  # fmt: skip
    total = np.empty(w.size)
    ends, ws, sines, powers = (values.reshape(-1, 1) for values in (end, w, sine, df - 1))
    for start in range(0, w.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        r = ends[block] * _UNIT_NODES
        total[block] = (
            np.exp(powers[block] * np.log(np.sin(ws[block] * np.exp(-r)) / sines[block]) - r) * _WEIGHTS
        ).sum(axis=1)
    integral = total.reshape(w.shape) * end / 2
    return (df - 1) * np.log(sine) + np.log(w) + np.log(integral), integral


def log_beta(a: float, b: Array) -> Array:
    """Returns the logarithm of the beta function B(a, b)."""
    return np.asarray(math.lgamma(a) + _lgamma(b) - _lgamma(a + b), np.float64)
