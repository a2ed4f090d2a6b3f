"""Responses that do not depend on a web framework, and the encoding of their JSON.

Flask's views make Responses of a Reply; the fast path writes it as bytes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
from flask import Response

from onward.service.engine.event_loop import LoopTurns

JSON = "application/json"
PIECE = 4096
"""The values of a response that are encoded at once."""
PIECE_BYTES = 65_536
"""The bytes of a response that are encoded in one turn of the event loop."""


class Empty(Response):
    """A response without a body and without a Content-Type."""

    default_mimetype = None


class Reply(NamedTuple):
    """A response. headers: the headers other than Content-Type and Content-Length."""

    status: int
    body: bytes
    media: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    def response(self) -> Response:
        return Response(self.body, self.status, list(self.headers), content_type=self.media)


def encode(content: Any) -> bytes:
    """The content as JSON, numpy arrays included."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_by_turns(content: Any) -> bytes:
    """The bytes of `encode`. Large content is encoded in pieces, between which other greenlets run."""
    if _size(content) <= PIECE:
        return encode(content)
    parts, written, turns = [], 0, LoopTurns()
    try:
        for part in _pieces(content):
            parts.append(part)
            written += len(part)
            if written > PIECE_BYTES:
                written = 0
                turns.take()
    finally:
        turns.close()
    return b"".join(parts)


def _size(content: Any) -> int:
    """The number of values."""
    if isinstance(content, np.ndarray):
        return int(content.size)
    if isinstance(content, dict):
        return sum(map(_size, content.values()))
    return sum(map(_size, content)) if isinstance(content, list) else 1


def _pieces(content: Any) -> Iterator[bytes]:
    if _size(content) <= PIECE:
        yield encode(content)
    elif isinstance(content, dict):
        comma = b"{"
        for name, value in content.items():
            yield b"%b%b:" % (comma, encode(name))
            yield from _pieces(value)
            comma = b","
        yield b"}"
    else:
        comma = b"["
        for entries in _slices(content):
            yield comma
            if len(entries) == 1:
                yield from _pieces(entries[0])
            else:
                yield encode(entries)[1:-1]
            comma = b","
        yield b"]"


def _slices(content: Any) -> Iterator[Any]:
    """Slices of a list or an array, each with as many entries as are encoded at once, or with a single entry."""
    if isinstance(content, np.ndarray):
        count = max(1, PIECE // max(1, content.size // len(content)))
        yield from (content[start : start + count] for start in range(0, len(content), count))
        return
    start = size = 0
    for end, entry in enumerate(content):
        size += (added := _size(entry))
        if size > PIECE and end > start:
            yield content[start:end]
            start, size = end, added
    yield content[start:]
