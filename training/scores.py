"""How good forecasts are: errors of points, scores of distributions. Plain numpy, float64.

Owns the formulas. Knows nothing of models, series or baselines.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])
_lgamma = np.vectorize(math.lgamma, otypes=[np.float64])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
"""Of Gauss and Legendre, on [-1, 1]."""
_BLOCK = 4096
"""Numbers integrated at once: bounded memory for any length of series."""


def points(forecast: Array, actual: Array, scale: Array | None) -> dict[str, float]:
    """MAE and RMSE in the data's units; MASE, where there is a scale; sMAPE as a share, from 0 to 2.

    forecast, actual, scale: (steps,). MASE: mean absolute scaled error (Hyndman and Koehler 2006, equation 5).
    sMAPE: the mean of 2 |y - f| / (|y| + |f|), where 0/0 is no error (Makridakis et al. 2020, the M4 competition).
    """
    error = np.abs(actual - forecast)
    told = {"mae": float(error.mean()), "rmse": float(np.sqrt((error**2).mean()))}
    if scale is not None:
        told["mase"] = float((error / scale).mean())
    size = np.abs(actual) + np.abs(forecast)
    told["smape"] = float((2 * np.divide(error, size, out=np.zeros_like(error), where=size > 0)).mean())
    return told


def naive_scale(train: Array, period: int | None) -> Array:
    """(targets,) the mean absolute error of the naive forecast within the training part, by which MASE is scaled.

    train: (time, targets). The naive forecast is the value one period before, or the last value where there is no
    period (Hyndman and Koehler 2006; Hyndman and Athanasopoulos 2021, section 5.8). What is missing is left out; NaN
    where nothing is left, or the part is too short.
    """
    lag = period or 1
    if len(train) <= lag:
        return np.full(train.shape[1], np.nan)
    errors = np.abs(train[lag:] - train[:-lag])
    there = ~np.isnan(errors)
    counted = np.where(there, errors, 0.0).sum(axis=0)
    scale = np.full(train.shape[1], np.nan)
    np.divide(counted, there.sum(axis=0), out=scale, where=there.any(axis=0))
    return scale


def quantile_loss(quantile: Array, actual: Array, level: float) -> Array:
    """The pinball loss of one quantile (Koenker and Bassett 1978)."""
    error = actual - quantile
    return np.maximum(level * error, (level - 1) * error)


def weighted_quantile_loss(quantiles: Mapping[float, Array], actual: Array) -> float | None:
    """Twice the quantile loss, summed over time and weighted by the sum of |actual|; the mean over the levels.

    Salinas et al. 2020 (DeepAR), section 4.2. None where all actual values are 0.
    """
    weight = float(np.abs(actual).sum())
    if not weight:
        return None
    losses = [2 * float(quantile_loss(quantile, actual, level).sum()) for level, quantile in quantiles.items()]
    return float(np.mean(losses)) / weight


def crps_quantiles(quantiles: Mapping[float, Array], actual: Array) -> Array:
    """The CRPS as twice the mean quantile loss over evenly spread levels (Gneiting and Ranjan 2011, equation 8)."""
    losses = [quantile_loss(quantile, actual, level) for level, quantile in quantiles.items()]
    return np.asarray(2 * np.mean(losses, axis=0), np.float64)


def crps_normal(mean: Array, std: Array, actual: Array) -> Array:
    """The CRPS of a normal distribution in closed form (Gneiting and Raftery 2007, equation 21, negated)."""
    z = (actual - mean) / std
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return np.asarray(std * (z * _erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi)), np.float64)


def crps_student_t(mean: Array, scale: Array, df: Array, actual: Array) -> Array:
    """The CRPS of Student's t with location and scale in closed form, for df above 1 (Jordan et al. 2019, app. A)."""
    z = (actual - mean) / scale
    log_density = _log_half_beta(df) - 0.5 * np.log(df) - 0.5 * (df + 1) * np.log1p(z * z / df)
    spread = 2 * np.sqrt(df) / (df - 1) * np.exp(_log_beta(0.5, df - 0.5) - 2 * _log_beta(0.5, df / 2))
    return scale * (z * (2 * student_t_cdf(z, df) - 1) + 2 * np.exp(log_density) * (df + z * z) / (df - 1) - spread)


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
    return np.asarray(0.5 + np.sign(x) * np.exp(_log_half_beta(df)) * total.reshape(x.shape) * end / 2, np.float64)


def student_t_quantile(level: float, df: Array) -> Array:
    """Where the distribution function of Student's t is `level`: bisection in u = atan(x / sqrt(df))."""
    each, places = np.unique(df, return_inverse=True)
    low, high = np.full(each.shape, -math.pi / 2), np.full(each.shape, math.pi / 2)
    for _ in range(60):
        middle = (low + high) / 2
        below = student_t_cdf(np.sqrt(each) * np.tan(middle), each) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((np.sqrt(each) * np.tan((low + high) / 2))[places].reshape(df.shape), np.float64)


def _log_beta(a: float, b: Array) -> Array:
    return np.asarray(math.lgamma(a) + _lgamma(b) - _lgamma(a + b), np.float64)


def _log_half_beta(df: Array) -> Array:
    """-log B(1/2, df/2), the normaliser of Student's t."""
    return -_log_beta(0.5, df / 2)
