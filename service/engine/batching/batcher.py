"""Batchers: one per model, which collects waiting work items and runs them in batches, one batch after another.

No timer: items that wait when the model is free run at once. Each model has a batcher and a greenlet of its own, so the
models share a worker by turns: a batch in the event loop is short, and a long one runs in a native thread.

`Batchers` owns those of all models, how many items may wait in them altogether, and whether the clients of these items
are still connected. Knows nothing of use-cases.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import perf_counter

import numpy as np
from gevent.event import Event
from numpy.typing import NDArray

from onward.model.runner import StepModel
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.scoring.accuracy import Accuracy
from onward.model.scoring.surprise import SurpriseMeans
from onward.model.state import State
from onward.service.engine.batching import cost
from onward.service.engine.batching.executor import Executor
from onward.service.engine.batching.scheduler import Scheduler
from onward.service.engine.batching.work_item import PendingCall, PendingRequest, WorkItem, WorkResult
from onward.service.engine.event_loop import LoopTurns
from onward.service.engine.observer import Observer
from onward.service.errors import AbandonedError, DeadlineError, OverloadedError, ServiceError
from onward.service.store.contract import Store
from onward.service.store.record import Record

DISCONNECT_CHECK_S = 2.0
"""Seconds between two checks of which clients have disconnected; calls younger than this are not checked."""
IDLE_SHARE, PAUSE_SHARE = 0.01, 0.25
"""Limits of the pause between two batches, as shares of the last batch's time: for how long nothing new has come, and
in all.
"""

_RAISED = AbandonedError()
"""The outcome of an item after its error was raised, so that the item stays settled."""

log = logging.getLogger(__name__)


class Batcher:
    """The waiting items of one model, and the loop that runs them."""

    def __init__(
        self, executor: Executor, scheduler: Scheduler[WorkItem], monotonic: Callable[[], float], timeout_s: float
    ) -> None:
        self.executor = executor
        self._scheduler, self._monotonic, self._timeout_s = scheduler, monotonic, timeout_s
        self._wake = Event()

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    def submit(self, item: WorkItem) -> None:
        """Adds an item to those that wait. It is settled in a later turn of the event loop, whatever happens."""
        self._scheduler.add(item)
        self._wake.set()

    def run_forever(self) -> None:
        """Runs the items that wait, batch after batch; between two batches other greenlets have their turn."""
        turns = LoopTurns()
        while True:
            self._wake.wait()
            self._wake.clear()
            started = perf_counter()
            while self._run_batch():
                batch_s = perf_counter() - started
                turns.take()  # the calls that the batch has ended are answered
                self._count()
                self._pause(batch_s, turns)
                started = perf_counter()

    def _count(self) -> None:
        try:
            self.executor.count()
        except Exception:
            log.exception("the committed steps could not be counted")

    def _pause(self, batch_s: float, turns: LoopTurns) -> None:
        """Lets other greenlets run, so that clients which were just answered can be back in time for the next batch.

        The pause goes on as long as new items keep coming; idle turns of the loop cost little beside a long batch.
        """
        started = last_arrival = now = perf_counter()
        waiting = self._scheduler.waiting
        while now - last_arrival <= IDLE_SHARE * batch_s and now - started <= PAUSE_SHARE * batch_s:
            turns.take()
            now = perf_counter()
            if waiting != self._scheduler.waiting:
                waiting, last_arrival = self._scheduler.waiting, now

    def _run_batch(self) -> bool:
        """Runs one batch. Returns False if nothing waits."""
        batch, dropped = self._scheduler.batch(self._monotonic())
        for item in dropped:
            item.settle(AbandonedError() if item.call.abandoned else DeadlineError(self._timeout_s))
        if batch:
            try:
                self.executor.run(batch)
            except Exception as error:
                if not isinstance(error, ServiceError):
                    log.exception("a batch of %d rows failed", len(batch))
                for item in batch:
                    item.settle(error)
            for item in batch:
                (self._scheduler.put_back if item.outcome is None else self._scheduler.finish)(item)
        return bool(batch)


class Batchers:
    """The batchers of all models of a worker, and the calls of clients that wait for their items."""

    def __init__(
        self,
        models: Iterable[StepModel],
        store: Store,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        *,
        timeout_s: float,
        max_waiting: int,
        exact: bool,
        keep: int,
        accuracy: bool,
        observer: Observer | None,
    ) -> None:
        """`clock` gives seconds since 1970 UTC and dates records; `monotonic` times calls.

        max_waiting: the most items of all models that may wait. The other parameters are those of `Executor`.
        """
        self._monotonic, self._timeout_s, self._max_waiting, self._keep = monotonic, timeout_s, max_waiting, keep
        self.by_model: dict[StepModel, Batcher] = {}
        for model in models:
            costs = cost.measure(model)
            scores = Accuracy(model, enabled=accuracy)
            executor = Executor(model, costs, store, clock, scores, observer, exact=exact, keep=keep)
            scheduler: Scheduler[WorkItem] = Scheduler(cost.MOST_ROWS, costs.cells)
            self.by_model[model] = Batcher(executor, scheduler, monotonic, timeout_s)
        self._items_of: dict[PendingCall, int] = {}  # the number of items of each call that waits
        self._waiting = self._standalone_items = 0

    def now(self) -> float:
        """Returns the time on the clock that times calls."""
        return self._monotonic()

    def accuracy(self, model: StepModel) -> Accuracy:
        return self.by_model[model].executor.accuracy

    def call(
        self,
        items: int,
        *,
        needs_all: bool = False,
        has_left: Callable[[], bool] | None = None,
        started_at: float | None = None,
    ) -> PendingCall:
        """Returns a call that will wait for that many items. Raises OverloadedError if there is no room for them.

        started_at: when the client began to wait; None: now.
        """
        if self._waiting + items > self._max_waiting:
            raise OverloadedError(self._waiting)
        started_at = self._monotonic() if started_at is None else started_at
        return PendingCall(items, started_at, needs_all=needs_all, has_left=has_left)

    def session_item(
        self,
        model: StepModel,
        requests: Sequence[PendingRequest],
        call: PendingCall,
        key: bytes,
        first_record: Record | None = None,
    ) -> WorkItem:
        """Returns an item that advances the session under `key` by these requests, and commits.

        first_record: the record with which the session begins if there is none; None: the session must exist.
        """
        item = self._item(model, sum(pending.length for pending in requests), call, key)
        item.requests, item.first_record = requests, first_record
        if self._keep:
            item.trail = deque(maxlen=self._keep + 2)  # so that one entry is `keep` steps old, however short chunks are
        return item

    def standalone_item(
        self,
        model: StepModel,
        inputs: NDArray[np.float32],
        call: PendingCall,
        state: State,
        horizon: int = 0,
        feed: RolloutInputs | None = None,
        accuracy: bytes | None = None,
        surprise: SurpriseMeans | None = None,
    ) -> WorkItem:
        """Returns an item of no session: inputs (steps, features) from state (1,) on, then `horizon` steps fed back.

        accuracy, surprise: the statistics so far; None: they are not counted.
        """
        self._standalone_items += 1
        key = self._standalone_items.to_bytes(8)  # the keys of sessions contain a / and are longer
        item = self._item(model, len(inputs), call, key)
        item.inputs, item.horizon, item.feed, item.state = (
            inputs,
            horizon,
            feed or RolloutInputs(model),
            state.tobytes(),
        )
        item.accuracy, item.surprise = accuracy if self.accuracy(model).enabled else None, surprise
        return item

    def run(self, call: PendingCall, items: Sequence[WorkItem]) -> Sequence[WorkItem]:
        """Submits the items and waits for the call to end.

        Every call ends: the batchers settle an item that fails, and one that is late when its turn comes.
        """
        self._items_of[call] = len(items)
        self._waiting += len(items)
        try:
            for item in items[: cost.MOST_ROWS]:
                self.by_model[item.model].submit(item)
            if len(items) > cost.MOST_ROWS:
                call.next_item = partial(self._submit_next, call, iter(items[cost.MOST_ROWS :]))
            call.wait()
        finally:
            call.next_item = None
            call.abandoned = True  # after the failure of an item that was needed, nobody waits for the rest
            self._waiting -= self._items_of.pop(call)
        return items

    def _submit_next(self, call: PendingCall, rest: Iterator[WorkItem]) -> None:
        """Submits the next item of a long call.

        A call has at most as many items in the queues as a batch has rows, so that other calls have their turn.
        """
        item = next(rest, None)
        if item is None:
            call.next_item = None
        else:
            self.by_model[item.model].submit(item)

    def run_all(self, call: PendingCall, items: Sequence[WorkItem]) -> list[WorkResult]:
        """Runs the items of a call that needs all of them. Raises the error of the first item that failed."""
        self.run(call, items)
        failed = next((item for item in items if isinstance(item.outcome, Exception)), None)
        return [result_of(item) for item in ([failed] if failed is not None else items)]

    def run_standalone(
        self,
        model: StepModel,
        inputs: NDArray[np.float32],
        state: State,
        *,
        accuracy: bytes | None = None,
        surprise: SurpriseMeans | None = None,
        has_left: Callable[[], bool] | None = None,
        started_at: float | None = None,
    ) -> WorkResult:
        """Runs an item of no session, see `standalone_item` and `call`. Raises the error if it failed."""
        call = self.call(1, has_left=has_left, started_at=started_at)
        item = self.standalone_item(model, inputs, call, state, accuracy=accuracy, surprise=surprise)
        self.run(call, [item])
        return result_of(item)

    def mark_disconnected_calls(self) -> None:
        """Marks the calls whose clients have closed their connections, so that items which have not run are dropped."""
        started_before = self._monotonic() - DISCONNECT_CHECK_S
        for call in self._items_of:
            if call.has_left is not None and call.started_at < started_before and call.has_left():
                call.abandoned = True

    def _item(self, model: StepModel, length: int, call: PendingCall, key: bytes) -> WorkItem:
        return WorkItem(
            model, length, call.started_at + self._timeout_s, self.by_model[model].executor.chunk, call, key
        )


def result_of(item: WorkItem) -> WorkResult:
    """Returns the result of a settled item. Raises its error if it failed.

    The error is taken out of the item first, because the frames that the error passes through refer to the item: the
    two would form a reference cycle.
    """
    if isinstance(item.outcome, Exception):
        error, item.outcome = item.outcome, _RAISED
        try:
            raise error
        finally:
            del error  # this frame is one of those that the error refers to
    assert item.outcome is not None
    return item.outcome
