"""Steps as NDJSON: a line in, a line out, as they come, for as long as they come.

Owns the reading of lines, and where an error stops them: what came before it is applied and answered, and it is the
last that is said, with the number of its line and the step that was reached. Memory does not grow with the number of
lines: what has come is answered before more is read.
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

from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import in_loop_turns
from onward.service.engine.steps import StepResult
from onward.service.errors import Fault, InvalidInputError, NotFiniteError
from onward.service.http import json_parsing, problems, request_body, request_schemas
from onward.service.http.connection import client
from onward.service.http.operations import NDJSON
from onward.service.http.problems import HTTP_PROBLEM_TYPES, RequestError
from onward.service.http.reply import encode
from onward.service.http.session_ids import TENANT
from onward.service.http.step_encoding import encode_step

READ = 65_536

_PLACE = re.compile(r"inputs\[(\d+)\]").match


class Line(NamedTuple):
    """A line of the request, from 1 on, and the step that it holds, or why it holds none."""

    number: int
    step: Any


def reply(engine: Engine, session_id: str, model: str = "") -> Response:
    """Raises what speaks against the session; what speaks against a line is the last line of the answer.

    model: the first line creates the session on it where there is none; empty: the session must exist.
    """
    expected = _expected()
    reached = engine.steps.current_step(TENANT, session_id, step=expected, model=model)
    body, app = request.environ["wsgi.input"], current_app
    connection = request.environ.get("gunicorn.socket")
    clock = connection if isinstance(connection, Clock) else _NoClock()
    upload = _Upload(engine, session_id, reached, expected, model, clock)
    most = app.config["MAX_CONTENT_LENGTH"]
    lines = _lines(body, most, app.extensions.get("alive", lambda: True), engine.limits, clock)
    if isinstance(reader := getattr(body, "reader", None), ChunkedReader):
        reader.req.force_close()  # an error may leave it half read, and that is said before it is known
    return Response(upload.answers(lines, body, most), content_type=NDJSON, headers={"X-Accel-Buffering": "no"})


def _expected() -> int | None:
    step = request.args.get("step")
    if step is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", step):
        raise InvalidInputError(Fault("step", f"expected a whole number, not {step[:40]!r}"))
    return int(step)


@runtime_checkable
class Clock(Protocol):
    """How long the connection waits for more of the request."""

    def wait_long(self) -> None:
        """What follows may come at any time."""

    def begin(self) -> None:
        """What follows has begun, and must come at some pace."""


class _NoClock:
    """Where the connection is not the service's own: under TLS of gunicorn's, and in tests without one."""

    def wait_long(self) -> None: ...
    def begin(self) -> None: ...


class _Upload:
    def __init__(
        self, engine: Engine, session_id: str, reached: int, expected: int | None, model: str, clock: Clock
    ) -> None:
        """reached: the session's step; expected: the one that the first line must find, None: any.

        model: on which the first line may create the session.
        """
        self._clock = clock
        self._engine, self._session_id, self._model = engine, session_id, model
        self._reached, self._expected = reached, expected
        self._has_left = client()
        self._over = False

    def answers(self, arrivals: Iterator[Sequence[Line]], body: Any, most: int) -> Iterator[bytes]:
        """What is said to lines as they arrive; ends after a problem. most: bytes of the rest that are still read."""
        for lines in arrivals:
            for _, alike in groupby(in_loop_turns(lines), lambda line: _form(line.step)):
                yield b"".join(self._responses(list(alike)))
                if self._over:
                    self._clock.begin()
                    _leave(body, most)
                    return

    def _responses(self, lines: Sequence[Line]) -> Iterator[bytes]:
        """The responses to lines of one form. Lines before an invalid one are applied first, to identify that line."""
        try:
            answer = self._step([line.step for line in lines])
        except Exception as error:  # noqa: BLE001  (whatever it is, it ends the answer)
            cut = _cut(error, len(lines))
            if cut is None:
                self._over = True
                yield self._last(lines[0].number, error)
            else:
                yield from self._responses(lines[:cut])
                if not self._over:
                    yield from self._responses(lines[cut:])
        else:
            first, self._reached = answer.step - len(lines) + 1, answer.step
            for index in in_loop_turns(range(len(lines))):
                yield encode_step(StepResult(answer.model, first + index, answer.outputs[index : index + 1])) + b"\n"

    def _step(self, inputs: list[Any]) -> StepResult:
        if isinstance(inputs[0], Exception):
            raise inputs[0]
        if not request_schemas.plain_inputs(inputs):
            request_schemas.Step.model_validate({"inputs": inputs})
        answer = self._engine.steps.step(
            TENANT, self._session_id, inputs, step=self._expected, model=self._model, has_left=self._has_left
        )
        self._model = ""  # a session that ends during the upload is not begun anew in silence
        self._expected = None if self._expected is None else answer.step
        return answer

    def _last(self, number: int, error: Exception) -> bytes:
        document = orjson.loads(problems.of(error, "POST", f"/v1/sessions/{self._session_id}/steps").body)
        return encode(document | {"line": number, "step": self._reached}) + b"\n"


def _cut(error: Exception, count: int) -> int | None:
    """Where to cut that many lines so as to find the one at fault; None where it is the first, or no line's fault."""
    if count == 1:
        return None
    if isinstance(error, ValidationError):
        ((_, _, place, *_), *_) = (fault["loc"] for fault in error.errors(include_input=False))
        return max(1, int(place))
    if isinstance(error, InvalidInputError):
        found = _PLACE(error.faults[0].field)
        return max(1, int(found[1])) if found else count // 2
    return count // 2 if isinstance(error, NotFiniteError) else None


def _form(step: Any) -> type[Any]:
    """What lines have to have in common to be one call's inputs."""
    return next((form for form in (list, dict, Exception) if isinstance(step, form)), object)


def _lines(body: Any, longest: int, alive: Callable[[], bool], limits: Limits, clock: Clock) -> Iterator[list[Line]]:
    """Lines with something on them, as they come. The next line may be hours away; one that has begun must go on."""
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
    except (OSError, ParseException) as error:  # gunicorn's, where the client went or its framing is broken
        yield [Line(number + 1, request_body.broken_off(getattr(error, "strerror", None) or str(error)))]
    else:
        if rest and not rest.isspace():
            yield [_line(number + 1, rest, limits)]


def _ends(begun: int, longest: int, alive: Callable[[], bool]) -> RequestError | None:
    """Why no more is read, though more may come. begun: bytes of the next line."""
    if begun > longest:
        return RequestError(HTTP_PROBLEM_TYPES[413], f"a line has at most {longest} bytes")
    return None if alive() else RequestError(problems.STOPPING, "send the lines that follow in another request")


def _line(number: int, text: bytes, limits: Limits) -> Line:
    try:
        return Line(number, json_parsing.parsed(text, limits))
    except (RequestError, InvalidInputError) as error:
        return Line(number, error)


def _leave(body: Any, most: int) -> None:
    """Reads a rest that the client may have sent whole already, so that the connection serves its next request."""
    reader = getattr(body, "reader", None)
    if isinstance(reader, LengthReader) and reader.length <= most:
        with contextlib.suppress(OSError, ParseException):  # the client has gone
            body.read()
    else:
        body.failed = True  # gunicorn ends the connection


def _pieces(body: Any) -> Iterator[bytes]:
    """The body as it arrives: gunicorn's `read` would wait until it has as many bytes as it was asked for.

    Raises RequestError where the body ends before its announced length.
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
        reader.unreader.unread(following)  # of the next request
        reader.length -= len(piece)
        yield piece
