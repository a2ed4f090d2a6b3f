"""`onward serve`: checks settings, models, address and store, then becomes gunicorn."""

import errno
import os
import runpy
import socket
import sys
from pathlib import Path

from gunicorn.errors import HaltServer
from gunicorn.util import parse_address

from onward.model.errors import BundleError
from onward.model.repository import bundles
from onward.service import settings
from onward.service.errors import StoreUnavailableError
from onward.service.settings import SettingsError
from onward.service.store import opening


def serve() -> None:
    """Runs gunicorn's master until it ends. Exits with status 1 and a message if the service cannot start."""
    try:
        configured = settings.read()
        found = list(bundles(configured.models))
    except (SettingsError, BundleError) as error:
        sys.exit(f"onward: {error}")
    if not found:
        sys.exit(f"onward: {configured.models}: contains no bundle <name>/<version>/; `onward train` makes one")
    if refusal := _bind_refusal(configured.bind):
        sys.exit(f"onward: {refusal}")
    try:
        opening.probe_lmdb(configured.store)
    except StoreUnavailableError as error:
        sys.exit(f"onward: the session store cannot be opened: {error.why}")
    configuration = Path(__file__).with_name("gunicorn.conf.py")
    sys.argv[1:] = ["--config", str(configuration)]
    try:
        runpy.run_module(
            "gunicorn", run_name="__main__", alter_sys=True
        )  # `python -m gunicorn`, without a second start
    except HaltServer as halt:  # another worker failed to start while the master was ending because of the first one
        sys.exit(halt.exit_status)


def _bind_refusal(bind: str) -> str | None:
    """The reason why the service cannot listen on the address, and what to do; None if it can.

    gunicorn would retry for five seconds and report less.
    """
    address = parse_address(bind)
    if not isinstance(address, tuple):  # a Unix socket, which gunicorn makes anew
        return None
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return (
                f"{bind} is in use by another process, perhaps by another `onward serve`; stop that one, or set "
                f"ONWARD_BIND={host if ':' not in host else f'[{host}]'}:{port + 1} (port 0 takes any free one)"
            )
        return f"ONWARD_BIND={bind}: cannot listen there: {os.strerror(error.errno) if error.errno else error}"
    return None
