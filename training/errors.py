"""The errors that any part of a training run may raise. Knows nothing of the parts."""

from onward.model.errors import DataError, OnwardError

__all__ = ["DataError", "TrainingError"]


class TrainingError(OnwardError):
    """A run that cannot begin or go on. The message says at which point, and what to try."""
