"""Texts as streams of characters or bytes.

Owns how a text becomes token indices. Knows nothing of tables.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onward.model import texts
from onward.model.manifest import Category, Feature
from onward.model.texts import Unit
from onward.training.errors import DataError


def read(file: Path, unit: Unit) -> NDArray[np.int64]:
    """Returns the code points of a text, or its bytes: (length,). Raises DataError."""
    try:
        content = texts.content(str(file), file.read_bytes(), unit)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if isinstance(content, bytes):
        return np.frombuffer(content, np.uint8).astype(np.int64)
    return np.frombuffer(content.encode("utf-32-le"), np.uint32).astype(np.int64)


def categories(codes: NDArray[np.int64], unit: Unit, min_count: int) -> tuple[Category, ...]:
    """Returns the characters that occur at least `min_count` times, in rising order; all 256 values for bytes."""
    if unit == "bytes":
        return tuple(range(256))
    distinct, counts = np.unique(codes, return_counts=True)
    return tuple(chr(code) for code in distinct[counts >= min_count])


def encode(file: Path, codes: NDArray[np.int64], feature: Feature) -> NDArray[np.int64]:
    """Returns the index of each code's category, (length,); the one after the last for an unknown code.

    Raises DataError, naming the line, for an unknown code where the feature allows none.
    """
    categories = np.array([ord(item) if isinstance(item, str) else item for item in feature.categories], np.int64)
    indices = np.searchsorted(categories, codes)
    unknown = categories[np.minimum(indices, len(categories) - 1)] != codes
    if unknown.any() and not feature.unknown:
        first = int(unknown.argmax())
        line = 1 + int(np.count_nonzero(codes[:first] == ord("\n")))
        raise DataError(
            f"{file}: line {line}: {chr(codes[first])!r} does not occur in the training part; "
            "with unknown = true it is accepted"
        )
    return np.where(unknown, len(categories), indices)
