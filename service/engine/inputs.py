"""A client's inputs as an array, in the model's order.

Owns the three ways to write a step: a list of numbers, one number, or numbers by feature name. Knows nothing of HTTP.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import Fault, InvalidInputError

Rows = Sequence[Sequence[float]]
Numbers = Sequence[float]
NamedRows = Sequence[Mapping[str, float]]
Inputs = Rows | Numbers | NamedRows


def to_array(inputs: Inputs, features: Sequence[str], field: str = "inputs") -> NDArray[np.float32]:
    """(steps, features) in the model's order. `field` is what errors call the inputs.

    Raises InvalidInputError, naming the step and the feature.
    """
    if not len(inputs):
        raise InvalidInputError(Fault(field, "needs at least one step"))
    first = inputs[0]
    if isinstance(first, Mapping):
        rows = [_by_name(step, features, f"{field}[{place}]") for place, step in enumerate(inputs)]
    elif isinstance(first, (int, float)):
        if len(features) != 1:
            raise InvalidInputError(Fault(f"{field}[0]", f"a step is {_said(features)}, not one number"))
        rows = [[number] for number in inputs]  # type: ignore[list-item]
    else:
        rows = inputs  # type: ignore[assignment]
    for place, row in enumerate(rows):
        if len(row) != len(features):
            raise InvalidInputError(Fault(f"{field}[{place}]", f"a step is {_said(features)}; this one has {len(row)}"))
    wide = np.array(rows, np.float64)
    with np.errstate(over="ignore"):
        array = wide.astype(np.float32)
    if not np.isfinite(array).all():
        place, column = (int(where[0]) for where in np.nonzero(~np.isfinite(array)))
        raise InvalidInputError(
            Fault(
                f"{field}[{place}][{column}]",
                f"{wide[place, column]:g} ({features[column]}) is no finite 32-bit number",
            )
        )
    return array


def _by_name(step: object, features: Sequence[str], field: str) -> list[float]:
    assert isinstance(step, Mapping)
    faults = [Fault(f"{field}.{name}", "missing") for name in features if name not in step]
    faults += [
        Fault(f"{field}.{name}", f"no such feature; a step is {_said(features)}")
        for name in step
        if name not in features
    ]
    if faults:
        raise InvalidInputError(*faults)
    return [step[name] for name in features]


def _said(features: Sequence[str]) -> str:
    return f"{len(features)} number{'s' if len(features) > 1 else ''} ({', '.join(features)})"
