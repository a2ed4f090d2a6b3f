"""/v1/sessions/{id}/forecast: what is rolled forward from a session, which stays where it is."""

from typing import Any

import numpy as np
from flask import Response

from service.engine.engine import Engine
from service.engine.forecast import Sampled
from service.engine.origin import Ahead
from service.errors import Fault, InvalidInputError
from service.http import bodies
from service.http.connection import client
from service.http.operations import Operation, json, named, rolled
from service.http.steps import TENANT, checked


def forecast(engine: Engine, session_id: str) -> Response:
    checked(session_id)
    body = bodies.read(bodies.Forecast)
    ahead = Ahead(body.horizon, body.inputs, body.future)
    if body.samples is None and body.quantiles is None:
        if body.paths or body.seed is not None:
            field = "paths" if body.paths else "seed"
            raise InvalidInputError(Fault(field, "belongs to sample paths; ask for samples or quantiles"))
        answer = engine.forecasts.roll(TENANT, session_id, ahead, has_left=client())
        return json({"step": answer.step, "forecast": rolled(answer.model, answer.outputs)})
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
    told = _categories(drawn) if drawn.top is not None else {"mean": drawn.mean, "quantiles": drawn.quantiles}
    if body.paths:
        told["paths"] = _paths(drawn)
    return json(counts | {"forecast": told})


def _categories(drawn: Sampled) -> dict[str, Any]:
    return {"top": named(drawn.top, drawn.model.manifest.categories), "probability": drawn.probability}


def _paths(drawn: Sampled) -> Any:
    """(samples, horizon, targets) numbers, or categories."""
    categories = drawn.model.manifest.categories
    return named(drawn.paths.astype(np.int64).tolist(), categories) if categories else drawn.paths


OPERATIONS = (
    Operation(
        "POST", "/v1/sessions/{session_id}/forecast", forecast, "Roll predictions forward; the session is unmoved",
        bodies.ForecastAnswer, body=bodies.Forecast, problems=(400, 404, 409, 410, 413, 415, 422, 500, 503),
    ),
)  # fmt: skip
