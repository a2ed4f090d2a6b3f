"""Work items: inputs that a row of a batch has yet to consume, and steps that it has yet to roll forward.

Owns the path of a request through the batcher: StepRequest -> PendingRequest -> WorkItem -> WorkResult; and an item's
progress. A step, a forecast and a stateless prediction differ only in their ends: each consumes its inputs, then feeds
back `horizon` times what `feed` makes of the predictions. Knows nothing of batchers, of stores or of HTTP.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gevent.hub import Waiter
from numpy.typing import NDArray

from onward.model.inputs import Inputs
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.surprise import SurpriseMeans
from onward.service.errors import without_frames
from onward.service.store.record import Record


class PendingCall:
    """A client's call that waits for its items. The call ends when every item is settled, or, if it needs all of them,
    as soon as one has failed.
    """

    __slots__ = ("_needs_all", "_unsettled", "_waiter", "abandoned", "has_left", "next_item", "started_at")

    def __init__(
        self, items: int, started_at: float, *, needs_all: bool = False, has_left: Callable[[], bool] | None = None
    ) -> None:
        """`has_left` returns whether the client has closed its connection."""
        self._unsettled, self._needs_all = items, needs_all
        self._waiter: Waiter[None] = Waiter()
        self.started_at, self.has_left = started_at, has_left
        self.abandoned = False
        """Whether nobody waits for the call any more, so that items which have not run need not run."""
        self.next_item: Callable[[], None] | None = None
        """Submits another item of the call, each time that one is settled; None if all are submitted."""

    def count_settled(self, outcome: "WorkResult | Exception") -> None:
        """Counts one item as settled, and wakes the greenlet that waits if the call has ended with it."""
        self._unsettled -= 1
        if self.next_item is not None:
            self.next_item()
        if self._unsettled == 0 or (self._needs_all and isinstance(outcome, Exception)):
            self._waiter.hub.loop.run_callback(self._waiter.switch, None)

    def wait(self) -> None:
        """Returns once the call has ended. Only one greenlet may wait, once."""
        self._waiter.get()


class StepRequest(NamedTuple):
    """A step as a client asks for it. `step` is the step that the client believes the session has reached.

    model: if there is no live session, the step creates it on the newest version of this model; empty: the session must
    exist.
    """

    session_id: str
    inputs: Inputs
    step: int | None = None
    request_id: str = ""
    model: str = ""


class WorkResult(NamedTuple):
    """The result of a work item or of one of its requests.

    outputs: (steps,) of every step. state: the bytes of the state after them. step: the step that the session has
    reached. accuracy, surprise: the running statistics of how predictions came true and of how surprising the inputs
    were; None where they are not counted.
    """

    outputs: Outputs
    state: bytes | None
    step: int = 0
    accuracy: bytes | None = None
    surprise: SurpriseMeans | None = None


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A step request on its way. Requests of one client for one session that wait together may share a work item."""

    request: StepRequest
    length: int  # steps
    inputs: NDArray[np.float32] | None = None  # (length, features), once they are parsed
    digest: bytes = b""
    outcome: WorkResult | Exception | None = None


