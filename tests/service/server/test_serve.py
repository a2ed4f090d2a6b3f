"""The start of the service, apart from what `tests/e2e/` shows on the whole."""

import runpy
import sys
from pathlib import Path

import pytest
from gunicorn.errors import HaltServer

from onward.service.server.serve import serve


def test_a_second_worker_that_fails_does_not_change_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Gunicorn's master halts with the first worker's status, also if another worker fails while it halts."""

    def halted(*_: object, **__: object) -> None:
        raise HaltServer("Worker failed to boot.", 3)

    monkeypatch.setenv("ONWARD_STORE", f"lmdb://{tmp_path}/store")
    monkeypatch.setenv("ONWARD_BIND", "127.0.0.1:0")
    monkeypatch.setattr(sys, "argv", ["onward"])
    monkeypatch.setattr(runpy, "run_module", halted)
    with pytest.raises(SystemExit) as stopped:
        serve()
    assert stopped.value.code == 3
