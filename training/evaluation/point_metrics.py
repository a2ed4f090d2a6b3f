"""Errors of point forecasts, and the formulas that score distributions, in plain numpy and float64.

Owns the formulas. Knows nothing of models, series or baselines.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onward.model.distribution import log_beta, student_t_cdf

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def points(forecast: Array, actual: Array, scale: Array | None) -> dict[str, float]:
    """Returns MAE and RMSE in the data's units, MASE if a scale is given, and sMAPE, which lies from 0 to 2.

    forecast, actual, scale: (steps,). MASE is the mean absolute scaled error (Hyndman and Koehler 2006, equation 5).
    sMAPE is the mean of 2 |y - f| / (|y| + |f|), where 0/0 counts as 0 (Makridakis et al. 2020, the M4 competition).
    """
    error = np.abs(actual - forecast)
    errors = {"mae": float(error.mean()), "rmse": float(np.sqrt((error**2).mean()))}
    if scale is not None:
        errors["mase"] = float((error / scale).mean())
    size = np.abs(actual) + np.abs(forecast)
    errors["smape"] = float((2 * np.divide(error, size, out=np.zeros_like(error), where=size > 0)).mean())
    return errors


def naive_scale(train: Array, period: int | None) -> Array:
    """Returns (targets,) the mean absolute error of the naive forecast within the training part, the scale of MASE.

    train: (time, targets). The naive forecast is the value one period before, or the last value where there is no
    period (Hyndman and Koehler 2006; Hyndman and Athanasopoulos 2021, section 5.8). Missing values are left out. The
    scale is NaN if no value remains, or if the training part is not longer than the period.
    """
    lag = period or 1
    if len(train) <= lag:
        return np.full(train.shape[1], np.nan)
    errors = np.abs(train[lag:] - train[:-lag])
    present = ~np.isnan(errors)
    total = np.where(present, errors, 0.0).sum(axis=0)
    scale = np.full(train.shape[1], np.nan)
    np.divide(total, present.sum(axis=0), out=scale, where=present.any(axis=0))
    return scale


def quantile_loss(quantile: Array, actual: Array, level: float) -> Array:
    """Returns (steps,) the pinball loss of a single quantile (Koenker and Bassett 1978)."""
    error = actual - quantile
    return np.maximum(level * error, (level - 1) * error)


def weighted_quantile_loss(quantiles: Mapping[float, Array], actual: Array) -> float | None:
    """Returns twice the quantile loss, summed over time and divided by the sum of |actual|, as the mean over levels.

    The source is Salinas et al. 2020 (DeepAR), section 4.2. Returns None if all actual values are 0.
    """
    weight = float(np.abs(actual).sum())
    if not weight:
        return None
    losses = [2 * float(quantile_loss(quantile, actual, level).sum()) for level, quantile in quantiles.items()]
    return float(np.mean(losses)) / weight


def crps_quantiles(quantiles: Mapping[float, Array], actual: Array) -> Array:
    """Returns the CRPS as twice the mean quantile loss over evenly spread levels.

    The source is Gneiting and Ranjan 2011, equation 8.
    """
    losses = [quantile_loss(quantile, actual, level) for level, quantile in quantiles.items()]
    return np.asarray(2 * np.mean(losses, axis=0), np.float64)


def crps_normal(mean: Array, std: Array, actual: Array) -> Array:
    """Returns the CRPS of a normal distribution in closed form (Gneiting and Raftery 2007, equation 21, negated)."""
    z = (actual - mean) / std
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return np.asarray(std * (z * _erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi)), np.float64)


def crps_student_t(mean: Array, scale: Array, df: Array, actual: Array) -> Array:
    """Returns the CRPS of Student's t distribution with location and scale in closed form, for df above 1.

    The source is Jordan et al. 2019, appendix A.
    """
    z = (actual - mean) / scale
    log_density = -log_beta(0.5, df / 2) - 0.5 * np.log(df) - 0.5 * (df + 1) * np.log1p(z * z / df)
    spread = 2 * np.sqrt(df) / (df - 1) * np.exp(log_beta(0.5, df - 0.5) - 2 * log_beta(0.5, df / 2))
    return scale * (z * (2 * student_t_cdf(z, df) - 1) + 2 * np.exp(log_density) * (df + z * z) / (df - 1) - spread)
