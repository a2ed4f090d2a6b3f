"""`onward serve`: checks what can be checked, then becomes gunicorn."""

import runpy
import sys
from pathlib import Path

from model.manifest import BundleError
from model.repository import bundles
from service import settings
from service.settings import SettingsError


def serve() -> None:
    """Becomes gunicorn's master, until it ends. Exits 1 with a message where it could not serve."""
    try:
        told = settings.read()
        found = list(bundles(told.models))
    except (SettingsError, BundleError) as error:
        sys.exit(f"onward: {error}")
    if not found:
        sys.exit(f"onward: {told.models}: no bundle <name>/<version>/ is in it; `onward train` makes one")
    configuration = Path(__file__).with_name("gunicorn.conf.py")
    sys.argv[1:] = ["--config", str(configuration)]
    runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)  # `python -m gunicorn`, without a second start
