"""The precision in which a table's numbers are read: single, or double where a column needs it.

Owns the magnitude and the spread of a column. The rule itself is that of `onward.model.precision`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import InputDtype
from onward.model.precision import Precision, carries
from onward.training.errors import DataError

MOST_SAMPLES = 65_536
"""The most values of which a typical one is taken."""
WHOLE = 2.0**53
"""The magnitude from which on neighbouring 64-bit floats differ by whole numbers."""
NEIGHBOURS = 0.5
"""The rounding, as a share of the spread, at which neighbouring values become one number."""


class Scale(NamedTuple):
    """The magnitude of a column's numbers in the training part, and their spread.

    The magnitude is that of all but the largest hundredth, and the spread is the median distance from the median, of
    values that differ from it: so no absurd value decides. Of targets and differenced columns the spread is that of the
    steps from value to value, which predictions must resolve.
    """

    magnitude: float
    spread: float


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a table: which lie in the training part, and which follow another row of their series there."""

    trained: NDArray[np.bool_]
    following: NDArray[np.bool_]

    @staticmethod
    def of(in_training: NDArray[np.bool_], starts: Sequence[int]) -> "Rows":
        """starts: the first row of each series."""
        following = np.zeros_like(in_training)
        following[1:] = in_training[1:] & in_training[:-1]
        following[list(starts)] = False
        return Rows(in_training, following)


def finer(first: Scale, second: Scale) -> Scale:
    """Returns the scale that needs more digits."""
    return max(first, second, key=lambda found: found.magnitude / found.spread if found.spread > 0 else 0.0)


def scale(values: NDArray[np.float64], rows: Rows, *, by_steps: bool) -> Scale:
    """Returns the scale of a column (rows,) with NaN for missing values. by_steps: see `Scale`."""
    trained = values[rows.trained] if rows.trained.any() else values
    trained = trained[~np.isnan(trained)]
    magnitude = _quantile(np.abs(trained), 0.99)
    rounding = 4 * float(np.finfo(np.float64).eps) * magnitude
    if by_steps:
        steps = np.diff(values, prepend=np.nan)[rows.following]
        steps = steps[~np.isnan(steps)]
        spread = _typical_distance(steps, rounding) or abs(_quantile(steps, 0.5))
    else:
        spread = _typical_distance(trained, rounding)
    if spread <= rounding and magnitude >= WHOLE:  # the differences are not those of a rounding: no digit is left
        spread = float(np.ptp(trained))
    return Scale(magnitude, spread)


def _typical_distance(values: NDArray[np.float64], rounding: float) -> float:
    """Returns the median distance from the median, of the values that differ from it; 0 if none does."""
    distance = np.abs(values - _quantile(values, 0.5))
    return _quantile(distance[distance > rounding], 0.5)


def _quantile(values: NDArray[np.float64], level: float) -> float:
    """Returns the quantile of evenly spread samples of the values; 0 if there are none."""
    stride = -(-len(values) // MOST_SAMPLES)
    return float(np.quantile(values[::stride], level)) if len(values) else 0.0


def choose(file: Path, scales: Mapping[str, Scale], declared: InputDtype | None) -> Precision:
    """Returns the precision that carries every column, or that of a bundle, `declared`.

    Raises DataError, which names the column, its magnitude and its spread, if double precision does not carry a column,
    or if the bundle's precision makes neighbouring values one number.
    """
    for name, found in scales.items():
        what = f"{file}: column {name}: values near {found.magnitude:.6g} that differ by {found.spread:.3g}"
        if not carries("float64", *found):
            raise DataError(
                f"{what} have more digits than 64-bit floats; subtract a constant from the column, or use a larger unit"
            )
        if declared is not None and not carries(_name(declared), *found, NEIGHBOURS):
            raise DataError(
                f"{what} are one number in single precision, in which this bundle computes; train the model anew"
            )
    if declared is not None:
        return _name(declared)
    return "float64" if needing_double(scales) else "float32"


def needing_double(scales: Mapping[str, Scale]) -> dict[str, Scale]:
    """Returns the columns that single precision does not carry."""
    return {name: found for name, found in scales.items() if not carries("float32", *found)}


def _name(dtype: InputDtype) -> Precision:
    return "float64" if dtype == np.float64 else "float32"
