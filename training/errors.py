"""What every part of a training run may raise. Knows nothing of the parts."""


class TrainingError(Exception):
    """A run that cannot begin or go on; the message says where it stands and what to try."""


class DataError(Exception):
    """A file that cannot be learnt from; the message names it, and the row and column where there is one."""
