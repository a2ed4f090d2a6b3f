"""Batchers: one per model, which collects waiting rows and runs them in batches, one batch after another.

No timer: rows that wait when the model is free run at once. Each model has a batcher and a greenlet of its own, so the
models share a worker by turns: a batch in the event loop is short, and a long one runs in a native thread. A row costs
no switch of greenlets: all rows that one turn of the event loop has brought are one batch, whose greenlet settles them.

`Batchers` owns those of all models, how many rows may wait in them altogether, and whether the clients of these rows
are still connected. Knows nothing of use-cases.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import perf_counter

import gevent

from onward.model.inputs import InputArray
from onward.model.runner import StepModel
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.scoring.accuracy import Accuracy
from onward.model.scoring.surprise import SurpriseMeans
from onward.model.state import State
from onward.service.engine.batching import cost
from onward.service.engine.batching.batch_row import (
    BatchRow,
    Caller,
    PendingCall,
    PendingRequest,
    Progress,
    StandaloneResult,
)
from onward.service.engine.batching.executor import Executor
from onward.service.engine.batching.scheduler import Scheduler
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

SHORT_BATCH_S = 0.001
"""No pause follows a shorter batch: the next turn of the event loop costs less than what it could gain."""

_RAISED = AbandonedError()
"""The outcome of a row after its error was raised, so that the row stays settled."""

log = logging.getLogger(__name__)


class Batcher:
    """The waiting rows of one model, and the greenlet that runs them."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler[BatchRow],
        backlog: "Backlog",
        monotonic: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self.executor, self.scheduler = executor, scheduler
        self._running: Sequence[BatchRow] = ()
        self._backlog, self._monotonic, self._timeout_s = backlog, monotonic, timeout_s
        self._wake: Callable[[], object] | None = None
        """Has the greenlet run in the next turn of the event loop; None while it runs."""

    def submit(self, row: BatchRow) -> None:
        """Adds a row to those that wait. It is settled in a later turn of the event loop, whatever happens.

        All rows that are submitted in one turn of the loop can share a batch.
        """
        self.scheduler.add(row)
        self._backlog.rows += 1
        if self._wake is not None:
            self._wake()
            self._wake = None

    def unfinished(self) -> list[BatchRow]:
        """Returns the rows that wait, and those of the batch that runs at present, for example in a native thread."""
        return [*self.scheduler.items(), *self._running]

    def run_forever(self) -> None:
        """Runs the rows that wait, batch after batch; between two batches other greenlets have their turn."""
        hub = gevent.get_hub()
        wake = partial(hub.loop.run_callback, gevent.getcurrent().switch)
        turns = LoopTurns()
        while True:
            if not self.scheduler.waiting:
                self._wake = wake
                hub.switch()
            started = perf_counter()
            self._run_batch()
            batch_s = perf_counter() - started
            hub.loop.run_callback(self._count)  # after the greenlets that the batch has woken
            if batch_s > SHORT_BATCH_S:
                self._pause(batch_s, turns)
            elif self.scheduler.waiting:
                turns.take()

    def _count(self) -> None:
        try:
            self.executor.count()
        except Exception:
            log.exception("the committed steps could not be counted")

    def _pause(self, batch_s: float, turns: LoopTurns) -> None:
        """Lets other greenlets run, so that clients which were just answered can be back in time for the next batch.

        The pause goes on as long as new rows keep coming; idle turns of the loop cost little beside a long batch.
        """
        started = last_arrival = now = perf_counter()
        waiting = self.scheduler.waiting
        while now - last_arrival <= IDLE_SHARE * batch_s and now - started <= PAUSE_SHARE * batch_s:
            turns.take()
            now = perf_counter()
            if waiting != self.scheduler.waiting:
                waiting, last_arrival = self.scheduler.waiting, now

    def _run_batch(self) -> None:
        batch, dropped = self.scheduler.batch(self._monotonic())
        for row in dropped:
            row.settle(AbandonedError() if row.call.abandoned else DeadlineError(self._timeout_s))
        finished, self._running = len(dropped), batch
        try:
            self.executor.run(batch)
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.exception("a batch of %d rows failed", len(batch))
            for row in batch:
                row.settle(error)
        self._running = ()
        for row in batch:
            if row.outcome is None:
                self.scheduler.put_back(row)
            else:
                self.scheduler.finish(row)
                finished += 1
        self._backlog.rows -= finished


class Backlog:
    """The number of rows of all models that wait or run, with those that long calls have yet to submit."""

    __slots__ = ("most", "rows")

    def __init__(self, most: int) -> None:
        self.rows, self.most = 0, most

    def require_room(self, rows: int) -> None:
        """Raises OverloadedError if there is no room for so many more."""
        if self.rows + rows > self.most:
            raise OverloadedError(self.rows)


