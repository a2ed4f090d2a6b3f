"""Texts as streams of characters or bytes: what of a file is read, for training and for the commands alike.

Owns the way from the bytes of a file to its text. Knows nothing of tables and of categories.
"""

import ast
from pathlib import Path
from typing import Literal

from onward.model.errors import DataError

Unit = Literal["characters", "bytes"]


def content(name: str, data: bytes, unit: Unit) -> str | bytes:
    """Returns the characters of a UTF-8 text, or its bytes. Raises DataError, which names the file by `name`.

    The text of a Python file is its string constants.
    """
    is_python = Path(name).suffix == ".py"
    try:
        if is_python:
            data = _string_constants(data.decode()).encode()
        return data.decode() if unit == "characters" else data
    except UnicodeDecodeError as error:
        advice = "" if is_python else '; with text = "bytes" any file is accepted'
        raise DataError(f"{name}: byte {error.start}: not UTF-8{advice}") from error
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name}: a string constant has {error.object[error.start]!r}, which is not a character"
        ) from error
    except SyntaxError as error:
        raise DataError(f"{name}: line {error.lineno}: not Python: {error.msg}") from error


def _string_constants(source: str) -> str:
    strings = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return "\n".join(strings)
