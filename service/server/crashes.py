"""Crashes of workers: the stack of each is logged, and a service whose workers crash repeatedly stops.

Owned by gunicorn's master. A crash is a fatal signal that the process caused itself, such as SIGBUS or SIGSEGV. A
worker that was killed from outside is no sign of damage and is always replaced.
"""

import time
from collections import deque
from typing import IO, Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from onward.service.store.contract import RESTORE

MOST, WITHIN_S = 8, 60.0
"""After this many crashes within this time the service stops: their cause evidently persists over restarts."""


class Crashes:
    def __init__(self, store: str) -> None:
        """`store` names the store in messages."""
        self._store, self._given_up = store, False
        self._times: deque[float] = deque(maxlen=MOST)

    def record(self, log: Any, pid: int, trace: IO[bytes], *, timed_out: bool) -> None:
        """Logs the crash of an ended worker and counts it. Raises HaltServer after too many crashes.

        trace: what faulthandler wrote for the worker; empty if it did not crash.
        """
        trace.seek(0)
        text = trace.read().decode(errors="replace")
        trace.close()
        if not text:
            return
        log.error("Worker (pid:%s) was at:\n%s", pid, text)
        if timed_out or self._given_up:
            return
        self._times.append(time.monotonic())
        if len(self._times) == MOST and self._times[-1] - self._times[0] < WITHIN_S:
            self._given_up = True
            raise HaltServer(
                f"{MOST} workers crashed within {WITHIN_S:g} s; the session store {self._store} may be "
                f"damaged: {RESTORE}",
                Arbiter.WORKER_BOOT_ERROR,
            )
