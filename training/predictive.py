"""How a head's distribution is held to what happened: quantiles at many levels, coverage and CRPS, in numpy.

Owns which levels are looked at, and which score is a head's. Knows nothing of torch or of series.
"""

import numpy as np
from numpy.typing import NDArray

from model import distribution
from model.manifest import Head
from training import scores
from training.scores import Array

DECILES = tuple(tenth / 10 for tenth in range(1, 10))
LEVELS = (0.05, *DECILES, 0.95)
"""At which a distribution in closed form is held to what happened; a head of quantiles has levels of its own."""

CENTRAL = (0.1, 0.9)
"""The ends of the central 80% interval."""


def centre(head: Head, outputs: NDArray[np.void]) -> Array:
    """(steps, targets) the output that a rollout feeds back."""
    return outputs[head.outputs[0]].astype(np.float64)


def quantiles(head: Head, outputs: NDArray[np.void]) -> dict[float, Array]:
    """By level, each (steps, targets); empty for a head without a distribution."""
    if not (head.levels or distribution.known(head)):
        return {}
    levels = head.levels or LEVELS
    found = distribution.quantile(head, outputs, levels)
    return {level: found[..., place] for place, level in enumerate(levels)}


def crps(head: Head, outputs: NDArray[np.void], actual: Array) -> Array:
    """(steps, targets) the CRPS: in closed form, or by the head's own quantiles. Not for points: theirs is the MAE."""
    told = {name: outputs[name].astype(np.float64) for name in head.outputs}
    if head.kind == "gaussian":
        return scores.crps_normal(told["mean"], told["std"], actual)
    if head.kind == "student_t":
        return scores.crps_student_t(told["mean"], told["scale"], told["df"], actual)
    return scores.crps_quantiles(quantiles(head, outputs), actual)


def judge(levels: dict[float, Array], crps_of: Array, actual: Array) -> tuple[dict[str, float], dict[str, float]]:
    """Of one target: its scores, and its reliability: by level, the share of steps at or below that quantile.

    levels: each (steps,); crps_of, actual: (steps,). The coverage of the central 80% is the share of steps within it,
    where the levels have its ends. Reliability as in Gneiting, Balabdaoui and Raftery 2007.
    """
    told = {"crps": float(crps_of.mean())}
    loss = scores.weighted_quantile_loss(
        {level: levels[level] for level in DECILES} if _closed(levels) else levels, actual
    )
    if loss is not None:
        told["weighted_quantile_loss"] = loss
    if all(level in levels for level in CENTRAL):
        low, high = (levels[level] for level in CENTRAL)
        told["coverage_80"] = float(((low <= actual) & (actual <= high)).mean())
    return told, {f"{level:g}": float((actual <= quantile).mean()) for level, quantile in levels.items()}


def _closed(levels: dict[float, Array]) -> bool:
    return tuple(levels) == LEVELS
