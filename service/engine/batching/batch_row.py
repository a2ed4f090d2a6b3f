"""Batch rows: inputs that a row of a batch has yet to consume, and steps that it has yet to roll forward.

Owns the path of a step through the batcher: StepRequest -> BatchRow -> StepResult; and a row's progress. A step, a
forecast and a stateless prediction differ only in their ends: each consumes its inputs, then feeds back `horizon` times
what `feed` makes of the predictions. Knows nothing of batchers, of stores or of HTTP.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from gevent.hub import Waiter

from onward.model.inputs import InputArray, Inputs
from onward.model.listed_rankings import listed_outputs
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.surprise import SurpriseMeans
from onward.service.errors import without_frames
from onward.service.store.record import Record

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StepRequest:
    """A step as a client asks for it. `step` is the step that the client believes the session has reached.

    model: if there is no live session, the step creates it on the newest version of this model; empty: the session must
    exist. listed_only: the request is refused if the model's rankings may contain no listed category.
    """

    session_id: str
    inputs: Inputs
    step: int | None = None
    request_id: str = ""
    model: str = ""
    listed_only: bool = False


class ResultColumns:
    """The results of many rows of one step that a batch has made, so that a protocol can encode them together.

    steps: the step that each row has reached. outputs: (rows,).
    """

    __slots__ = ("encoded", "outputs", "steps")

    def __init__(self, steps: list[int], outputs: Outputs) -> None:
        self.steps, self.outputs = steps, outputs
        self.encoded: Any = None
        """The rows as a protocol has encoded them, once the first of them was asked for; None before."""


class StepResult:
    """The result of a step, or of the inputs that a session was created with.

    step: the step that the session has reached. created: whether the step has created its session. columns, row: the
    results that were made together with this one, and its row among them; None if it was made alone.
    """

    __slots__ = ("columns", "created", "model", "outputs", "row", "step")

    outputs: Outputs
    """(steps,) of the model's output dtype, with the scores of the inputs if they are scored."""

    def __init__(
        self,
        model: StepModel,
        step: int,
        outputs: Outputs | None = None,
        created: bool = False,
        columns: ResultColumns | None = None,
        row: int = 0,
    ) -> None:
        """outputs: None if `columns` has them."""
        self.model, self.step, self.created = model, step, created
        self.columns, self.row = columns, row
        if outputs is not None:
            self.outputs = outputs

    def __getattr__(self, name: str) -> Outputs:
        """Takes `outputs` from the columns when they are first asked for: most results are encoded without them."""
        if name != "outputs" or self.columns is None:
            raise AttributeError(name)
        self.outputs = self.columns.outputs[self.row : self.row + 1]
        return self.outputs

    def listed(self) -> "StepResult":
        """Returns the result with rankings of listed categories only, see `onward.model.listed_rankings`."""
        return StepResult(self.model, self.step, listed_outputs(self.model, self.outputs), self.created)


class StandaloneResult(NamedTuple):
    """The result of a row of no session.

    outputs: (steps,) of every step. state: the bytes of the state after them. accuracy, surprise: the running
    statistics of how predictions came true and of how surprising the inputs were; None where they are not counted.
    """

    outputs: Outputs
    state: bytes
    accuracy: bytes | None = None
    surprise: SurpriseMeans | None = None


class Caller(Protocol):
    """A client's call for whose rows it waits."""

    abandoned: bool
    """True if nobody waits for the call any more, so that rows which have not run need not run."""
    started_at: float
    """The time when the client began to wait, on the engine's monotonic clock."""

    def has_left(self) -> bool:
        """Returns whether the client has closed its connection."""

    def settled(self, row: "BatchRow") -> None:
        """Takes a row whose outcome is set, once for each row of the call. It must not raise, nor wait."""


