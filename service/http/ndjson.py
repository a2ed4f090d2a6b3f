"""Steps as NDJSON: each line of the request is answered by a line of the response, as the lines arrive.

Owns the reading of lines and the handling of an error: the lines before the error are applied and answered, and the
last line of the response is the problem, with the number of its line and the step that was reached. Memory does not
grow with the number of lines: the lines that have arrived are answered before more is read.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol, runtime_checkable

import orjson
from flask import Response, current_app, request
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import ParseException
from pydantic import ValidationError

from onward.service.engine.batching.batch_row import StepResult
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import in_loop_turns
from onward.service.errors import Fault, InvalidInputError, NotFiniteError
from onward.service.http import json_parsing, problems, request_body, request_schemas
from onward.service.http.connection import client
from onward.service.http.operations import NDJSON, wants_listed_only
from onward.service.http.problems import HTTP_PROBLEM_TYPES, RequestError
from onward.service.http.reply import encode
from onward.service.http.session_ids import TENANT
from onward.service.http.step_encoding import encode_step

READ = 65_536

_INPUT_INDEX = re.compile(r"inputs\[(\d+)\]").match


class Line(NamedTuple):
    """A line of the request: its number from 1 on, and its step, or the error if it has none."""

    number: int
    step: Any


def reply(engine: Engine, session_id: str, model: str = "") -> Response:
    """The streamed response to the lines of the request. Raises the errors of the session.

    An error of a line is the last line of the response. model: the first line creates the session on it if the session
    does not exist; if empty, the session must exist.
    """
    reached = engine.steps.current_step(TENANT, session_id, model=model)
    expected, listed_only = _expected(), wants_listed_only()
    if expected and not reached:  # a session that is still to be created is not the one that the client means
        engine.steps.current_step(TENANT, session_id, step=expected, model=model)
    body, app = request.environ["wsgi.input"], current_app
    connection = request.environ.get("gunicorn.socket")
    clock = connection if isinstance(connection, Clock) else _NoClock()
    upload = _Upload(engine, session_id, reached, expected, model, clock, listed_only=listed_only)
    most = app.config["MAX_CONTENT_LENGTH"]
    lines = _lines(body, most, app.extensions.get("alive", lambda: True), engine.limits, clock)
    if isinstance(reader := getattr(body, "reader", None), ChunkedReader):
        reader.req.force_close()  # an error may leave the body half read, and headers are sent before that
    return Response(upload.responses(lines, body, most), content_type=NDJSON, headers={"X-Accel-Buffering": "no"})


def _expected() -> int | None:
    step = request.args.get("step")
    if step is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", step):
        raise InvalidInputError(Fault("step", f"expected a whole number, not {step[:40]!r}"))
    return int(step)


@runtime_checkable
class Clock(Protocol):
    """A connection that limits the time until more of the request arrives."""

    def wait_long(self) -> None:
        """Sets no limit: the next line may begin at any time."""

    def begin(self) -> None:
        """Starts the limit of a line that has begun: its bytes must arrive at a minimum rate."""


class _NoClock:
    """A clock without limits, for gunicorn's own connections, which TLS uses, and for tests without a connection."""

    def wait_long(self) -> None: ...
    def begin(self) -> None: ...


class _Upload:
    def __init__(
        self,
        engine: Engine,
        session_id: str,
        reached: int,
        expected: int | None,
        model: str,
        clock: Clock,
        *,
        listed_only: bool,
    ) -> None:
        """reached: the session's step; expected: the step that the session must have at the first line; None: any.

        model: the first line may create the session on it. listed_only: rankings have listed categories only.
        """
        self._listed_only = listed_only
        self._clock = clock
        self._engine, self._session_id, self._model = engine, session_id, model
        self._reached, self._expected = reached, expected
        self._has_left = client()
        self._is_over = False

    def responses(self, arrivals: Iterator[Sequence[Line]], body: Any, most: int) -> Iterator[bytes]:
        """The responses to lines as they arrive; they end after a problem.

        most: the bytes of the rest of the body that are still read after a problem.
        """
        for lines in arrivals:
            for _, alike in groupby(in_loop_turns(lines), lambda line: _form(line.step)):
                yield b"".join(self._responses_alike(list(alike)))
                if self._is_over:
                    self._clock.begin()
                    _drain(body, most)
                    return

    def _responses_alike(self, lines: Sequence[Line]) -> Iterator[bytes]:
        """The responses to lines of one form. Lines before an invalid one are applied first, to identify that line."""
        try:
            result = self._step([line.step for line in lines])
        except Exception as error:  # noqa: BLE001  (any error ends the response)
            cut = _cut(error, len(lines))
            if cut is None:
                self._is_over = True
                yield self._last(lines[0].number, error)
            else:
                yield from self._responses_alike(lines[:cut])
                if not self._is_over:
                    yield from self._responses_alike(lines[cut:])
        else:
            first, self._reached = result.step - len(lines) + 1, result.step
            for index in in_loop_turns(range(len(lines))):
                yield encode_step(StepResult(result.model, first + index, result.outputs[index : index + 1])) + b"\n"

    def _step(self, inputs: list[Any]) -> StepResult:
        if isinstance(inputs[0], Exception):
            raise inputs[0]
        if not request_schemas.plain_inputs(inputs):
            request_schemas.Step.model_validate({"inputs": inputs})
        result = self._engine.steps.step(
            TENANT,
            self._session_id,
            inputs,
            step=self._expected,
            model=self._model,
            listed_only=self._listed_only,
            has_left=self._has_left,
        )
        self._model = ""  # a session that ends during the upload is not silently created again
        self._expected = None if self._expected is None else result.step
        return result.listed() if self._listed_only else result

    def _last(self, number: int, error: Exception) -> bytes:
        document = orjson.loads(problems.of(error, "POST", f"/v1/sessions/{self._session_id}/steps").body)
        return encode(document | {"line": number, "step": self._reached}) + b"\n"


