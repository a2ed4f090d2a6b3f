"""An answer that no web framework has seen. Flask's views make Responses of it, the step lane writes it as bytes."""

from typing import Any, NamedTuple

import orjson
from flask import Response

JSON = "application/json"


class Empty(Response):
    """An answer without a body, of which no media type is said."""

    default_mimetype = None


class Reply(NamedTuple):
    """`headers` are those beside Content-Type and Content-Length."""

    status: int
    body: bytes
    media: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    def response(self) -> Response:
        return Response(self.body, self.status, list(self.headers), content_type=self.media)


def encode(content: Any) -> bytes:
    """The content as JSON, numpy arrays included."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
