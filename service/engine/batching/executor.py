"""Execution of a batch: load the records, one call of ONNX Runtime, one commit.

Owns what happens to each row. Plain rows, which are one step of a session, advance in one of two ways, which give the
same bits: few in plain Python, more as columns of one array. Rows that take longer, or belong to no session, advance
row by row. One bad row never fails its neighbours.
"""

import logging
import struct
from collections.abc import Callable, Sequence

import numpy as np

from onward.model.inputs import InputArray
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
from onward.service.engine.batching.model_call import ModelCall, padded, split
from onward.service.engine.batching.record_columns import RecordColumns
from onward.service.engine.event_loop import in_loop_turns
from onward.service.engine.observer import Observer
from onward.service.engine.sessions import history
from onward.service.engine.sessions.history import Point
from onward.service.errors import NotFiniteError
from onward.service.store import idempotency
from onward.service.store.contract import Change, Store
from onward.service.store.record import HEAD, STEP, SURPRISE, Record

MIN_COLUMN_ROWS = 12
"""The number of rows from which columns cost less than row by row."""
SCORED_AT_ONCE = 1024
"""The number of inputs of a batch whose predictions are scored in one turn of the event loop."""

_FLOAT = struct.Struct("<f")

log = logging.getLogger(__name__)


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
        self._columns = RecordColumns(model, accuracy)
        plain_sizes = self._columns.sizes if accuracy.has_columns and not keep else None
        self._admission = Admission(model, store, clock, accuracy, plain_sizes, observer)
        self._count_sums = observer.watched(model, accuracy.sums) if observer and accuracy.enabled else None
        self._uncounted: list[list[float]] = []  # the increments of the sums by steps of columns
        self._uncounted_rows: list[tuple[Record | None, Record]] = []  # other records before and after their commits
        self._scorer = accuracy.step_scorer if accuracy.enabled else None
        self._max_answer_bytes = idempotency.max_answer_bytes(accuracy.max_step_bytes)
        self._call, self._step_s = ModelCall(model, row_by_row=row_by_row), costs.seconds(1, 1)
        surprise, fields = model.manifest.head.surprise, model.output_dtype.fields
        self._surprise_start = None if surprise is None or fields is None else fields[surprise][1]

    def run(self, batch: Sequence[BatchRow]) -> None:
        """Takes every row of the batch one model call further, and settles those that are finished or have failed.

        A row that is neither goes on in a later batch. Raises errors that no single row caused, such as a store's.
        """
        if new := [row for row in batch if row.progress is None]:
            self._admission.admit(new)
        rows = [row for row in batch if row.outcome is None]
        plain = [row for row in rows if row.is_plain]
        longer = [row for row in rows if not row.is_plain] if len(plain) < len(rows) else []
        if plain:
            (self._step_rows if len(plain) < MIN_COLUMN_ROWS else self._step_columns)(plain)
        if longer:
            self._go_on(longer)

    # Rows of one step

    def _step_rows(self, rows: Sequence[BatchRow]) -> None:
        """Makes the step of few plain rows, in plain Python."""
        results = self._run_alone(rows[0]) if len(rows) == 1 else self._run_together(rows)
        now, stepped, records, answers = self._clock(), [], [], []
        for row, (outputs, state, is_finite) in zip(rows, results, strict=True):
            record, inputs = row.record, row.inputs
            assert record is not None
            assert inputs is not None
            if not is_finite:
                row.settle(NotFiniteError())
                continue
            surprise, means = None, row.head[SURPRISE]
            if self._surprise_start is not None:
                surprise = _FLOAT.unpack_from(outputs, self._surprise_start)[0]
                means = update_means(means, (surprise,))
            scores, accuracy, requests = b"", b"", None
            if self._scorer is not None:
                scores, accuracy = self._scorer.score(record.data, HEAD.size, inputs[0].tolist(), surprise)
            answer = np.ndarray(1, self.accuracy.scored_dtype, outputs + scores)
            if row.requests[0].request.request_id:
                requests = self._requests_of(row, record, answer)
            stepped.append(row)
            answers.append(answer)
            records.append(record.advanced(1, now, state, means, accuracy, requests))
        committed = self._commit(stepped, records)
        for row, record, answer, is_committed in zip(stepped, records, answers, committed, strict=True):
            if is_committed:
                self._uncounted_rows.append((row.record, record))
                step = row.head[STEP] + 1
                row.settle(StepResult(self._model, step, answer, row.creates_session and step == 1))

    def _run_alone(self, row: BatchRow) -> list[tuple[bytes, bytes, bool]]:
        """Returns what `_run_together` does for one row, at less cost."""
        assert row.record is not None
        assert row.inputs is not None
        start = HEAD.size + self._columns.sizes[0]
        state = row.record.data[start : start + self._model.layout.dtype.itemsize]
        if self._step_s <= cost.INLINE_S:
            return [self._model.run_step(row.inputs, state)]
        return [cost.run(self._step_s, self._model.run_step, row.inputs, state)]

    def _run_together(self, rows: Sequence[BatchRow]) -> list[tuple[bytes, bytes, bool]]:
        """Returns the bytes of each row's outputs, those of its state after them, and whether all is finite."""
        inputs, sizes = padded([row.inputs for row in rows if row.inputs is not None])
        states = self._model.layout.stack([row.record.state for row in rows if row.record is not None])
        outputs, after, are_finite = self._run_model(inputs, sizes, states)
        return list(zip(split(outputs), split(after), are_finite, strict=True))

    def _step_columns(self, rows: Sequence[BatchRow]) -> None:
        """Makes the step of more plain rows, as columns."""
        before = [row.record for row in rows if row.record is not None]
        inputs, sizes = padded([row.inputs for row in rows if row.inputs is not None])
        columns = self._columns.joined(before)
        outputs, after, are_finite = self._run_model(inputs, sizes, self._columns.states(columns))
        if not all(are_finite):
            chosen: list[int] = np.flatnonzero(are_finite).tolist()
            for row, is_finite in zip(rows, are_finite, strict=True):
                if not is_finite:
                    row.settle(NotFiniteError())
            rows, before = [rows[number] for number in chosen], [before[number] for number in chosen]
            columns, inputs, outputs, after = columns[chosen], inputs[chosen], outputs[chosen], after[chosen]
        now = self._clock()
        scored, increments = self._columns.advance(columns, inputs[:, 0], outputs[:, 0], after, now)
        requests = [
            self._requests_of(row, before[number], scored[number : number + 1])
            if row.requests[0].request.request_id
            else None
            for number, row in enumerate(rows)
        ]
        committed = self._commit(rows, self._columns.records(columns, before, requests))
        if self._count_sums is not None:
            counted = increments if all(committed) else increments[np.array(committed, bool)]
            self._uncounted.append(np.add.reduce(counted).tolist())
        results = ResultColumns(columns["step"].tolist(), scored)
        for number, (row, step, is_committed) in enumerate(zip(rows, results.steps, committed, strict=True)):
            if is_committed:
                created = row.creates_session and step == 1
                row.settle(StepResult(self._model, step, None, created, results, number))

    def _requests_of(self, row: BatchRow, record: Record, answer: Outputs) -> bytes:
        """Returns the session's requests after that of the row. answer: (1,)"""
        return _remembered_requests(record, row.requests, answer, self._max_answer_bytes)

    def _commit(self, rows: Sequence[BatchRow], records: Sequence[Record]) -> list[bool]:
        """Commits the rows' records; returns for each whether it was.

        If another process was faster, the row starts again from that process's record.
        """
        if not rows:
            return []
        changes = [
            Change(row.key, row.stored_revision, record, not row.creates_session)
            for row, record in zip(rows, records, strict=True)
        ]
        committed = self._store.commit_many(changes)
        if not all(committed):
            for row, is_committed in zip(rows, committed, strict=True):
                if not is_committed:
                    row.restart()
        return committed

    def _run_model(self, inputs: InputArray, sizes: Sequence[int], states: State) -> tuple[Outputs, State, list[bool]]:
        return cost.run(self._costs.seconds(*inputs.shape[:2]), self._call, inputs, sizes, states)

    # Rows that take longer, or belong to no session

    def _go_on(self, rows: Sequence[BatchRow]) -> None:
        """Takes rows one call of the model further, each by itself in plain Python."""
        for row in rows:
            if row.progress is None and row.record is not None:
                accuracy = row.record.accuracy if self.accuracy.enabled else None
                row.progress = Progress(
                    row.length, self.chunk, row.record.state, accuracy, row.record.surprise, keep=self._keep
                )
        rows, row_inputs = _with_next_inputs(rows)
        if not rows:
            return
        inputs, sizes = padded(row_inputs)
        states = self._model.layout.stack([row.progress.state for row in rows if row.progress is not None])
        outputs, after, are_finite = self._run_model(inputs, sizes, states)
        self._advance(rows, inputs, sizes, states, outputs, after, are_finite)
        self._finish(rows)

    def _advance(
        self,
        rows: Sequence[BatchRow],
        inputs: InputArray,
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
        state_bytes = split(states_after)
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
        inputs: InputArray,
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

    def _finish(self, rows: Sequence[BatchRow]) -> None:
        """Settles the rows that are finished, those of sessions by one commit."""
        now = self._clock()
        finished, answers, records = [], [], []
        for row in in_loop_turns(rows):
            progress = row.progress
            if row.outcome is not None or progress is None or not progress.finished:
                continue
            outputs = progress.all_outputs()
            if row.record is None:
                row.settle(StandaloneResult(outputs, progress.state, progress.accuracy, progress.surprise))
            else:
                finished.append(row)
                answers.append(outputs)
                records.append(self._record(row, progress, outputs, now))
        for row, record, outputs, is_committed in zip(
            finished, records, answers, self._commit(finished, records), strict=True
        ):
            if is_committed:
                self._uncounted_rows.append((row.record, record))
                row.settle_requests(outputs, record.step)

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
        rows, increments = self._uncounted_rows, self._uncounted
        self._uncounted_rows, self._uncounted = [], []
        if self._count_sums is None:
            return
        if rows:
            befores, afters = zip(*rows, strict=True)
            before = [record.accuracy for record in befores if record is not None]
            increments.append(self.accuracy.increments(before, [record.accuracy for record in afters]))
        if increments:
            self._count_sums([sum(column) for column in zip(*increments, strict=True)])


def _with_next_inputs(rows: Sequence[BatchRow]) -> tuple[list[BatchRow], list[InputArray]]:
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
