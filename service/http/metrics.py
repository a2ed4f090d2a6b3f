"""GET /metrics: the metrics of the service, for Prometheus."""

from flask import Response, current_app
from prometheus_client import CONTENT_TYPE_LATEST

from onward.service.engine.engine import Engine
from onward.service.http.operations import Operation


def metrics(engine: Engine) -> Response:
    del engine
    return Response(current_app.extensions["metrics"].text(), content_type=CONTENT_TYPE_LATEST)


OPERATIONS = (
    Operation(
        "get_metrics",
        "GET",
        "/metrics",
        metrics,
        "The accuracy of predictions by model, in Prometheus' text format",
        None,
    ),
)
