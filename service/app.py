"""The composition root: makes the engine and the Flask application from the settings. Nothing is made at import."""

from typing import TYPE_CHECKING

from flask import Flask

from onward.service.engine.engine import Engine, Limits
from onward.service.http import forecasts, health, metrics, models, openapi, operations, problems, sessions, steps
from onward.service.http.reply import Empty
from onward.service.metrics.prometheus import Metrics
from onward.service.model_catalogue import Catalogue
from onward.service.settings import Settings
from onward.service.store.opening import open_store
from onward.service.websocket import endpoint

if TYPE_CHECKING:
    from onward.service.store.signed_tokens import SignedTokens

OPERATIONS = (
    *health.OPERATIONS, *metrics.OPERATIONS, *models.OPERATIONS, *sessions.OPERATIONS, *steps.OPERATIONS,
    *endpoint.OPERATIONS, *forecasts.OPERATIONS,
)  # fmt: skip


def create_engine(settings: Settings, catalogue: Catalogue, observer: Metrics | None = None) -> Engine:
    """The engine over the opened models and store. Call it in the process that serves, after any fork.

    Raises DisagreementError, StoreUnavailableError.
    """
    limits = Limits(
        ttl_s=settings.ttl_s,
        timeout_s=settings.timeout_s,
        max_steps=settings.max_steps,
        max_horizon=settings.max_horizon,
        max_sequences=settings.max_sequences,
        max_waiting=settings.max_waiting,
        exact=settings.exact,
        history=settings.history,
        accuracy=settings.accuracy,
        state_age_s=settings.state_age_s,
    )
    opened = catalogue.open(threads=settings.threads)
    store = open_store(settings.store, fsync=settings.fsync == "always")
    return Engine(opened, store, limits, seal=_seal(settings), observer=observer, is_superseded=catalogue.is_superseded)


def _seal(settings: Settings) -> "SignedTokens | None":
    if settings.secret is None:
        return None
    from onward.service.store.signed_tokens import SignedTokens  # noqa: PLC0415  (4 MB of memory that only those who set a secret need)

    return SignedTokens(settings.secret.get_secret_value().split(","))


def create_app(settings: Settings, engine: Engine, observer: Metrics | None = None) -> Flask:
    """The Flask application over a started engine, which the caller closes. `observer` is the engine's own."""
    app = Flask("onward", static_folder=None)
    app.response_class = Empty  # for the responses that Flask makes itself, to OPTIONS
    app.config["MAX_CONTENT_LENGTH"], app.config["FAST_PATH"] = settings.max_body_bytes, settings.lane
    app.extensions["metrics"] = observer or Metrics()
    problems.install(app)
    operations.install(app, engine, OPERATIONS)
    openapi.install(app, OPERATIONS)
    return app
