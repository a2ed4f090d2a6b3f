"""The write lock of the LMDB store: a process that is stopped while it writes does not block other processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from onward.service.errors import StoreUnavailableError
from onward.service.store import write_lock
from onward.service.store.contract import Change
from onward.service.store.lmdb import LmdbStore
from tests.contracts.test_stores import NOW, key, session
from tests.helpers.reference_loop import ROOT

WRITER = """
import os, signal, sys
from pathlib import Path
from onward.service.store.lmdb import LmdbStore
store = LmdbStore(Path(sys.argv[1]))
store._write(lambda txn: os.kill(os.getpid(), signal.SIGSTOP), 0.0)
print("over", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stops in the middle of a write transaction."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
    ) as child:  # fmt: skip
        yield child
        child.kill()


@pytest.mark.parametrize("ends", [signal.SIGCONT, signal.SIGKILL])
def test_a_stopped_writer_is_waited_for_once(
    tmp_path: Path, writer: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, ends: signal.Signals
) -> None:
    """After one wait, writes are refused at once and reads go on; when the writer goes on or dies, writes succeed."""
    store = LmdbStore(tmp_path)
    store.commit_many([Change(key("a"), None, session(1))])
    os.waitid(os.P_PID, writer.pid, os.WSTOPPED)
    change = Change(key("b"), None, session(1))
    started_at = monotonic()
    with pytest.raises(StoreUnavailableError, match="if that process is stopped"):
        store.commit_many([change])
    assert monotonic() - started_at >= write_lock.WAIT_S
    monkeypatch.setattr(write_lock, "WAIT_S", 1e9)  # a second wait would never end
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            store.commit_many([change])
    assert store.load_many([key("a"), key("b")]) == [session(1), None]
    assert store.count() == {("m", 1): 1}
    store.flush()
    writer.send_signal(ends)
    if ends == signal.SIGCONT:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"over\n"
    else:
        writer.wait()
    assert store.commit_many([change]) == [True]
    assert store.sweep(NOW + 1000) == 2
    store.close()
