"""A session's surprise in short: how many inputs had one, their mean, and a mean that forgets."""

from collections.abc import Iterable

from onward.model.runner import Outputs, StepModel

_RECENT_WEIGHT = 0.1
"""Of the newest in the mean that forgets."""

SurpriseMeans = tuple[int, float, float]
"""How many, their mean, and the mean that forgets."""
NO_SURPRISES: SurpriseMeans = (0, 0.0, 0.0)


def surprises(model: StepModel, outputs: Outputs) -> list[float]:
    """(steps,) of outputs (steps,); empty where the model has none."""
    name = model.manifest.head.surprise
    return [] if name is None else outputs[name].tolist()


def update_means(before: SurpriseMeans, told: Iterable[float]) -> SurpriseMeans:
    """What came before with these, one after another."""
    count, mean, recent = before
    for one in told:
        count += 1
        mean += (one - mean) / count
        recent = one if count == 1 else recent + _RECENT_WEIGHT * (one - recent)
    return count, mean, recent
