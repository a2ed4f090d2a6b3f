"""What waits: the items of calls, on their way through their models' queues.

Owns the queues, how many items may wait in all, and whether their clients still do. Knows nothing of use-cases.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onward.model.runner import StepModel
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.scoring.accuracy import Accuracy
from onward.model.scoring.surprise import SurpriseMeans
from onward.model.state import State
from onward.service.engine.batching import cost
from onward.service.engine.batching.executor import Executor
from onward.service.engine.batching.model_queue import Queue
from onward.service.engine.batching.scheduler import Scheduler
from onward.service.engine.batching.work_item import Call, Done, Request, Work
from onward.service.engine.observer import Observer
from onward.service.errors import AbandonedError, OverloadedError
from onward.service.store.contract import Store
from onward.service.store.record import Record

LEFT_S = 2.0
"""How long a call waits before it is looked at whether its client still does, and how often."""


_RAISED = AbandonedError()
"""In the place of an error that was raised: the item stays answered."""


class Dispatch:
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
        """`clock` gives seconds since 1970 UTC and dates records; `monotonic` times calls."""
        self._monotonic, self._timeout_s, self._max_waiting, self._keep = monotonic, timeout_s, max_waiting, keep
        self.queues: dict[StepModel, Queue] = {}
        for model in models:
            costs = cost.measure(model)
            counted = Accuracy(model, enabled=accuracy)
            executor = Executor(model, costs, store, clock, counted, observer, exact=exact, keep=keep)
            scheduler: Scheduler[Work] = Scheduler(cost.MOST_ROWS, costs.cells)
            self.queues[model] = Queue(executor, scheduler, monotonic, timeout_s)
        self._calls: dict[Call, int] = {}  # that are waited for, with their items
        self._waiting = self._alone = 0

    def now(self) -> float:
        """On the clock that times calls."""
        return self._monotonic()

    def call(
        self,
        items: int,
        *,
        needs_all: bool = False,
        has_left: Callable[[], bool] | None = None,
        since: float | None = None,
    ) -> Call:
        """since: when the client began to wait, None: now. Raises OverloadedError where so many items find no room."""
        if self._waiting + items > self._max_waiting:
            raise OverloadedError(self._waiting)
        since = self._monotonic() if since is None else since
        return Call(items, since, needs_all=needs_all, has_left=has_left)

    def session_work(
        self, model: StepModel, requests: Sequence[Request], call: Call, key: bytes, first: Record | None = None
    ) -> Work:
        """An item that advances the session under `key` by these and commits.

        first: the record with which the session begins where there is none; None: it must exist.
        """
        work = self._work(model, sum(request.length for request in requests), call, key)
        work.requests, work.first = requests, first
        if self._keep:
            work.trail = deque(maxlen=self._keep + 2)  # one of them is that old, however short chunks are
        return work

    def accuracy(self, model: StepModel) -> Accuracy:
        return self.queues[model].executor.accuracy

    def free_work(
        self,
        model: StepModel,
        inputs: NDArray[np.float32],
        call: Call,
        state: State,
        horizon: int = 0,
        feed: RolloutInputs | None = None,
        accuracy: bytes | None = None,
        surprise: SurpriseMeans | None = None,
    ) -> Work:
        """An item of no session: inputs (steps, features) from state (1,) on, then `horizon` steps fed back.

        accuracy: what is kept of predictions so far; None: they are not scored. surprise: of inputs so far; None: it is
        not counted.
        """
        self._alone += 1
        line = self._alone.to_bytes(8)  # sessions' keys have a / in them, and are longer
        work = self._work(model, len(inputs), call, line)
        work.inputs, work.horizon, work.feed, work.state = (
            inputs,
            horizon,
            feed or RolloutInputs(model),
            state.tobytes(),
        )
        work.accuracy, work.surprise = accuracy if self.accuracy(model).enabled else None, surprise
        return work

    def run(self, call: Call, works: Sequence[Work]) -> Sequence[Work]:
        """Returns once the call is over, which always comes: queues answer what fails, and what is late at its turn."""
        self._calls[call] = len(works)
        self._waiting += len(works)
        try:
            for work in works[: cost.MOST_ROWS]:
                self.queues[work.model].add(work)
            if len(works) > cost.MOST_ROWS:
                call.next_item = partial(self._add_next, call, iter(works[cost.MOST_ROWS :]))
            call.wait()
        finally:
            call.gone = True  # where one failed, the others are wanted no more
            call.next_item = None
            self._waiting -= self._calls.pop(call)
        return works

    def _add_next(self, call: Call, rest: Iterator[Work]) -> None:
        """A call has no more items in the queues than a batch has rows, so that others have their turn in between."""
        work = next(rest, None)
        if work is None:
            call.next_item = None
        else:
            self.queues[work.model].add(work)

    def run_all(self, call: Call, works: Sequence[Work]) -> list[Done]:
        """Of a call that needs all of its items. Raises the first that went wrong."""
        self.run(call, works)
        failed = next((work for work in works if isinstance(work.outcome, Exception)), None)
        return [outcome(work) for work in ([failed] if failed is not None else works)]

    def run_free(
        self,
        model: StepModel,
        inputs: NDArray[np.float32],
        state: State,
        *,
        accuracy: bytes | None = None,
        surprise: SurpriseMeans | None = None,
        has_left: Callable[[], bool] | None = None,
        since: float | None = None,
    ) -> Done:
        """One item of no session, see `free_work`. since: see `call`. Raises what went wrong."""
        call = self.call(1, has_left=has_left, since=since)
        work = self.free_work(model, inputs, call, state, accuracy=accuracy, surprise=surprise)
        self.run(call, [work])
        return outcome(work)

    def look_who_left(self) -> None:
        """Marks the calls whose clients have closed their connections, so that what has not run is dropped."""
        before = self._monotonic() - LEFT_S
        for call in self._calls:
            if call.has_left is not None and call.since < before and call.has_left():
                call.gone = True

    def _work(self, model: StepModel, length: int, call: Call, line: bytes) -> Work:
        return Work(model, length, call.since + self._timeout_s, self.queues[model].executor.chunk, call, line)


def outcome(work: Work) -> Done:
    """Raises what went wrong, and takes it out of the item: the frames that it comes through hold that."""
    if isinstance(work.outcome, Exception):
        error, work.outcome = work.outcome, _RAISED
        try:
            raise error
        finally:
            del error  # this frame is one of them
    assert work.outcome is not None
    return work.outcome
