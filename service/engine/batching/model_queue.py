"""The waiting items of one model, and the greenlet that runs them batch after batch.

No timer: whatever waits when the model is free runs. Each model has its own, so models share a worker by turns: a batch
in the event loop is short, and a long one is in a thread of its own.
"""

import logging
from collections.abc import Callable
from time import perf_counter

from gevent.event import Event

from onward.service.engine.batching.executor import Executor
from onward.service.engine.batching.scheduler import Scheduler
from onward.service.engine.batching.work_item import Work
from onward.service.engine.event_loop import Turns
from onward.service.errors import AbandonedError, DeadlineError, OnwardError

QUIET, MOST = 0.01, 0.25
"""How long others are let in between two batches, as shares of what a batch took: once nothing comes, and in all."""

log = logging.getLogger(__name__)


class Queue:
    def __init__(
        self, executor: Executor, scheduler: Scheduler[Work], monotonic: Callable[[], float], timeout_s: float
    ) -> None:
        self.executor = executor
        self._scheduler, self._monotonic, self._timeout_s = scheduler, monotonic, timeout_s
        self._wake = Event()

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    def add(self, work: Work) -> None:
        self._scheduler.add(work)
        self._wake.set()

    def drain(self) -> None:
        """Runs what waits, for ever; between batches, others come to their turn."""
        turns = Turns()
        while True:
            self._wake.wait()
            self._wake.clear()
            began = perf_counter()
            while self._run_one():
                took = perf_counter() - began
                turns.take()  # what the batch has ended is answered
                self._count()
                self._let_in(took, turns)
                began = perf_counter()

    def _count(self) -> None:
        try:
            self.executor.count()
        except Exception:
            log.exception("what was committed could not be counted")

    def _let_in(self, took: float, turns: Turns) -> None:
        """Lets others run: whoever was just answered may be back in time for the next batch.

        As long as each turn of the loop brings more to do, it joins; idle turns cost little beside a long batch.
        """
        began = since = now = perf_counter()
        waiting = self._scheduler.waiting
        while now - since <= QUIET * took and now - began <= MOST * took:
            turns.take()
            now = perf_counter()
            if waiting != self._scheduler.waiting:
                waiting, since = self._scheduler.waiting, now

    def _run_one(self) -> bool:
        batch, late = self._scheduler.batch(self._monotonic())
        for work in late:
            work.settle(AbandonedError() if work.call.gone else DeadlineError(self._timeout_s))
        if batch:
            try:
                self.executor.run(batch)
            except Exception as error:
                if not isinstance(error, OnwardError):
                    log.exception("a batch of %d rows failed", len(batch))
                for work in batch:
                    work.settle(error)
            for work in batch:
                (self._scheduler.put_back if work.outcome is None else self._scheduler.finish)(work)
        return bool(batch)
