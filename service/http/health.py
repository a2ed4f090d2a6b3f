"""/healthz, /readyz and the index of the service."""

from importlib.metadata import version

from flask import Response

from onward.service.engine.engine import Engine
from onward.service.http import models, response_schemas
from onward.service.http.operations import Operation, json
from onward.service.http.problems import NOT_READY, RequestError


def healthz(engine: Engine) -> Response:
    """Reports that the process answers requests, whatever the state of models and store."""
    del engine
    return json({"status": "ok"})


def readyz(engine: Engine) -> Response:
    """Reports that sessions can be served, and which bundles and sessions are not served.

    Raises StoreUnavailableError if the store does not answer, and RequestError if no model is served.
    """
    live = engine.live_sessions()
    if not engine.models.by_name:
        refused = "; ".join(error.reason for error in engine.models.refused) or "the repository is empty"
        raise RequestError(NOT_READY, f"no model is served: {refused}")
    return json(
        {
            "status": "ready",
            "models": {name: sorted(versions) for name, versions in engine.models.by_name.items()},
            "refused": models.refused(engine),
            "unserved_sessions": engine.models.unserved(live),
        }
    )


def index(engine: Engine) -> Response:
    del engine
    links = {"models": "/v1/models", "sessions": "/v1/sessions", "openapi": "/openapi.json", "ready": "/readyz"}
    return json({"service": "onward", "version": version("onward"), "links": links})


OPERATIONS = (
    Operation("get_index", "GET", "/", index, "The links of the service", response_schemas.Index),
    Operation("get_health", "GET", "/healthz", healthz, "Whether the process is alive", response_schemas.Status),
    Operation(
        "get_readiness",
        "GET",
        "/readyz",
        readyz,
        "Whether the service can serve: a model is open and the store answers",
        response_schemas.Ready,
        problems=(503,),
    ),
)