class PendingCall:
    """A call whose greenlet waits for its rows. The call ends when every row is settled, or, if it needs all of them,
    as soon as one has failed.
    """

    __slots__ = ("_has_left", "_needs_all", "_unsettled", "_waiter", "abandoned", "next_row", "started_at")

    def __init__(
        self, rows: int, started_at: float, *, needs_all: bool = False, has_left: Callable[[], bool] | None = None
    ) -> None:
        """`has_left` returns whether the client has closed its connection."""
        self._unsettled, self._needs_all = rows, needs_all
        self._waiter: Waiter[None] = Waiter()
        self.started_at, self._has_left = started_at, has_left
        self.abandoned = False
        self.next_row: Callable[[], None] | None = None
        """Submits another row of the call, each time that one is settled; None if all are submitted."""

    def has_left(self) -> bool:
        return self._has_left is not None and self._has_left()

    @property
    def client(self) -> Callable[[], bool] | None:
        """The function that returns whether the client has left."""
        return self._has_left

    def settled(self, row: "BatchRow") -> None:
        self.count_settled(row.outcome)

    def count_settled(self, outcome: "StepResult | StandaloneResult | Exception | None") -> None:
        """Counts one row as settled, and wakes the greenlet that waits if the call has ended with it."""
        self._unsettled -= 1
        if self.next_row is not None:
            self.next_row()
        if self._unsettled == 0 or (self._needs_all and isinstance(outcome, Exception)):
            self._waiter.hub.loop.run_callback(self._waiter.switch, None)

    def wait(self) -> None:
        """Returns once the call has ended. Only one greenlet may wait, once."""
        self._waiter.get()


class PendingRequest:
    """A step request on its way. Requests of one client for one session that wait together may share a row."""

    __slots__ = ("digest", "inputs", "length", "outcome", "request")

    def __init__(self, request: StepRequest, length: int, inputs: InputArray | None = None) -> None:
        """length: its steps. inputs: (length, features), None if they are not parsed yet."""
        self.request, self.length, self.inputs = request, length, inputs
        self.digest = b""
        self.outcome: StepResult | Exception | None = None


class BatchRow:
    """A row of the batches to come.

    A row with `requests` advances a session by them, in order, in one commit. A row without any starts from the state
    of its `progress` and belongs to no session.
    """

    __slots__ = (
        "call", "creates_session", "deadline", "first_record", "head", "inputs", "is_plain", "is_simple", "key",
        "length", "model", "outcome", "overtaken", "progress", "record", "requests", "size", "stored_revision",
    )  # fmt: skip

    def __init__(
        self,
        model: StepModel,
        key: bytes,
        requests: Sequence[PendingRequest],
        length: int,
        size: int,
        call: Caller,
        deadline: float,
        first_record: Record | None = None,
    ) -> None:
        """key: rows of the same key run in order, one at a time: a session's key, or one that no other row has.

        length: steps of the inputs of all requests. size: the steps that the next call may take, at least 1. deadline:
        on the engine's monotonic clock. first_record: what the session begins as, if the first request may create it.
        """
        self.model, self.key, self.requests, self.length, self.size = model, key, requests, length, size
        self.call, self.deadline, self.first_record = call, deadline, first_record
        self.inputs: InputArray | None = None
        """(length, features); a session's row has them once it is admitted, without those of requests that are retries
        or refused.
        """
        self.record: Record | None = None
        """The record that the row advances, once it is admitted."""
        self.head: tuple[Any, ...] = ()
        """The head of the record: the values of `HEAD_FIELDS`."""
        self.stored_revision: int | None = None
        """The revision of what the store has under the key, None where it has nothing."""
        self.creates_session = False
        self.is_plain = self.is_simple = False
        """`is_plain`: the row is admitted as one request of one step, of a session whose record fits columns.
        `is_simple`: its one request has neither a step nor an id, so that nothing is to be decided about it.
        """
        self.overtaken: Record | None = None
        """The record that the row was computed from, if its commit came too late."""
        self.progress: Progress | None = None
        """The row's progress, if it takes more than one batch or is not advanced as part of columns."""
        self.outcome: StepResult | StandaloneResult | Exception | None = None

    def __repr__(self) -> str:
        return f"<BatchRow of {self.key!r}>"

    @property
    def is_obsolete(self) -> bool:
        return self.call.abandoned or self.outcome is not None

    def restart(self) -> None:
        """Discards all progress, because another process has moved the session meanwhile."""
        self.overtaken = self.record
        if self.progress is not None:
            self.size = min(self.length, self.progress.chunk)
        self.forget_record()

    def forget_record(self) -> None:
        """Discards the session's record and what was decided by it, so that the row is admitted anew."""
        self.record, self.stored_revision, self.progress = None, None, None
        self.creates_session = self.is_plain = self.is_simple = False
        for pending in self.requests:
            pending.outcome = None

    def settle_requests(self, outputs: Outputs, step: int) -> None:
        """Settles the row, and gives each request without an outcome its part of the outputs.

        outputs: (steps,) of those requests, one after another. step: the step that the session has reached after them.
        """
        if len(self.requests) > 1:
            start, first_step = 0, step - len(outputs)
            for pending in self.requests:
                if pending.outcome is None:
                    end = start + pending.length
                    created = self.creates_session and first_step + end == pending.length
                    pending.outcome = StepResult(self.model, first_step + end, outputs[start:end], created)
                    start = end
        created = self.creates_session and step == len(outputs)
        self.settle(StepResult(self.model, step, outputs, created))

    def settle(self, outcome: StepResult | StandaloneResult | Exception) -> None:
        """Sets the outcome of the row, and of each request that has none of its own. The first outcome stands."""
        if self.outcome is not None:
            return
        if isinstance(outcome, Exception):
            outcome = without_frames(outcome)
        self.outcome = outcome
        for pending in self.requests:
            if pending.outcome is None and not isinstance(outcome, StandaloneResult):
                pending.outcome = outcome
        try:
            self.call.settled(self)
        except Exception:  # the other rows of the batch must still be settled
            log.exception("the caller of a settled row failed")


