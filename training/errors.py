"""The errors that any part of a training run may raise. Knows nothing of the parts."""

from onward.model.errors import OnwardError


class TrainingError(OnwardError):
    """A run that cannot begin or go on. The message says at which point, and what to try."""


class DataError(OnwardError):
    """A file that cannot be used as training data. The message names it, and the row and column where there is one."""