class Batchers:
    """The batchers of all models of a worker, and the calls of clients that wait for their rows."""

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

        max_waiting: the most rows of all models that may wait. The other parameters are those of `Executor`.
        """
        self.now, self._timeout_s, self._backlog = monotonic, timeout_s, Backlog(max_waiting)
        self.by_model: dict[StepModel, Batcher] = {}
        for model in models:
            costs = cost.measure(model)
            scores = Accuracy(model, enabled=accuracy)
            executor = Executor(model, costs, store, clock, scores, observer, exact=exact, keep=keep)
            scheduler: Scheduler[BatchRow] = Scheduler(cost.MOST_ROWS, costs.cells)
            self.by_model[model] = Batcher(executor, scheduler, self._backlog, monotonic, timeout_s)
        self._standalone_rows = 0

    def accuracy(self, model: StepModel) -> Accuracy:
        return self.by_model[model].executor.accuracy

    def call(
        self,
        rows: int,
        *,
        needs_all: bool = False,
        has_left: Callable[[], bool] | None = None,
        started_at: float | None = None,
    ) -> PendingCall:
        """Returns a call that will wait for that many rows. Raises OverloadedError if there is no room for them.

        started_at: when the client began to wait; None: now.
        """
        self._backlog.require_room(rows)
        started_at = self.now() if started_at is None else started_at
        return PendingCall(rows, started_at, needs_all=needs_all, has_left=has_left)

    def session_row(
        self,
        model: StepModel,
        requests: Sequence[PendingRequest],
        call: Caller,
        key: bytes,
        first_record: Record | None = None,
    ) -> BatchRow:
        """Returns a row that advances the session under `key` by these requests, and commits.

        first_record: the record with which the session begins if there is none; None: the session must exist.
        """
        length = requests[0].length if len(requests) == 1 else sum(pending.length for pending in requests)
        size = length if length == 1 else min(length, self.by_model[model].executor.chunk)
        return BatchRow(model, key, requests, length, size, call, call.started_at + self._timeout_s, first_record)

    def standalone_row(
        self,
        model: StepModel,
        inputs: InputArray,
        call: PendingCall,
        state: State,
        horizon: int = 0,
        feed: RolloutInputs | None = None,
        accuracy: bytes | None = None,
        surprise: SurpriseMeans | None = None,
    ) -> BatchRow:
        """Returns a row of no session: inputs (steps, features) from state (1,) on, then `horizon` steps fed back.

        accuracy, surprise: the statistics so far; None: they are not counted.
        """
        self._standalone_rows += 1
        key = self._standalone_rows.to_bytes(8)  # the keys of sessions contain a / and are longer
        executor = self.by_model[model].executor
        accuracy = accuracy if executor.accuracy.enabled else None
        progress = Progress(
            len(inputs), executor.chunk, state.tobytes(), accuracy, surprise,
            horizon=horizon, feed=feed or RolloutInputs(model),
        )  # fmt: skip
        row = BatchRow(model, key, (), len(inputs), progress.size, call, call.started_at + self._timeout_s)
        row.inputs, row.progress = inputs, progress
        return row

    def submit(self, row: BatchRow) -> None:
        """Submits a row whose caller does not wait in a greenlet. Raises OverloadedError."""
        if self._backlog.rows >= self._backlog.most:
            raise OverloadedError(self._backlog.rows)
        self.by_model[row.model].submit(row)

    def run(self, call: PendingCall, rows: Sequence[BatchRow]) -> Sequence[BatchRow]:
        """Submits the rows and waits for the call to end.

        Every call ends: the batchers settle a row that fails, and one that is late when its turn comes. A call has at
        most as many rows in the queues as a batch has, so that other calls have their turn.
        """
        rest = _Rest(rows[cost.MOST_ROWS :])
        self._backlog.rows += rest.count
        try:
            for row in rows[: cost.MOST_ROWS]:
                self.by_model[row.model].submit(row)
            if rest.count:
                call.next_row = partial(self._submit_next, rest)
            call.wait()
        finally:
            call.next_row = None
            call.abandoned = True  # after the failure of a row that was needed, nobody waits for the rest
            self._backlog.rows -= rest.count
        return rows

    def _submit_next(self, rest: "_Rest") -> None:
        if rest.count:
            rest.count -= 1
            self._backlog.rows -= 1
            row = next(rest.rows)
            self.by_model[row.model].submit(row)

    def run_all(self, call: PendingCall, rows: Sequence[BatchRow]) -> list[StandaloneResult]:
        """Runs the rows of no session of a call that needs all of them. Raises the error of the first that failed."""
        self.run(call, rows)
        failed = next((row for row in rows if isinstance(row.outcome, Exception)), None)
        return [result_of(row) for row in ([failed] if failed is not None else rows)]

    def run_standalone(
        self,
        model: StepModel,
        inputs: InputArray,
        state: State,
        *,
        accuracy: bytes | None = None,
        surprise: SurpriseMeans | None = None,
        has_left: Callable[[], bool] | None = None,
        started_at: float | None = None,
    ) -> StandaloneResult:
        """Runs a row of no session, see `standalone_row` and `call`. Raises the error if it failed."""
        call = self.call(1, has_left=has_left, started_at=started_at)
        row = self.standalone_row(model, inputs, call, state, accuracy=accuracy, surprise=surprise)
        self.run(call, [row])
        return result_of(row)

    def mark_disconnected_calls(self) -> None:
        """Marks the calls whose clients have closed their connections, so that rows which have not run are dropped.

        A row that runs at present is dropped after its batch, if it is not finished then.
        """
        started_before = self.now() - DISCONNECT_CHECK_S
        unfinished = [row for model_batcher in self.by_model.values() for row in model_batcher.unfinished()]
        for call in {row.call for row in unfinished}:
            if call.started_at < started_before and call.has_left():
                call.abandoned = True


class _Rest:
    """The rows of a long call that are yet to be submitted."""

    __slots__ = ("count", "rows")

    def __init__(self, rows: Sequence[BatchRow]) -> None:
        self.rows, self.count = iter(rows), len(rows)


def result_of(row: BatchRow) -> StandaloneResult:
    """Returns the result of a settled row of no session. Raises its error if it failed.

    The error is taken out of the row first, because the frames that the error passes through refer to the row: the
    two would form a reference cycle.
    """
    if isinstance(row.outcome, Exception):
        error, row.outcome = row.outcome, _RAISED
        try:
            raise error
        finally:
            del error  # this frame is one of those that the error refers to
    assert isinstance(row.outcome, StandaloneResult)
    return row.outcome
