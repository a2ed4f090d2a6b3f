"""/v1/sessions/{id}/forecast and /generate: predictions rolled forward from a session, whose state does not change."""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple, Self

from flask import Response, request

from onward.model.outputs import dtype_field, forecast_fields
from onward.model.sampling import sample_paths
from onward.model.sampling.generation import GenerationEnd, GenerationOptions, generated_fields
from onward.service.engine.engine import Engine
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.engine.forecasting.generation import Generation
from onward.service.engine.input_parsing import as_service_errors
from onward.service.errors import Fault, InvalidInputError
from onward.service.http import problems, request_body, request_schemas, response_schemas, sse
from onward.service.http.connection import client
from onward.service.http.operations import LISTED_ONLY, Operation, Query, json, wants_listed_only
from onward.service.http.reply import encode
from onward.service.http.session_ids import TENANT, checked
from onward.service.http.sse import Event


def forecast(engine: Engine, session_id: str) -> Response:
    checked(session_id)
    body = request_body.read(request_schemas.Forecast, engine)
    ahead = ForecastRequest(body.horizon, body.inputs, body.future, wants_listed_only())
    with as_service_errors():
        is_sampled = sample_paths.draws_paths(
            samples=body.samples, levels=body.quantiles, seed=body.seed, paths=body.paths
        )
    if not is_sampled:
        rolled = engine.forecasts.roll(TENANT, session_id, ahead, has_left=client())
        forecast = forecast_fields(rolled.model, rolled.outputs)
        return json({"step": rolled.step, "forecast": forecast} | dtype_field(rolled.model))
    drawn = engine.forecasts.sample(
        TENANT,
        session_id,
        ahead,
        samples=body.samples,
        levels=body.quantiles,
        seed=body.seed,
        has_left=client(),
    )
    counts = {"step": drawn.step, "seed": drawn.seed, "samples": len(drawn.paths), "levels": drawn.levels}
    return json(counts | {"forecast": drawn.fields(paths=body.paths)} | dtype_field(drawn.model))


_ID = struct.Struct("<QQQ8sI")


class Position(NamedTuple):
    """The position of an event in a generation: the event's id, opaque to clients, from which a generation resumes.

    seed; step and revision: the session's when the generation began; digest: of the request's body; sent: the number of
    generated steps that were sent.
    """

    seed: int
    step: int
    revision: int
    digest: bytes
    sent: int

    def __str__(self) -> str:
        return urlsafe_b64encode(_ID.pack(*self)).decode()

    @classmethod
    def of(cls, text: str) -> Self:
        """Parses an event's id. Raises ValueError."""
        try:
            return cls(*_ID.unpack(urlsafe_b64decode(text.encode("ascii"))))
        except struct.error as error:
            raise ValueError(*error.args) from None


def generate(engine: Engine, session_id: str) -> Response:
    checked(session_id)
    body = request_body.read(request_schemas.Generate, engine)
    digest = blake2b(body.model_dump_json().encode(), digest_size=8).digest()
    reached = _reached(request.headers.get("Last-Event-ID", ""), digest, body.horizon)
    has_left = client()
    draw = engine.generations.begin(
        TENANT,
        session_id,
        ForecastRequest(body.horizon, body.inputs, body.future, wants_listed_only()),
        GenerationOptions(*(getattr(body, name) for name in GenerationOptions._fields)),
        seed=reached.seed if reached else body.seed,
        resumed_from=(reached.step, reached.revision) if reached else None,
        has_left=has_left,
    )
    position = Position(draw.seed, draw.record.step, draw.record.revision, digest, reached.sent if reached else 0)
    return sse.response(_events(draw, position, request.path), has_left)


def _reached(event_id: str, digest: bytes, horizon: int) -> Position | None:
    """The position from which an interrupted generation resumes; None for a new generation."""
    if not event_id:
        return None
    try:
        position = Position.of(event_id)
    except ValueError:
        raise InvalidInputError(Fault("Last-Event-ID", "not the id of an event")) from None
    if position.digest != digest:
        message = "of a draw that was asked for with another body; send the same one, or begin anew without the header"
        raise InvalidInputError(Fault("Last-Event-ID", message))
    if position.sent > horizon or position.seed >= 2**63:
        raise InvalidInputError(Fault("Last-Event-ID", "not the id of an event"))
    return position


def _events(draw: Generation, position: Position, path: str) -> Iterator[Event]:
    """The events after the position. The steps before it are drawn again with the same seed, but not sent."""
    sent = position.sent
    try:
        for generated in draw.steps():
            if isinstance(generated, GenerationEnd):
                end = {"reason": generated.reason, "seed": draw.seed, "step": draw.record.step}
                text = {} if generated.text is None else {"text": generated.text}
                yield Event(str(position), encode(end | text), "done")
            elif generated.ahead > sent:
                position = position._replace(sent=generated.ahead)
                yield Event(str(position), encode(generated_fields(draw.model, generated)))
    except Exception as error:  # noqa: BLE001  (any error becomes the last event)
        yield Event(str(position), problems.of(error, "POST", path).body, "problem")


OPERATIONS = (
    Operation(
        "forecast_session", "POST", "/v1/sessions/{session_id}/forecast",
        forecast, "Roll predictions forward; the session is unmoved",
        response_schemas.ForecastAnswer, body=request_schemas.Forecast, query=(LISTED_ONLY,),
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503),
    ),
    Operation(
        "generate_session", "POST", "/v1/sessions/{session_id}/generate",
        generate, "Draw a path, an event a step; the session is unmoved",
        response_schemas.GeneratedEvents, body=request_schemas.Generate, media=sse.MEDIA_TYPE,
        query=(
            Query("Last-Event-ID", str, "of the last event that came: the draw goes on after it", "header"),
            LISTED_ONLY,
        ),
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503),
    ),
)  # fmt: skip
