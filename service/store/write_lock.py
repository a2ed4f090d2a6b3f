"""The lock under which one process at a time writes to an LMDB store.

LMDB has its own write lock, but waits for it without a limit and blocks the whole thread: a process that is stopped
within a transaction (SIGSTOP, a debugger, a disk that hangs) would block every other process. This lock is taken first,
so that LMDB's is always free, and the wait for it is limited. The kernel releases it when the process that has it dies.
"""

import fcntl
import time
from typing import Self

from onward.service.errors import StoreUnavailableError

WAIT_S = 2.0
"""Longer than any transaction takes, including those that write many sessions and wait for a disk."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 50e-6, 0.02


class WriteLock:
    """A context manager. In a worker, the event loop runs during a wait, since gevent has patched `time.sleep`."""

    def __init__(self, file: int) -> None:
        """`file` is an open file descriptor, which the caller closes."""
        self._file, self._overdue = file, False

    def __enter__(self) -> Self:
        """Raises StoreUnavailableError if another process has the lock: after WAIT_S, and from then on at once."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.wait(0.0 if self._overdue else WAIT_S)
        self._overdue = False
        return self

    def __exit__(self, *error: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def wait(self, seconds: float) -> None:
        """Takes the lock. Raises StoreUnavailableError if that is not possible within `seconds`."""
        deadline, pause = time.monotonic() + seconds, FIRST_PAUSE_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                return
        self._overdue = True
        raise StoreUnavailableError(
            f"another process has been in a write to it for {WAIT_S:g} s or more; if that process is stopped, "
            "continue or kill it"
        )
