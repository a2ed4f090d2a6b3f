"""The precision that numbers need, by their magnitude beside their spread.

Owns the rule for single and double precision, and the number of digits that tell neighbouring numbers apart.
"""

import math
from typing import Literal

import numpy as np

Precision = Literal["float32", "float64"]

SHARE = 2.0**-8
"""The largest rounding of a value, as a share of the spread, that a precision may have.

The spread is a typical step from value to value. A rounding error is uniform, so its root mean square is at most 0.0023
of the spread. Squared errors add up: where a model's error is a tenth of the spread, rounding adds 0.03% to it, and
0.1% where the error is a twentieth. Thus single precision carries magnitudes up to 2^16 times the spread, and double
precision up to 2^45 times.
"""


def carries(precision: Precision, magnitude: float, spread: float, share: float = SHARE) -> bool:
    """Returns whether numbers up to `magnitude` are rounded by at most that share of their spread.

    Numbers without a spread are constant, and any precision carries them.
    """
    rounding = magnitude * float(np.finfo(precision).eps) / 2
    return not spread > 0 or rounding <= share * spread


def digits(magnitude: float, spread: float, least: int = 5) -> int:
    """Returns how many significant digits write numbers up to `magnitude` so that a tenth of the spread shows."""
    if not spread > 0 or not magnitude > 0:
        return least
    return min(17, max(least, math.ceil(math.log10(magnitude) - math.log10(spread)) + 2))
