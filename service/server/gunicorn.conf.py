"""gunicorn's configuration, from Onward's settings; read by the master, before workers are forked."""

import sys
from pathlib import Path
from typing import Any

from onward.process_exit import INTERRUPTED
from onward.service import model_catalogue, settings
from onward.service.metrics import multiprocess
from onward.service.server.crashes import Crashes
from onward.service.store.opening import redact_uri

_settings = settings.read()
_crashes = Crashes(redact_uri(_settings.store))

wsgi_app = "onward.service.server.wsgi:create()"
bind = _settings.bind
workers = _settings.workers
worker_class = "onward.service.server.worker.Worker"
worker_connections = _settings.connections
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  (a heartbeat file; must not touch a disk)
preload_app = False  # ONNX Runtime sessions and LMDB environments are opened after the fork
keepalive = 10  # seconds; not longer, because a stop also waits for idle connections
graceful_timeout = int(_settings.timeout_s) + 5  # every accepted request is answered
timeout = 30  # seconds; a worker whose event loop is blocked for longer is replaced
control_socket_disable = True
errorlog = "-"


def on_starting(server: Any) -> None:
    """Reads the models once for all workers, and makes the folder of their metrics.

    The folder belongs to this service alone: files that another service left in it would be counted too.
    """
    del server
    model_catalogue.begin(_settings.models)
    multiprocess.begin(worker_tmp_dir)
    from onward.service.server import start_banner  # noqa: F401, PLC0415  (imports what all workers need, before the fork)


def on_reload(server: Any) -> None:
    del server
    model_catalogue.renew(_settings.models)


def child_exit(server: Any, worker: Any) -> None:
    _crashes.record(server.log, worker.pid, worker.trace, timed_out=worker.aborted)


def when_ready(server: Any) -> None:
    stop = server.handle_int

    def interrupted() -> None:
        server.exit_status = INTERRUPTED
        stop()

    server.handle_int, server.exit_status = interrupted, 0


def on_exit(server: Any) -> None:
    multiprocess.end()
    if server.exit_status:
        sys.exit(server.exit_status)


def post_worker_init(worker: Any) -> None:
    if worker.age == 1:
        from onward.service.server import start_banner  # noqa: PLC0415  (as above)

        try:
            print(start_banner.text(_settings, worker.wsgi, worker.sockets[0].getsockname()), flush=True)  # noqa: T201  (the output of `onward serve`)
        except OSError as error:  # a full disk or a closed pipe is no reason not to serve
            worker.log.warning("the start banner cannot be written: %s", error.strerror)
