"""A work item: inputs that a row has yet to consume, and steps that it has yet to roll forward.

Owns an item's progress. A step, a forecast and a stateless prediction are the same thing with different ends: consume
the inputs, then feed predictions back `horizon` times. Knows nothing of queues, of stores or of HTTP.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from gevent.event import Event
from numpy.typing import NDArray

from model.runner import Outputs, StepModel
from service.engine.call import joined
from service.engine.inputs import Inputs
from service.sessions.record import NO_DIGEST, Record


class Call:
    """What one client waits for: it is over when each of its items is, or one of them failed and all are needed."""

    __slots__ = ("_left", "_needs_all", "_over", "gone", "has_left", "since")

    def __init__(
        self, items: int, since: float, *, needs_all: bool = False, has_left: Callable[[], bool] | None = None
    ) -> None:
        """`has_left` says whether the client has closed its connection."""
        self._left, self._over, self._needs_all = items, Event(), needs_all
        self.since, self.has_left = since, has_left
        self.gone = False
        """Nobody waits any more: what has not run need not."""

    def settled(self, outcome: "Done | BaseException") -> None:
        self._left -= 1
        if self._left == 0 or (self._needs_all and isinstance(outcome, BaseException)):
            self._over.set()

    def wait(self) -> None:
        self._over.wait()


class Asked(NamedTuple):
    """A step as a client asks for it: `step` is the one that it believes the session has reached."""

    session_id: str
    inputs: Inputs
    step: int | None = None
    request_id: str = ""


class Done(NamedTuple):
    """A finished item: every step's outputs (steps,), the state after them (1,), and the record that was committed."""

    outputs: Outputs
    state: bytes | None
    record: Record | None


@dataclass(slots=True, eq=False)
class Work:
    """One row of batches to come. `asked` is of a session, to advance and commit; without it, `state` is the start."""

    model: StepModel
    inputs: Inputs | NDArray[np.float32]  # (steps, features) once the item was admitted
    deadline: float  # on the engine's monotonic clock
    chunk: int  # most steps in one call of the model
    call: Call
    line: bytes  # items of one line run in order, one at a time: a session's key, or nothing else's
    asked: Asked | None = None
    horizon: int = 0
    state: bytes | None = None  # a row's memory, None until the record is loaded
    record: Record | None = None
    digest: bytes = NO_DIGEST
    overtaken: Record | None = None  # what this item was computed from, and could not be committed to
    outcome: Done | BaseException | None = None
    outputs: list[Outputs] = field(default_factory=list)
    trail: deque[tuple[int, bytes]] | None = None  # where a history is kept: how many inputs led to which state
    _consumed: int = 0
    _rolled: int = 0

    @property
    def over(self) -> bool:
        return self.outcome is not None or self.call.gone

    @property
    def size(self) -> int:
        """How many steps the next call may take."""
        left = len(self.inputs) - self._consumed
        return left if 0 < left <= self.chunk else min(left, self.chunk) or 1

    @property
    def finished(self) -> bool:
        return self._consumed == len(self.inputs) and self._rolled == self.horizon

    def take(self) -> NDArray[np.float32]:
        """(size, features) the inputs of the next call."""
        assert isinstance(self.inputs, np.ndarray)
        if not self._consumed and len(self.inputs) <= self.chunk:
            return self.inputs
        if self._consumed < len(self.inputs):
            return self.inputs[self._consumed : self._consumed + self.chunk]
        return self.model.fed_back(self.outputs[-1][-1:])

    def advance(self, outputs: Outputs, state: bytes) -> None:
        """Takes in the answer, outputs (steps,) and the state after them, to what `take` gave."""
        if self._consumed < len(self.inputs):
            self._consumed += len(outputs)
        else:
            self._rolled += 1
        self.outputs.append(outputs)
        self.state = state
        if self.trail is not None:
            self.trail.append((self._consumed, state))

    def restart(self) -> None:
        """Forgets all progress: another process moved the session in between."""
        self.overtaken = self.record
        self._consumed, self._rolled, self.state, self.record = 0, 0, None, None
        self.outputs.clear()
        if self.trail is not None:
            self.trail.clear()

    def all_outputs(self) -> Outputs:
        return joined(self.outputs)

    def settle(self, outcome: Done | BaseException) -> None:
        """Answers whoever waits; the first answer stands."""
        if self.outcome is None:
            self.outcome = outcome
            self.call.settled(outcome)
