"""Checks whether all numbers of structured rows are finite, at less cost than field by field."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@cache
def common_float(dtype: np.dtype[np.void]) -> np.dtype[Any] | None:
    """Returns the type of floats that every field of structured rows has; None if the fields differ."""
    kinds = {kind[0].base for kind in (dtype.fields or {}).values()}
    return next((kind for kind in _FLOATS if kinds == {kind}), None)


def finite(rows: NDArray[np.void]) -> bool:
    """Returns whether every number in structured rows is finite."""
    if (kind := common_float(rows.dtype)) is not None and rows.flags.c_contiguous:
        return _are_finite(np.frombuffer(rows, kind))
    return all(_are_finite(rows[name]) for name in rows.dtype.names or ())


def _are_finite(numbers: NDArray[Any]) -> bool:
    return b"\0" not in np.isfinite(numbers).tobytes()