@dataclass(slots=True, eq=False)
class WorkItem:
    """A row of the batches to come.

    An item with `requests` advances a session by them, in order, in one commit. An item without any starts from `state`
    and belongs to no session.
    """

    model: StepModel
    length: int  # steps of inputs; those of all requests until the item is admitted
    deadline: float  # on the engine's monotonic clock
    chunk: int  # the most steps in one call of the model
    call: PendingCall
    key: bytes  # items of the same key run in order, one at a time: a session's key, or one that no other item has
    requests: Sequence[PendingRequest] = ()
    inputs: NDArray[np.float32] | None = None  # (length, features); an item of a session has them once it is admitted
    horizon: int = 0
    feed: Callable[[Outputs], NDArray[np.float32]] | None = None  # outputs (1,) -> the next inputs (1, features)
    state: bytes | None = None  # None until the record is loaded
    accuracy: bytes | None = None  # how its predictions came true so far, None where that is not counted
    surprise: SurpriseMeans | None = None  # how surprising its inputs were so far, None where that is not counted
    record: Record | None = None
    first_record: Record | None = None  # what the session begins as, if the first request may create it
    stored_revision: int | None = None  # of what the store has under the key, None where it has nothing
    creates_session: bool = False  # whether the commit creates the session
    overtaken: Record | None = None  # the record that this item was computed from, if its commit came too late
    outcome: WorkResult | Exception | None = None
    outputs: Outputs | None = None  # of the last call
    _earlier_outputs: bytearray | None = None  # of the calls before it, in one buffer rather than an object a call
    trail: deque[tuple[int, bytes, bytes | None, SurpriseMeans | None]] | None = None
    """The last calls, if a history is kept: how many inputs led to which state, accuracy and surprise."""
    _consumed: int = 0
    _rolled: int = 0

    @property
    def is_obsolete(self) -> bool:
        return self.outcome is not None or self.call.abandoned

    @property
    def size(self) -> int:
        """The number of steps that the next call may take."""
        left = self.length - self._consumed
        return left if 0 < left <= self.chunk else min(left, self.chunk) or 1

    @property
    def finished(self) -> bool:
        return self._consumed == self.length and self._rolled == self.horizon

    def next_inputs(self) -> NDArray[np.float32]:
        """Returns the inputs (size, features) of the next call."""
        assert self.inputs is not None
        if not self._consumed and 0 < self.length <= self.chunk:
            return self.inputs
        if self._consumed < self.length:
            return self.inputs[self._consumed : self._consumed + self.chunk]
        assert self.feed is not None
        assert self.outputs is not None
        return self.feed(self.outputs[-1:])

    def advance(
        self, outputs: Outputs, state: bytes, accuracy: bytes | None = None, surprise: SurpriseMeans | None = None
    ) -> None:
        """Records the outputs (steps,) for the inputs of `next_inputs`, and what the row has come to after them."""
        if self._consumed < self.length:
            self._consumed += len(outputs)
        else:
            self._rolled += 1
        if self.outputs is not None:
            if self._earlier_outputs is None:
                self._earlier_outputs = bytearray()
            self._earlier_outputs += self.outputs.tobytes()
        self.outputs = outputs
        self.state, self.accuracy, self.surprise = state, accuracy, surprise
        if self.trail is not None:
            self.trail.append((self._consumed, state, accuracy, surprise))

    def restart(self) -> None:
        """Discards all progress, because another process has moved the session meanwhile."""
        self.overtaken = self.record
        self._consumed, self._rolled = 0, 0
        self.forget_record()
        self.outputs, self._earlier_outputs = None, None
        if self.trail is not None:
            self.trail.clear()

    def forget_record(self) -> None:
        """Discards the session's record and what was decided by it, so that the item is admitted anew."""
        self.state, self.accuracy, self.surprise, self.record = None, None, None, None
        self.stored_revision, self.creates_session = None, False
        for pending in self.requests:
            pending.outcome = None

    def all_outputs(self) -> Outputs:
        """Returns the outputs (steps,) of every call so far."""
        assert self.outputs is not None
        if self._earlier_outputs is not None:
            self._earlier_outputs += self.outputs.tobytes()
            self.outputs, self._earlier_outputs = np.frombuffer(self._earlier_outputs, self.outputs.dtype), None
        return self.outputs

    def settle_requests(self, outputs: Outputs, step: int) -> None:
        """Settles the item, and gives each request without an outcome its part of the outputs.

        outputs: (steps,) of those requests, one after another. step: the step that the session has reached after them.
        """
        result = WorkResult(outputs, self.state, step)
        if len(self.requests) > 1:
            start, first_step = 0, step - len(outputs)
            for pending in self.requests:
                if pending.outcome is None:
                    end = start + pending.length
                    pending.outcome = WorkResult(outputs[start:end], None, first_step + end)
                    start = end
        self.settle(result)

    def settle(self, outcome: WorkResult | Exception) -> None:
        """Sets the outcome of the item, and of each request that has none of its own. The first outcome stands."""
        if self.outcome is None:
            if isinstance(outcome, Exception):
                outcome = without_frames(outcome)
            self.outcome = outcome
            for pending in self.requests:
                if pending.outcome is None:
                    pending.outcome = outcome
            self.call.count_settled(outcome)
