"""A work item: inputs that a row has yet to consume, and steps that it has yet to roll forward.

Owns an item's progress. A step, a forecast and a stateless prediction are the same thing with different ends: consume
the inputs, then feed predictions back `horizon` times. Knows nothing of queues, of stores or of HTTP.
"""

from dataclasses import dataclass, field

import numpy as np
from gevent.event import AsyncResult
from numpy.typing import NDArray

from model.runner import Outputs, StepModel
from model.state import State
from service.sessions.record import Record

CHUNK = 64
"""Most steps of one item in one call of ONNX Runtime: a long catch-up never holds up the steps beside it for longer."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a session's client asked for: which session, from which step, and under which request id."""

    key: bytes
    session_id: str
    expected_step: int | None
    request_id: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """A finished item: every step's outputs (steps,), the state after them (1,), and the record that was committed."""

    outputs: Outputs
    state: State | None
    record: Record | None


@dataclass(slots=True, eq=False)
class Work:
    """One row of batches to come. `intent` names a session to advance and commit; without it, `state` is the start."""

    model: StepModel
    inputs: NDArray[np.float32]  # (steps, features)
    deadline: float  # on the engine's monotonic clock
    horizon: int = 0
    intent: Intent | None = None
    state: State | None = None  # (1,), None until the record is loaded
    record: Record | None = None
    result: "AsyncResult[Done]" = field(default_factory=AsyncResult)
    outputs: list[Outputs] = field(default_factory=list)
    _consumed: int = 0
    _rolled: int = 0

    @property
    def line(self) -> bytes | int:
        """Items of one line run in order, one at a time."""
        return self.intent.key if self.intent is not None else id(self)

    @property
    def over(self) -> bool:
        return self.result.ready()

    @property
    def size(self) -> int:
        """How many steps the next call may take."""
        return min(len(self.inputs) - self._consumed, CHUNK) or 1

    @property
    def finished(self) -> bool:
        return self._consumed == len(self.inputs) and self._rolled == self.horizon

    def take(self) -> NDArray[np.float32]:
        """(size, features) the inputs of the next call."""
        if self._consumed < len(self.inputs):
            return self.inputs[self._consumed : self._consumed + self.size]
        return self.model.fed_back(self.outputs[-1][-1:])

    def advance(self, outputs: Outputs, state: State) -> None:
        """Takes in the answer, outputs (steps,) and state (1,), to what `take` gave."""
        if self._consumed < len(self.inputs):
            self._consumed += len(outputs)
        else:
            self._rolled += 1
        self.outputs.append(outputs)
        self.state = state

    def restart(self) -> None:
        """Forgets all progress: another process moved the session in between."""
        self._consumed, self._rolled, self.state, self.record = 0, 0, None, None
        self.outputs.clear()

    def all_outputs(self) -> Outputs:
        return self.outputs[0] if len(self.outputs) == 1 else np.concatenate(self.outputs)

    def settle(self, outcome: Done | BaseException) -> None:
        """Answers whoever waits; the first answer stands."""
        if self.result.ready():
            return
        if isinstance(outcome, BaseException):
            self.result.set_exception(outcome)
        else:
            self.result.set(outcome)
