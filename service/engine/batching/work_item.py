"""A work item: inputs that a row has yet to consume, and steps that it has yet to roll forward.

Owns an item's progress. A step, a forecast and a stateless prediction are the same thing with different ends: consume
the inputs, then feed back `horizon` times what `feed` makes of the predictions. Knows nothing of queues, of stores or
of HTTP.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gevent.hub import Waiter
from numpy.typing import NDArray

from onward.model.runner import Outputs, StepModel
from onward.model.scoring.surprise import SurpriseMeans
from onward.service.engine.input_parsing import Inputs
from onward.service.errors import without_frames
from onward.service.store.record import Record


class Call:
    """What one client waits for: it is over when each of its items is, or one of them failed and all are needed."""

    __slots__ = ("_left", "_needs_all", "_waiter", "gone", "has_left", "next_item", "since")

    def __init__(
        self, items: int, since: float, *, needs_all: bool = False, has_left: Callable[[], bool] | None = None
    ) -> None:
        """`has_left` says whether the client has closed its connection."""
        self._left, self._needs_all = items, needs_all
        self._waiter: Waiter[None] = Waiter()
        self.since, self.has_left = since, has_left
        self.gone = False
        """Nobody waits any more: what has not run need not."""
        self.next_item: Callable[[], None] | None = None
        """Queues another item of the call, whenever one of them is over; None: all are queued."""

    def settled(self, outcome: "Done | Exception") -> None:
        self._left -= 1
        if self.next_item is not None:
            self.next_item()
        if self._left == 0 or (self._needs_all and isinstance(outcome, Exception)):
            self._waiter.hub.loop.run_callback(self._waiter.switch, None)

    def wait(self) -> None:
        """For one greenlet, once."""
        self._waiter.get()


class Asked(NamedTuple):
    """A step as a client asks for it: `step` is the one that it believes the session has reached.

    model: creates the session on the newest version of that model where there is none; empty: the session must exist.
    """

    session_id: str
    inputs: Inputs
    step: int | None = None
    request_id: str = ""
    model: str = ""


class Done(NamedTuple):
    """What was asked is done: every step's outputs (steps,), the state after them (1,), the session's step then, and
    how predictions came true and how surprising the inputs were, where that is counted.
    """

    outputs: Outputs
    state: bytes | None
    step: int = 0
    accuracy: bytes | None = None
    surprise: SurpriseMeans | None = None


@dataclass(slots=True, eq=False)
class Request:
    """A step that a client asked for, on its way. The items of one client that wait together may be one row's."""

    asked: Asked
    length: int  # steps
    inputs: NDArray[np.float32] | None = None  # (length, features) once they were read
    digest: bytes = b""
    outcome: Done | Exception | None = None


@dataclass(slots=True, eq=False)
class Work:
    """One row of batches to come. `requests` advance a session, in order, in one commit; without any, `state` is the
    start.
    """

    model: StepModel
    length: int  # steps of inputs; until it is admitted, those of all requests
    deadline: float  # on the engine's monotonic clock
    chunk: int  # most steps in one call of the model
    call: Call
    line: bytes  # items of one line run in order, one at a time: a session's key, or nothing else's
    requests: Sequence[Request] = ()
    inputs: NDArray[np.float32] | None = None  # (length, features), a session's once it is admitted
    horizon: int = 0
    feed: Callable[[Outputs], NDArray[np.float32]] | None = None  # outputs (1,) -> inputs (1, features) rolled on with
    state: bytes | None = None  # a row's memory, None until the record is loaded
    accuracy: bytes | None = None  # how its predictions came true so far, None where that is not counted
    surprise: SurpriseMeans | None = None  # how surprising its inputs were so far, None where that is not counted
    record: Record | None = None
    first: Record | None = None  # what the session begins as, where the first request may create it
    stored: int | None = None  # revision of what the store has under the key, None where it has nothing
    creates: bool = False  # the session is not there: the commit creates it
    overtaken: Record | None = None  # what this item was computed from, and could not be committed to
    outcome: Done | Exception | None = None
    outputs: Outputs | None = None  # of the last call
    _before: bytearray | None = None  # the memory of those of the calls before it: it grows by a share, not by objects
    trail: deque[tuple[int, bytes, bytes | None, SurpriseMeans | None]] | None = None
    """Where a history is kept: how many inputs led to which state, accuracy and surprise."""
    _consumed: int = 0
    _rolled: int = 0

    @property
    def over(self) -> bool:
        return self.outcome is not None or self.call.gone

    @property
    def size(self) -> int:
        """How many steps the next call may take."""
        left = self.length - self._consumed
        return left if 0 < left <= self.chunk else min(left, self.chunk) or 1

    @property
    def finished(self) -> bool:
        return self._consumed == self.length and self._rolled == self.horizon

    def take(self) -> NDArray[np.float32]:
        """(size, features) the inputs of the next call."""
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
        """Takes in the answer to what `take` gave: outputs (steps,), and what the row has come to after them."""
        if self._consumed < self.length:
            self._consumed += len(outputs)
        else:
            self._rolled += 1
        if self.outputs is not None:
            if self._before is None:
                self._before = bytearray()
            self._before += self.outputs.tobytes()
        self.outputs = outputs
        self.state, self.accuracy, self.surprise = state, accuracy, surprise
        if self.trail is not None:
            self.trail.append((self._consumed, state, accuracy, surprise))

    def restart(self) -> None:
        """Forgets all progress: another process moved the session in between."""
        self.overtaken = self.record
        self._consumed, self._rolled = 0, 0
        self.undecided()
        self.outputs, self._before = None, None
        if self.trail is not None:
            self.trail.clear()

    def undecided(self) -> None:
        """Nothing is known of the session."""
        self.state, self.accuracy, self.surprise, self.record = None, None, None, None
        self.stored, self.creates = None, False
        for request in self.requests:
            request.outcome = None

    def all_outputs(self) -> Outputs:
        """(steps,) of every call so far."""
        assert self.outputs is not None
        if self._before is not None:
            self._before += self.outputs.tobytes()
            self.outputs, self._before = np.frombuffer(self._before, self.outputs.dtype), None
        return self.outputs

    def settle_requests(self, outputs: Outputs, step: int) -> None:
        """Answers the requests that made a step, whose outputs follow one another up to this step of the session."""
        done = Done(outputs, self.state, step)
        if len(self.requests) > 1:
            start, before = 0, step - len(outputs)
            for request in self.requests:
                if request.outcome is None:
                    end = start + request.length
                    request.outcome = Done(outputs[start:end], None, before + end)
                    start = end
        self.settle(done)

    def settle(self, outcome: Done | Exception) -> None:
        """Answers whoever waits, each request that has no answer of its own with this; the first answer stands."""
        if self.outcome is None:
            if isinstance(outcome, Exception):
                outcome = without_frames(outcome)
            self.outcome = outcome
            for request in self.requests:
                if request.outcome is None:
                    request.outcome = outcome
            self.call.settled(outcome)