def _cut(error: Exception, count: int) -> int | None:
    """The number of lines before a cut that separates the invalid line.

    None if the first line is invalid, or if the error is not of a line. count: the number of lines.
    """
    if count == 1:
        return None
    if isinstance(error, ValidationError):
        ((_, _, index, *_), *_) = (fault["loc"] for fault in error.errors(include_input=False))
        return max(1, int(index))
    if isinstance(error, InvalidInputError):
        found = _INPUT_INDEX(error.faults[0].field)
        return max(1, int(found[1])) if found else count // 2
    return count // 2 if isinstance(error, NotFiniteError) else None


def _form(step: Any) -> type[Any]:
    """The form of a step; only lines of the same form can be the inputs of one call."""
    return next((form for form in (list, dict, Exception) if isinstance(step, form)), object)


def _lines(body: Any, longest: int, alive: Callable[[], bool], limits: Limits, clock: Clock) -> Iterator[list[Line]]:
    """The lines that are not blank, as they arrive.

    The next line may be hours away, but a line that has begun must continue to arrive.
    """
    number, rest = 0, b""
    try:
        clock.wait_long()
        for piece in _pieces(body):
            *whole, rest = (rest + piece).split(b"\n")
            begins = len(rest) <= len(piece)
            yield [
                _line(at, text, limits)
                for at, text in enumerate(in_loop_turns(whole), number + 1)
                if text and not text.isspace()
            ]
            if not rest:
                clock.wait_long()
            elif begins:
                clock.begin()
            number += len(whole)
            if ends := _ends(len(rest), longest, alive):
                yield [Line(number + 1, ends)]
                return
    except RequestError as error:
        yield [Line(number + 1, error)]
    except (OSError, ParseException) as error:  # from gunicorn: the client has disconnected, or its framing is invalid
        yield [Line(number + 1, request_body.broken_off(getattr(error, "strerror", None) or str(error)))]
    else:
        if rest and not rest.isspace():
            yield [_line(number + 1, rest, limits)]


def _ends(begun: int, longest: int, alive: Callable[[], bool]) -> RequestError | None:
    """The error that ends the reading of lines; None if reading continues. begun: the bytes of the next line."""
    if begun > longest:
        return RequestError(HTTP_PROBLEM_TYPES[413], f"a line has at most {longest} bytes")
    return None if alive() else RequestError(problems.STOPPING, "send the lines that follow in another request")


def _line(number: int, text: bytes, limits: Limits) -> Line:
    try:
        return Line(number, json_parsing.parsed(text, limits))
    except (RequestError, InvalidInputError) as error:
        return Line(number, error)


def _drain(body: Any, most: int) -> None:
    """Reads a short rest of the body, so that the connection can serve its next request; ends the connection otherwise.

    most: the bytes of a rest that is read; the client may have sent all of it already.
    """
    reader = getattr(body, "reader", None)
    if isinstance(reader, LengthReader) and reader.length <= most:
        with contextlib.suppress(OSError, ParseException):  # the client has disconnected
            body.read()
    else:
        body.failed = True  # makes gunicorn end the connection


def _pieces(body: Any) -> Iterator[bytes]:
    """The body as it arrives: gunicorn's `read` would wait until all bytes that it was asked for have arrived.

    Raises RequestError if the body ends before its announced length.
    """
    reader = getattr(body, "reader", None)
    if isinstance(reader, ChunkedReader):
        yield from reader.parser
    elif isinstance(reader, LengthReader):
        yield from _arrivals(reader)
    else:
        while data := body.read(READ):
            yield data


def _arrivals(reader: LengthReader) -> Iterator[bytes]:
    announced = reader.length
    while reader.length:
        data = reader.unreader.read(None, read_ahead=min(READ, reader.length))
        if not data:
            raise request_body.cut(announced - reader.length, announced)
        piece, following = data[: reader.length], data[reader.length :]
        reader.unreader.unread(following)  # bytes of the next request
        reader.length -= len(piece)
        yield piece
