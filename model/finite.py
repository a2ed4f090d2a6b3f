"""Checks whether all numbers of structured rows are finite, at less cost than field by field."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT32 = np.dtype(np.float32)


@cache
def all_float32(dtype: np.dtype[np.void]) -> bool:
    """Returns whether every field of structured rows is of 32-bit floats."""
    return {kind[0].base for kind in (dtype.fields or {}).values()} == {_FLOAT32}


def finite(rows: NDArray[np.void]) -> bool:
    """Returns whether every number in structured rows is finite."""
    if all_float32(rows.dtype) and rows.flags.c_contiguous:
        return _are_finite(np.frombuffer(rows, _FLOAT32))
    return all(_are_finite(rows[name]) for name in rows.dtype.names or ())


def _are_finite(numbers: NDArray[Any]) -> bool:
    return b"\0" not in np.isfinite(numbers).tobytes()
