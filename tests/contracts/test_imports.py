"""Imports between the packages go one way, and no command loads a package that it does not need."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.reference_loop import ROOT


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after the statement."""
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(output.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import onward.service.app",
        "import onward.service.server.wsgi",
        "import onward.model.repository",
        "import onward",
    ],
)
def test_serving_loads_nothing_of_training(statement: str) -> None:
    """The service runs where torch, onnx and polars are not installed."""
    assert not loaded(statement) & {"torch", "onnx", "polars", "onward.training"}


@pytest.mark.parametrize(
    "statement", ["import onward", "import onward.service.app", "import onward.service.server.serve"]
)
def test_serving_loads_nothing_of_the_client(statement: str) -> None:
    """`import onward` is cheap, and the service runs where httpx is not installed."""
    assert not loaded(statement) & {"onward.client", "httpx"}


def test_a_client_needs_no_models_and_a_bundle_no_httpx() -> None:
    """The client loads no ONNX Runtime, and a local bundle no httpx."""
    assert "onnxruntime" not in loaded("import onward; onward.Client")
    assert not loaded("import onward; onward.load") & {"httpx", "websockets", "onward.service"}


def test_a_missing_extra_is_named() -> None:
    """The error contains the command that installs the extra."""
    code = "import sys; sys.modules['httpx'] = None; import onward; onward.load; onward.Client"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "ImportError: onward.Client needs httpx: pip install 'onward[client]'" in done.stderr


@pytest.mark.parametrize(
    "statement", ["import onward.service.server.worker", "import onward.service.server.start_banner"]
)
def test_gunicorns_master_does_not_load_onnx_runtime(statement: str) -> None:
    """ONNX Runtime starts a thread, which a fork does not copy: workers would abort at their end."""
    assert "onnxruntime" not in loaded(statement)


UNPATCHED_NAMES = """
import sys
import gunicorn.app.wsgiapp, onward.service.server.start_banner
import onward.service.server.fast_path, onward.service.server.worker
before = dict(sys.modules)
from gevent import monkey
monkey.patch_all()
replaced = {
    id(value): f"{module}.{name}"
    for module, values in monkey.saved.items()
    for name, value in values.items()
    if callable(value)
}
for module, loaded in before.items():
    if module.partition(".")[0] not in {*sys.stdlib_module_names, "gevent"}:
        for name, value in list(vars(loaded).items()):
            if id(value) in replaced:
                print(module, replaced[id(value)])
"""
HARMLESS = {
    "click.globals threading.local", "numpy._core.arrayprint threading.get_ident",  # never used by another greenlet
    "jinja2.utils threading.Lock", "prometheus_client.metrics threading.Lock", "werkzeug.routing.map threading.Lock",
    "prometheus_client.registry threading.Lock", "prometheus_client.values threading.Lock",  # held without waiting
    "onward.service.http.connection select.poll",  # intended
}  # fmt: skip


def test_gunicorns_master_has_no_unpatched_name_of_gevent() -> None:
    """Workers are patched after the master's imports; a wait through an unpatched name would stop all greenlets."""
    done = subprocess.run(
        [sys.executable, "-c", UNPATCHED_NAMES], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.splitlines()) <= HARMLESS


PATCHED = """
import importlib.metadata, socket
from gevent import events
from onward.service.server.worker import Worker
asked, notified = [], []
importlib.metadata.entry_points = lambda **group: asked.append(group) or ()
before = events.notify_and_call_entry_points
events.subscribers.append(notified.append)
worker = object.__new__(Worker)
worker.sockets = []
worker.patch()
import gevent.socket
print(asked, len(notified) > 0, events.notify_and_call_entry_points is before, socket.socket is gevent.socket.socket)
"""


def test_a_worker_is_patched_without_asking_every_package() -> None:
    """Gevent would read the metadata of each package for plugins 25 times, which took a third of a worker's start."""
    done = subprocess.run([sys.executable, "-c", PATCHED], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[] True True True\n", "")


def test_import_contracts_are_met() -> None:
    """Import-linter finds no broken contract of pyproject.toml."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout
