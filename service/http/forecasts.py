"""/v1/sessions/{id}/forecast and /generate: what is rolled forward from a session, which stays where it is."""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple, Self

from flask import Response, request

from onward.model.outputs import forecast_fields
from onward.model.sampling import sample_paths
from onward.model.sampling.generation import GenerationEnd, GenerationOptions, generated_fields
from onward.service.engine.engine import Engine
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.engine.forecasting.generation import Generation
from onward.service.engine.input_parsing import as_service_errors
from onward.service.errors import Fault, InvalidInputError
from onward.service.http import problems, request_body, request_schemas, response_schemas, sse
from onward.service.http.connection import client
from onward.service.http.operations import Operation, Query, json
from onward.service.http.reply import encode
from onward.service.http.session_ids import TENANT, checked
from onward.service.http.sse import Event


def forecast(engine: Engine, session_id: str) -> Response:
    checked(session_id)
    body = request_body.read(request_schemas.Forecast, engine)
    ahead = ForecastRequest(body.horizon, body.inputs, body.future)
    with as_service_errors():
        wanted = sample_paths.draws_paths(samples=body.samples, levels=body.quantiles, seed=body.seed, paths=body.paths)
    if not wanted:
        answer = engine.forecasts.roll(TENANT, session_id, ahead, has_left=client())
        return json({"step": answer.step, "forecast": forecast_fields(answer.model, answer.outputs)})
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
    return json(counts | {"forecast": drawn.fields(paths=body.paths)})


# Drawn step by step

_ID = struct.Struct("<QQQ8sI")


class Place(NamedTuple):
    """How far a draw has come: an event's id, with which it goes on. Opaque to clients.

    seed; the session's step and revision when it began; a digest of its body; how many steps were told.
    """

    seed: int
    step: int
    revision: int
    digest: bytes
    told: int

    def __str__(self) -> str:
        return urlsafe_b64encode(_ID.pack(*self)).decode()

    @classmethod
    def of(cls, text: str) -> Self:
        """Raises ValueError."""
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
        ForecastRequest(body.horizon, body.inputs, body.future),
        GenerationOptions(*(getattr(body, name) for name in GenerationOptions._fields)),
        seed=reached.seed if reached else body.seed,
        resumed_from=(reached.step, reached.revision) if reached else None,
        has_left=has_left,
    )
    place = Place(draw.seed, draw.record.step, draw.record.revision, digest, reached.told if reached else 0)
    return sse.response(_events(draw, place, request.path), has_left)


def _reached(event_id: str, digest: bytes, horizon: int) -> Place | None:
    """Where a draw goes on after it was cut off; None where a new one begins."""
    if not event_id:
        return None
    try:
        place = Place.of(event_id)
    except ValueError:
        raise InvalidInputError(Fault("Last-Event-ID", "not the id of an event")) from None
    if place.digest != digest:
        what = "of a draw that was asked for with another body; send the same one, or begin anew without the header"
        raise InvalidInputError(Fault("Last-Event-ID", what))
    if place.told > horizon or place.seed >= 2**63:
        raise InvalidInputError(Fault("Last-Event-ID", "not the id of an event"))
    return place


def _events(draw: Generation, place: Place, path: str) -> Iterator[Event]:
    """Those after the place; what comes before it is drawn again, and not told."""
    seen = place.told
    try:
        for one in draw.steps():
            if isinstance(one, GenerationEnd):
                end = {"reason": one.reason, "seed": draw.seed, "step": draw.record.step}
                text = {} if one.text is None else {"text": one.text}
                yield Event(str(place), encode(end | text), "done")
            elif one.ahead > seen:
                place = place._replace(told=one.ahead)
                yield Event(str(place), encode(generated_fields(draw.model, one)))
    except Exception as error:  # noqa: BLE001  (whatever it is, the client is told)
        yield Event(str(place), problems.of(error, "POST", path).body, "problem")


OPERATIONS = (
    Operation(
        "forecast_session", "POST", "/v1/sessions/{session_id}/forecast",
        forecast, "Roll predictions forward; the session is unmoved",
        response_schemas.ForecastAnswer, body=request_schemas.Forecast,
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503),
    ),
    Operation(
        "generate_session", "POST", "/v1/sessions/{session_id}/generate",
        generate, "Draw a path, an event a step; the session is unmoved",
        response_schemas.GeneratedEvents, body=request_schemas.Generate, media=sse.MEDIA_TYPE,
        query=(Query("Last-Event-ID", str, "of the last event that came: the draw goes on after it", "header"),),
        problems=(400, 404, 409, 410, 413, 415, 422, 500, 503),
    ),
)  # fmt: skip