class Progress:
    """The progress of a row that is advanced by itself.

    state: its bytes after the steps so far. accuracy, surprise: how its predictions came true and how surprising its
    inputs were so far, None where that is not counted.
    """

    __slots__ = (
        "_consumed", "_earlier_outputs", "_rolled", "accuracy", "chunk", "feed", "horizon", "length", "outputs",
        "state", "surprise", "trail",
    )  # fmt: skip

    def __init__(
        self,
        length: int,
        chunk: int,
        state: bytes,
        accuracy: bytes | None,
        surprise: SurpriseMeans | None,
        *,
        horizon: int = 0,
        feed: Callable[[Outputs], InputArray] | None = None,
        keep: int = 0,
    ) -> None:
        """length: steps of inputs. chunk: the most steps in one call of the model.

        horizon, feed: the steps to roll forward, and what makes of outputs (1,) the next inputs (1, features). keep:
        how many steps a session can be rewound by.
        """
        self.length, self.chunk, self.horizon, self.feed = length, chunk, horizon, feed
        self.state, self.accuracy, self.surprise = state, accuracy, surprise
        self.outputs: Outputs | None = None  # of the last call
        self._earlier_outputs: bytearray | None = None  # of the calls before it, in one buffer, not an object a call
        self.trail: deque[tuple[int, bytes, bytes | None, SurpriseMeans | None]] | None = None
        """The last calls, if a history is kept: how many inputs led to which state, accuracy and surprise."""
        if keep:
            self.trail = deque(maxlen=keep + 2)  # so that one entry is `keep` steps old, however short chunks are
        self._consumed = self._rolled = 0

    @property
    def size(self) -> int:
        left = self.length - self._consumed
        return left if 0 < left <= self.chunk else min(left, self.chunk) or 1

    @property
    def finished(self) -> bool:
        return self._consumed == self.length and self._rolled == self.horizon

    def next_inputs(self, inputs: InputArray) -> InputArray:
        """Returns the inputs (size, features) of the next call. inputs: (length, features) of the row."""
        if not self._consumed and 0 < self.length <= self.chunk:
            return inputs
        if self._consumed < self.length:
            return inputs[self._consumed : self._consumed + self.chunk]
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

    def all_outputs(self) -> Outputs:
        """Returns the outputs (steps,) of every call so far."""
        assert self.outputs is not None
        if self._earlier_outputs is not None:
            self._earlier_outputs += self.outputs.tobytes()
            self.outputs, self._earlier_outputs = np.frombuffer(self._earlier_outputs, self.outputs.dtype), None
        return self.outputs
