"""A native thread beside gevent's loop, for work that blocks in the operating system.

gevent's own thread pool leaves its threads running when the interpreter ends, and greenlet then aborts the process; this
thread ends before `close` returns. It uses the locks that lie below gevent's patches and runs no greenlets.
"""

import logging
from collections.abc import Callable
from typing import Any

from gevent import monkey

log = logging.getLogger(__name__)

_allocate_lock: Callable[[], Any] = monkey.get_original("_thread", "allocate_lock")
_start_new_thread: Callable[..., Any] = monkey.get_original("_thread", "start_new_thread")


class Every:
    """Calls `work` every `seconds` in a thread of its own, from `start` until `close`."""

    def __init__(self, seconds: float, work: Callable[[], object]) -> None:
        self._seconds, self._work = seconds, work
        self._stop, self._over = _allocate_lock(), _allocate_lock()
        self._started = False

    def start(self) -> None:
        self._stop.acquire()
        self._over.acquire()
        self._started = True
        _start_new_thread(self._run, ())

    def close(self) -> None:
        """Returns once the work under way is done and the thread has left it. Blocks the loop for as long."""
        if self._started:
            self._started = False
            self._stop.release()
            self._over.acquire()

    def _run(self) -> None:
        try:
            while not self._stop.acquire(timeout=self._seconds):
                try:
                    self._work()
                except Exception:
                    log.exception("background work failed; it will be tried again in %g s", self._seconds)
        finally:
            self._over.release()
