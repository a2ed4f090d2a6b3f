"""A client's inputs as an array: by the rules of `model.inputs`, and with the service's error where they do not fit."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model import inputs as rules
from model.inputs import Inputs
from model.manifest import Feature
from service.engine.refusing import refusing

__all__ = ["Inputs", "to_array"]


def to_array(inputs: Inputs, features: Sequence[Feature], field: str = "inputs") -> NDArray[np.float32]:
    """(steps, features), see `model.inputs.to_array`. Raises InvalidInputError, naming the step and the feature."""
    with refusing():
        return rules.to_array(inputs, features, field)
