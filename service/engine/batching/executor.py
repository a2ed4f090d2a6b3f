"""Execution of a batch: load the records, one call of ONNX Runtime, one commit.

Owns what happens to each row. Rows advance in one of two ways, which give the same bits: several rows of one step as
columns of one array, all else row by row in plain Python. One bad row never fails its neighbours.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.runner import Outputs, StepModel
from onward.model.scoring.accuracy import Accuracy
from onward.model.scoring.surprise import surprises, update_means
from onward.model.state import State
from onward.service.engine.batching import cost
from onward.service.engine.batching.admission import Admission
from onward.service.engine.batching.batch_row import (
    BatchRow,
    PendingRequest,
    Progress,
    ResultColumns,
    StandaloneResult,
    StepResult,
)
from onward.service.engine.batching.cost import Cost
from onward.service.engine.batching.model_call import ModelCall, padded
from onward.service.engine.batching.record_columns import Columns, RecordColumns
from onward.service.engine.event_loop import in_loop_turns
from onward.service.engine.observer import Observer
from onward.service.engine.sessions import history
from onward.service.engine.sessions.history import Point
from onward.service.errors import NotFiniteError
from onward.service.store import idempotency
from onward.service.store.contract import Change, Store
from onward.service.store.record import Record

MIN_COLUMN_ROWS = 8
"""The number of rows from which columns cost less than row by row."""
SCORED_AT_ONCE = 1024
"""The number of inputs of a batch whose predictions are scored in one turn of the event loop."""

log = logging.getLogger(__name__)


class Step(NamedTuple):
    """A step of rows that advance together.

    columns: their records, with the states after the step. predictions: those that the states had before it, (rows,
    targets) by output. inputs: (rows, features). outputs: (rows,).
    """

    rows: Sequence[BatchRow]
    columns: Columns
    predictions: dict[str, NDArray[Any]]
    inputs: NDArray[np.float32]
    outputs: Outputs


class Executor:
    """Executes batches of one model."""

    def __init__(
        self,
        model: StepModel,
        costs: Cost,
        store: Store,
        clock: Callable[[], float],
        accuracy: Accuracy,
        observer: Observer | None = None,
        *,
        exact: bool = False,
        keep: int = 0,
    ) -> None:
        """`clock` gives seconds since 1970 UTC, for the times in records.

        exact: answers have the same bits in any batch, at the cost of batching for a model whose kernels do not give
        them. keep: how many steps a session can be rewound by.
        """
        row_by_row = exact and not model.manifest.exact
        self.chunk = 1 if row_by_row else costs.chunk
        self._model, self._costs, self._store, self._clock = model, costs, store, clock
        self._keep, self._features = keep, model.manifest.features
        self.accuracy = accuracy
        self._admission = Admission(model, store, clock, accuracy, observer)
        self._columns = RecordColumns(model, accuracy)
        self._has_columns = accuracy.has_columns and not keep
        self._count_sums = observer.watched(model, accuracy.sums) if observer and accuracy.enabled else None
        self._uncounted: list[list[float]] = []  # the increments of the sums by commits
        self._max_answer_bytes = idempotency.max_answer_bytes(accuracy.max_step_bytes)
        self._call = ModelCall(model, row_by_row=row_by_row)

    def run(self, batch: Sequence[BatchRow]) -> None:
        """Takes every row of the batch one model call further, and settles those that are finished or have failed.

        A row that is neither goes on in a later batch. Raises errors that no single row caused, such as a store's.
        """
        if new := [row for row in batch if row.progress is None]:
            self._admission.admit(new)
        together, alone = self._divided([row for row in batch if row.outcome is None])
        ready, row_inputs = _with_next_inputs(alone)
        count = len(together)
        if not count and not ready:
            return
        inputs, sizes = padded([row.inputs for row in together if row.inputs is not None] + row_inputs)
        columns = self._columns.joined([row.record for row in together if row.record is not None])
        predictions = self._columns.predictions(columns)
        states = self._states(columns, ready)
        seconds = self._costs.seconds(*inputs.shape[:2])
        outputs, after, are_finite = cost.run(lambda: self._call(inputs, sizes, states), seconds)
        if ready:
            own = slice(count, None)
            self._advance_alone(ready, inputs[own], sizes[own], states[own], outputs[own], after[own], are_finite[own])
        self._columns.set_states(columns, after[:count])
        step = Step(together, columns, predictions, inputs[:count, 0], outputs[:count, 0])
        self._commit(step if all(are_finite[:count]) else _finite_part(step, are_finite), ready)

    def _divided(self, rows: Sequence[BatchRow]) -> tuple[Sequence[BatchRow], Sequence[BatchRow]]:
        """Returns the rows that advance together as columns, and those that advance alone, whose progress is set."""
        fit = [row for row in rows if self._fits_columns(row)] if self._has_columns else []
        if len(fit) < MIN_COLUMN_ROWS:
            fit = []
        alone = rows
        if fit:
            apart = set(fit)
            alone = [row for row in rows if row not in apart] if len(fit) < len(rows) else []
        for row in alone:
            if row.progress is None and row.record is not None:
                accuracy = row.record.accuracy if self.accuracy.enabled else None
                row.progress = Progress(
                    row.length, self.chunk, row.record.state, accuracy, row.record.surprise, keep=self._keep
                )
        return fit, alone

    def _fits_columns(self, row: BatchRow) -> bool:
        record = row.record
        return (
            row.progress is None
            and row.length == 1
            and record is not None
            and len(row.requests) == 1
            and record.sizes[:2] == self._columns.sizes
        )

    def _states(self, columns: Columns, alone: Sequence[BatchRow]) -> State:
        """Returns the states of the rows in columns, then of the others."""
        if not alone:
            return self._columns.states(columns)
        states = self._model.layout.stack([row.progress.state for row in alone if row.progress is not None])
        if not len(columns):
            return states
        together = np.ascontiguousarray(self._columns.states(columns))
        return np.frombuffer(together.tobytes() + states.tobytes(), states.dtype)

    def _advance_alone(
        self,
        rows: Sequence[BatchRow],
        inputs: NDArray[np.float32],
        sizes: Sequence[int],
        states: State,
        outputs: Outputs,
        states_after: State,
        are_finite: Sequence[bool],
    ) -> None:
        """Advances each row by its outputs and the score of its inputs."""
        progresses = [row.progress for row in rows if row.progress is not None]
        accuracies = [progress.accuracy for progress in progresses]
        scored, accuracies_after = self._score(accuracies, inputs, sizes, states, outputs)
        is_one_step = outputs.shape[1] == 1
        state_bytes = self._call.split(states_after)
        for number, (row, progress) in enumerate(in_loop_turns(list(zip(rows, progresses, strict=True)))):
            if are_finite[number]:
                row_outputs = scored[number] if is_one_step else scored[number][: sizes[number]]
                surprise = progress.surprise
                if surprise is not None:
                    surprise = update_means(surprise, surprises(self._model, row_outputs))
                progress.advance(row_outputs, state_bytes[number], accuracies_after[number], surprise)
                row.size = progress.size
            else:
                row.settle(NotFiniteError())

    def _score(
        self,
        accuracies: Sequence[bytes | None],
        inputs: NDArray[np.float32],
        sizes: Sequence[int],
        states: State,
        outputs: Outputs,
    ) -> tuple[Sequence[Outputs] | Outputs, Sequence[bytes | None]]:
        """Scores the predictions made for the inputs, see `Accuracy.score_steps`; a large batch in parts."""
        count = max(1, SCORED_AT_ONCE // outputs.shape[1])
        if len(sizes) <= count:
            return self.accuracy.score_steps(accuracies, inputs, sizes, states, outputs)
        scored: list[Outputs] = []
        accuracies_after: list[bytes | None] = []
        for start in in_loop_turns(range(0, len(sizes), count), 1):
            part = slice(start, start + count)
            part_scored, part_after = self.accuracy.score_steps(
                accuracies[part], inputs[part], sizes[part], states[part], outputs[part]
            )
            scored.extend(part_scored)
            accuracies_after.extend(part_after)
        return scored, accuracies_after

    def _commit(self, step: Step, alone: Sequence[BatchRow]) -> None:
        """Settles the rows in columns and the finished ones of the others, those of sessions by one commit."""
        now = self._clock()
        finished = self._settle_standalone(alone)
        if not step.rows and not finished:
            return
        columns, scored, increments, records = step.columns, step.outputs, np.zeros((0, 0)), list[Record]()
        if step.rows:
            scored, increments = self._columns.advance(columns, step.predictions, step.inputs, step.outputs, now)
            records = self._records(step.rows, columns, scored)
        own_outputs = [progress.all_outputs() for _, progress in finished]
        records += [
            self._record(row, progress, outputs, now)
            for (row, progress), outputs in zip(finished, own_outputs, strict=True)
        ]
        rows, count = [*step.rows, *(row for row, _ in finished)], len(step.rows)
        changes = [
            Change(row.key, row.stored_revision, record, not row.creates_session)
            for row, record in zip(rows, records, strict=True)
        ]
        committed = self._store.commit_many(changes)
        if count:
            if self._count_sums is not None:
                counted = increments if all(committed[:count]) else increments[np.array(committed[:count], bool)]
                self._uncounted.append(np.add.reduce(counted).tolist())
            self._settle_together(step.rows, columns["step"].tolist(), scored, committed)
        for (row, _), outputs, record, is_committed in zip(
            finished, own_outputs, records[count:], committed[count:], strict=True
        ):
            if not is_committed:  # another process was faster: the row starts again from that process's record
                row.restart()
                continue
            if self._count_sums is not None and row.record is not None:
                self._uncounted.append(self.accuracy.increments([row.record.accuracy], [record.accuracy]))
            row.settle_requests(outputs, record.step)

    def _settle_standalone(self, rows: Sequence[BatchRow]) -> list[tuple[BatchRow, Progress]]:
        """Settles the finished rows of no session; returns those of sessions that are to be committed."""
        finished = []
        for row in in_loop_turns(rows):
            progress = row.progress
            if row.outcome is not None or progress is None or not progress.finished:
                continue
            if row.record is None:
                outputs = progress.all_outputs()
                row.settle(StandaloneResult(outputs, progress.state, progress.accuracy, progress.surprise))
            else:
                finished.append((row, progress))
        return finished

    def _settle_together(
        self, rows: Sequence[BatchRow], steps: list[int], scored: Outputs, committed: Sequence[bool]
    ) -> None:
        columns = ResultColumns(steps, scored)
        for number, row in enumerate(rows):
            if committed[number]:
                created = row.creates_session and steps[number] == 1
                outputs = scored[number : number + 1]
                row.settle(StepResult(self._model, steps[number], outputs, created, columns, number))
            else:
                row.restart()

    def _records(self, rows: Sequence[BatchRow], columns: Columns, scored: Outputs) -> list[Record]:
        """Returns the records of rows in columns."""
        before = [row.record for row in rows if row.record is not None]
        requests: list[bytes | None] = [None] * len(rows)
        for number, row in enumerate(rows):
            if row.requests[0].request.request_id:
                outputs = scored[number : number + 1]
                requests[number] = _remembered_requests(before[number], row.requests, outputs, self._max_answer_bytes)
        return self._columns.records(columns, before, requests)

    def _record(self, row: BatchRow, progress: Progress, outputs: Outputs, now: float) -> Record:
        """Returns the record of a session whose row has finished alone."""
        before = row.record
        assert before is not None
        assert progress.surprise is not None
        requests = None
        if any(pending.request.request_id for pending in row.requests):
            requests = _remembered_requests(before, row.requests, outputs, self._max_answer_bytes)
        accuracy = before.accuracy if progress.accuracy is None else progress.accuracy
        past = self._history(row, progress, before) if self._keep else b"" if before.sizes[-1] else None
        return before.advanced(len(outputs), now, progress.state, progress.surprise, accuracy, requests, past)

    def _history(self, row: BatchRow, progress: Progress, before: Record) -> bytes:
        """Returns the session's history after the row's inputs."""
        assert row.inputs is not None
        start = Point(before.step, before.surprise, before.state, before.accuracy)
        earlier = history.from_bytes(before.history) if before.history else history.begun(self._features, start)
        step, points = before.step + len(row.inputs), [start]
        for consumed, state, accuracy, surprise in list(progress.trail or ())[
            :-1
        ]:  # the last is the session's own state
            if len(points) > 1 and before.step + consumed <= step - self._keep:
                points.pop()  # the point added below is old enough
            assert surprise is not None
            points.append(Point(before.step + consumed, surprise, state, accuracy or b""))
        return earlier.advanced(points, row.inputs, step, self._keep).to_bytes()

    def count(self) -> None:
        """Reports to the observer what was committed since the last call of this method.

        No client waits for that, so it is called after the answers are sent.
        """
        if self._count_sums is not None and self._uncounted:
            increments = [sum(column) for column in zip(*self._uncounted, strict=True)]
            self._uncounted.clear()
            self._count_sums(increments)


def _finite_part(step: Step, are_finite: Sequence[bool]) -> Step:
    """Returns the step of the rows that are finite, and settles the others."""
    for row, is_finite in zip(step.rows, are_finite, strict=False):
        if not is_finite:
            row.settle(NotFiniteError())
    chosen: list[int] = np.flatnonzero(are_finite[: len(step.rows)]).tolist()
    rows = [step.rows[number] for number in chosen]
    predictions = {name: values[chosen] for name, values in step.predictions.items()}
    return Step(rows, step.columns[chosen], predictions, step.inputs[chosen], step.outputs[chosen])


def _with_next_inputs(rows: Sequence[BatchRow]) -> tuple[list[BatchRow], list[NDArray[np.float32]]]:
    """Returns the rows and their next inputs, without the rows whose next inputs cannot be made, which are settled."""
    ready, inputs = [], []
    for row in rows:
        assert row.progress is not None
        assert row.inputs is not None
        try:
            inputs.append(row.progress.next_inputs(row.inputs))
        except Exception as error:
            log.exception("a row has no next input")
            row.settle(error)
        else:
            ready.append(row)
    return ready, inputs


def _remembered_requests(
    before: Record, requests: Sequence[PendingRequest], outputs: Outputs, max_answer_bytes: int
) -> bytes:
    """Returns the session's last requests, with these appended. outputs: (steps,) of these, one after another."""
    remembered, first_step, end = before.requests, before.step, 0
    for pending in requests:
        if pending.outcome is None:
            start, end = end, end + pending.length
            if pending.request.request_id:
                entry = idempotency.AppliedRequest(pending.digest, first_step + end, outputs[start:end].tobytes())
                remembered = idempotency.remember(remembered, pending.request.request_id, entry, max_answer_bytes)
    return remembered
