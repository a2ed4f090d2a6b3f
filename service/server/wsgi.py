"""The entry point that gunicorn calls in each worker after the fork: `onward.service.server.wsgi:create()`."""

import logging
import sys

from flask import Flask
from gunicorn.arbiter import Arbiter

from onward.service import model_catalogue, settings
from onward.service.app import create_app, create_engine
from onward.service.engine.engine import Engine
from onward.service.errors import ServiceError
from onward.service.metrics.prometheus import Metrics
from onward.service.model_catalogue import DisagreementError
from onward.service.settings import SettingsError

log = logging.getLogger("gunicorn.error")


def create() -> Flask:
    """The application with its engine started. The worker closes the engine at its end."""
    try:
        configured, metrics = settings.read(), Metrics()
        engine = create_engine(configured, model_catalogue.current(), metrics)
    except DisagreementError as error:
        log.critical("this worker cannot start, other workers continue to serve: %s", error)
        sys.exit(1)  # the master starts another
    except (SettingsError, ServiceError) as error:
        log.critical("cannot start: %s", error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)  # the master exits too, instead of restarting workers for ever
    engine.start(flush_s=configured.flush_s, sweep_s=configured.sweep_s)
    app = create_app(configured, engine, metrics)
    app.extensions["onward"] = engine
    return app


def engine_of(app: Flask) -> Engine:
    engine = app.extensions["onward"]
    assert isinstance(engine, Engine)
    return engine
