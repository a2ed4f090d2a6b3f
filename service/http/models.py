"""/v1/models: the models that are served, and predictions without a session."""

from typing import Any

from flask import Response, request

from onward.model.listed_rankings import listed_outputs
from onward.model.outputs import forecast_fields, step_fields
from onward.model.runner import StepModel
from onward.service.engine.engine import Engine
from onward.service.engine.input_parsing import as_service_errors
from onward.service.errors import Fault, InvalidInputError
from onward.service.http import request_body, request_schemas, response_schemas
from onward.service.http.connection import client
from onward.service.http.operations import LISTED_ONLY, Operation, Query, json, wants_listed_only
from onward.service.http.session_ids import TENANT


def index(engine: Engine) -> Response:
    live = engine.live_sessions()
    models = [_info(engine, versions[max(versions)], live) for _, versions in sorted(engine.models.by_name.items())]
    return json({"models": models, "refused": refused(engine)})


def refused(engine: Engine) -> list[dict[str, str]]:
    """The bundles that failed verification, each with the reason."""
    return [{"file": "/".join(error.file.parts[-3:]), "reason": error.reason} for error in engine.models.refused]


def show(engine: Engine, model: str) -> Response:
    version = request.args.get("version")
    if version is not None and not version.isdecimal():
        raise InvalidInputError(Fault("version", f"expected a whole number, not {version[:40]!r}"))
    chosen = engine.models.named(model, None if version is None else int(version))
    manifest = chosen.manifest
    return json(
        _info(engine, chosen, engine.live_sessions())
        | {
            "version": manifest.version,
            "inputs": [feature.model_dump() for feature in manifest.features],
            "head": manifest.head.model_dump(exclude={"last"}),
            "data": manifest.data and manifest.data.model_dump(),
            "exact": manifest.exact,
            "dtype": manifest.dtype,
            "metrics": manifest.metrics,
            "provenance": manifest.provenance,
            "sha256": manifest.sha256,
            "state_bytes": chosen.layout.dtype.itemsize,
        }
    )


def predict(engine: Engine, model: str) -> Response:
    body = request_body.read(request_schemas.Predict, engine)
    chosen = engine.models.named(model, body.version)
    sequences = []
    listed_only = wants_listed_only()
    predicted = engine.predict(
        model, body.version, body.inputs, body.horizon, listed_only=listed_only, has_left=client()
    )
    for sequence in predicted:
        outputs, forecast = sequence.outputs, sequence.forecast
        content = step_fields(chosen, listed_outputs(chosen, outputs) if listed_only else outputs)
        if forecast is not None:
            content["forecast"] = forecast_fields(chosen, listed_outputs(chosen, forecast) if listed_only else forecast)
        sequences.append(content)
    return json({"model": model, "version": chosen.manifest.version, "sequences": sequences})


def step(engine: Engine, model: str) -> Response:
    body = request_body.read(request_schemas.HeldStep, engine)
    listed_only = wants_listed_only()
    result = engine.stateless.step(TENANT, model, body.version, body.inputs, body.state, has_left=client())
    outputs = result.outputs
    if listed_only:
        with as_service_errors():
            outputs = listed_outputs(result.model, outputs)
    return json({"step": result.step, **step_fields(result.model, outputs), "state": result.state})


def _info(engine: Engine, model: StepModel, live: dict[tuple[str, int], int]) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "name": manifest.name,
        "versions": sorted(engine.models.by_name[manifest.name]),
        "task": manifest.task,
        "description": manifest.description,
        "features": manifest.feature_names,
        "targets": manifest.head.targets,
        "live_sessions": sum(count for (name, _), count in live.items() if name == manifest.name),
    }


OPERATIONS = (
    Operation(
        "list_models", "GET", "/v1/models", index, "The models that are served, and the refused bundles",
        response_schemas.ModelList,
    ),
    Operation(
        "get_model", "GET", "/v1/models/{model}",
        show, "One model: features, head, accuracy, provenance", response_schemas.ModelDetail,
        query=(Query("version", int, "the highest if left out"),), problems=(404, 422),
    ),
    Operation(
        "predict_model", "POST", "/v1/models/{model}/predict",
        predict, "Predictions for whole sequences, without a session",
        response_schemas.PredictAnswer, body=request_schemas.Predict, problems=(400, 404, 413, 415, 422, 503),
        query=(LISTED_ONLY,),
    ),
    Operation(
        "step_model", "POST", "/v1/models/{model}/step",
        step, "A step without a session: the client holds the state, encrypted",
        response_schemas.HeldAnswer, body=request_schemas.HeldStep,
        problems=(400, 404, 409, 410, 413, 415, 422, 501, 503), query=(LISTED_ONLY,),
    ),
)  # fmt: skip
