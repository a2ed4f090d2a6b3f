"""Texts as streams of characters or bytes.

Owns how a text becomes places. Knows nothing of tables.
"""

import ast
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import Category, Feature
from onward.training.errors import DataError

Unit = Literal["characters", "bytes"]


def read(file: Path, unit: Unit) -> NDArray[np.int64]:
    """(length,) the code points of a UTF-8 text, or its bytes. Raises DataError.

    Of a file of Python, the string constants are the text.
    """
    try:
        content = file.read_bytes()
        if file.suffix == ".py":
            content = _constants(content.decode()).encode()
        text = content.decode() if unit == "characters" else ""
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        way_out = "" if file.suffix == ".py" else '; with text = "bytes" it may be anything'
        raise DataError(f"{file}: byte {error.start}: not UTF-8{way_out}") from error
    except UnicodeEncodeError as error:
        raise DataError(
            f"{file}: a string constant has {error.object[error.start]!r}, which is no character"
        ) from error
    except SyntaxError as error:
        raise DataError(f"{file}: line {error.lineno}: not Python: {error.msg}") from error
    if unit == "bytes":
        return np.frombuffer(content, np.uint8).astype(np.int64)
    return np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)


def categories(codes: NDArray[np.int64], unit: Unit, min_count: int) -> tuple[Category, ...]:
    """Those that occur often enough, in rising order; every byte, for bytes."""
    if unit == "bytes":
        return tuple(range(256))
    found, counts = np.unique(codes, return_counts=True)
    return tuple(chr(code) for code in found[counts >= min_count])


def places(file: Path, codes: NDArray[np.int64], feature: Feature) -> NDArray[np.int64]:
    """(length,) the place of each code. Raises DataError, naming the line, for what has none."""
    known = np.array([ord(one) if isinstance(one, str) else one for one in feature.categories], np.int64)
    found = np.searchsorted(known, codes)
    strange = known[np.minimum(found, len(known) - 1)] != codes
    if strange.any() and not feature.unknown:
        at = int(strange.argmax())
        line = 1 + int(np.count_nonzero(codes[:at] == ord("\n")))
        raise DataError(
            f"{file}: line {line}: {chr(codes[at])!r} does not occur in the training part; "
            "with unknown = true it may occur"
        )
    return np.where(strange, len(known), found)


def _constants(source: str) -> str:
    strings = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return "\n".join(strings)
