"""Reads the body of the current request and checks its length, encoding and media type.

Returns it as bytes or as one of `onward.service.http.request_schemas`.
"""

from typing import TypeVar

from flask import request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from onward.service.engine.engine import Engine
from onward.service.errors import Fault
from onward.service.http import json_parsing
from onward.service.http.problems import HTTP_PROBLEM_TYPES, MEDIA, RequestError
from onward.service.http.request_schemas import Body

B = TypeVar("B", bound=Body)


def broken_off(why: str) -> RequestError:
    """The problem of a body that is incomplete."""
    detail = f"the body is not whole: {why}"
    return RequestError(HTTP_PROBLEM_TYPES[400], detail, [Fault("body", detail)])


def cut(came: int, announced: int) -> RequestError:
    """The problem of a body that ends before its announced length."""
    return broken_off(f"{came} of {announced} bytes came")


def read(form: type[B], engine: Engine, *, optional: bool = False) -> B:
    """The request's body as `form`; an empty body as its defaults if the body is optional.

    Raises RequestError, InvalidInputError, ValidationError, or werkzeug's 413.
    """
    data = body(optional=optional)
    return form() if optional and not data else json_parsing.validated(form, data, engine.limits)


def body(*, optional: bool = False) -> bytes:
    """The request's complete body, whose media type is JSON. Raises RequestError, or werkzeug's 413."""
    if request.content_encoding not in (None, "identity"):
        detail = f"Content-Encoding {request.content_encoding!r} is not supported; send the JSON as it is"
        raise RequestError(MEDIA, detail, [Fault("Content-Encoding", detail)])
    try:
        data = request.get_data(cache=False)
    except ClientDisconnected as error:  # from werkzeug; its context is the error of the connection
        raise broken_off(getattr(error.__context__, "strerror", None) or "the client has gone") from error
    except (OSError, ParseException) as error:  # from gunicorn: the framing of a chunked body is invalid
        raise broken_off(getattr(error, "strerror", None) or str(error)) from error
    if request.content_length is not None and len(data) < request.content_length:
        raise cut(len(data), request.content_length)
    if request.content_length is None and len(data) == request.max_content_length:
        raise RequestEntityTooLarge  # werkzeug silently truncates a chunked body at the limit
    if request.mimetype != "application/json" and (data or not optional):
        detail = f"expected Content-Type: application/json, not {request.mimetype or 'none'}"
        raise RequestError(MEDIA, detail, [Fault("Content-Type", detail)])
    return data
