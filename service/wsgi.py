"""What gunicorn calls in each worker process, after the fork: `service.wsgi:create()`."""

from flask import Flask

from service import settings
from service.app import create_app, create_engine
from service.engine.engine import Engine


def create() -> Flask:
    """The application with its engine started. `close` it at the end of the process."""
    told = settings.read()
    engine = create_engine(told)
    engine.start(flush_s=told.flush_s, sweep_s=told.sweep_s)
    app = create_app(told, engine)
    app.extensions["onward"] = engine
    return app


def engine_of(app: Flask) -> Engine:
    engine = app.extensions["onward"]
    assert isinstance(engine, Engine)
    return engine
