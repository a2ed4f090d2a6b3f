"""What gunicorn calls in each worker process, after the fork: `onward.service.server.wsgi:create()`."""

import logging
import sys

from flask import Flask
from gunicorn.arbiter import Arbiter

from onward.service import model_catalogue, settings
from onward.service.app import create_app, create_engine
from onward.service.engine.engine import Engine
from onward.service.errors import ServiceError
from onward.service.metrics.telemetry import Telemetry
from onward.service.model_catalogue import DisagreementError
from onward.service.settings import SettingsError

log = logging.getLogger("gunicorn.error")


def create() -> Flask:
    """The application with its engine started. `close` it at the end of the process."""
    try:
        told, telemetry = settings.read(), Telemetry()
        engine = create_engine(told, model_catalogue.current(), telemetry)
    except DisagreementError as error:
        log.critical("this worker cannot start, the others serve on: %s", error)
        sys.exit(1)  # the master starts another
    except (SettingsError, ServiceError) as error:
        log.critical("cannot start: %s", error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)  # the master gives up too, instead of starting workers for ever
    engine.start(flush_s=told.flush_s, sweep_s=told.sweep_s)
    app = create_app(told, engine, telemetry)
    app.extensions["onward"] = engine
    return app


def engine_of(app: Flask) -> Engine:
    engine = app.extensions["onward"]
    assert isinstance(engine, Engine)
    return engine
