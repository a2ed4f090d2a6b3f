"""Probabilistic metrics of predictive distributions: quantiles at many levels, coverage and CRPS, in numpy.

Owns the choice of quantile levels, and of the CRPS formula for each head. Knows nothing of torch or of series.
"""

import numpy as np
from numpy.typing import NDArray

from onward.model import distribution
from onward.model.manifest import Head
from onward.training.evaluation import point_metrics
from onward.training.evaluation.point_metrics import Array

DECILES = tuple(tenth / 10 for tenth in range(1, 10))
LEVELS = (0.05, *DECILES, 0.95)
"""The quantile levels at which a distribution in closed form is evaluated; a quantiles head has its own levels."""

EVEN_LEVELS = tuple((step + 0.5) / 200 for step in range(200))
"""The levels of the quantiles by which the CRPS of a transformed target is computed."""

CENTRAL = (0.1, 0.9)
"""The ends of the central 80% interval."""


def centre(head: Head, outputs: NDArray[np.void]) -> Array:
    """Returns (steps, targets) the point prediction: the output that a rollout feeds back."""
    return outputs[head.outputs[0]].astype(np.float64)


def quantiles(head: Head, outputs: NDArray[np.void]) -> dict[float, Array]:
    """Returns (steps, targets) quantiles by level; an empty dict for a head without a distribution."""
    if not (head.levels or distribution.has_distribution(head)):
        return {}
    levels = head.levels or LEVELS
    values = distribution.quantile(head, outputs, levels)
    return {level: values[..., index] for index, level in enumerate(levels)}


def crps(head: Head, outputs: NDArray[np.void], actual: Array) -> Array:
    """Returns (steps, targets) the CRPS, in closed form, by the head's own quantiles, or of transforms by many of them.

    The head must have a distribution: the CRPS of a point forecast is its absolute error.
    """
    if head.kind == "quantiles":
        return point_metrics.crps_quantiles(quantiles(head, outputs), actual)
    if head.transforms:
        values = distribution.quantile(head, outputs, EVEN_LEVELS)
        by_level = {level: values[..., index] for index, level in enumerate(EVEN_LEVELS)}
        return point_metrics.crps_quantiles(by_level, actual)
    parameters = {name: outputs[name].astype(np.float64) for name in head.outputs}
    if head.kind == "gaussian":
        return point_metrics.crps_normal(parameters["mean"], parameters["std"], actual)
    return point_metrics.crps_student_t(parameters["mean"], parameters["scale"], parameters["df"], actual)


def evaluate(
    quantiles_of: dict[float, Array], crps_of: Array, actual: Array
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the scores of a single target, and its reliability.

    The reliability is by level the share of steps at or below that quantile (Gneiting, Balabdaoui and Raftery 2007).

    quantiles_of: (steps,) quantiles by level; crps_of, actual: (steps,). coverage_80 is the share of steps within the
    central 80% interval, if the levels include its ends.
    """
    scored = {"crps": float(crps_of.mean())}
    closed_form = tuple(quantiles_of) == LEVELS
    averaged = {level: quantiles_of[level] for level in DECILES} if closed_form else quantiles_of
    loss = point_metrics.weighted_quantile_loss(averaged, actual)
    if loss is not None:
        scored["weighted_quantile_loss"] = loss
    if all(level in quantiles_of for level in CENTRAL):
        low, high = (quantiles_of[level] for level in CENTRAL)
        scored["coverage_80"] = float(((low <= actual) & (actual <= high)).mean())
    return scored, {f"{level:g}": float((actual <= quantile).mean()) for level, quantile in quantiles_of.items()}
