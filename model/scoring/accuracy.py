"""The accuracy of a model's sessions: which rows are scored, and with or without adaptive intervals.

Knows nothing of what is counted: that is in `RunningStatistics`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import InputArray
from onward.model.manifest import Head
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.anomaly import KINDS, AnomalyKind
from onward.model.scoring.central_interval import Floats
from onward.model.scoring.columns import score_columns
from onward.model.scoring.conformal import RING_SIZE
from onward.model.scoring.layout import StatisticsLayout
from onward.model.scoring.statistics import IntervalStatistics, RunningStatistics, TargetStatistics
from onward.model.scoring.step_scorer import StepScorer
from onward.model.state import State


class Accuracy:
    """The running statistics of one model's sessions, without and with intervals: the length of the bytes shows which.

    A session that has not been scored has empty bytes. enabled: whether predictions are scored; if not, stored answers
    that have scores can still be decoded.
    """

    def __init__(self, model: StepModel, *, enabled: bool = True) -> None:
        plain, with_intervals = StatisticsLayout(model), StatisticsLayout(model, intervals=True)
        self.enabled = enabled and (bool(plain.targets) or model.manifest.head.surprise is not None)
        self.why_no_anomaly = _why_no_anomaly(model.manifest.head, enabled=enabled)
        """The reason why no session can have anomalies; None if sessions can have them."""
        self.why_no_intervals = (
            None if self.enabled and plain.numbers else _why_no_intervals(model.manifest.head, enabled=enabled)
        )
        """The reason why no session can have intervals; None if sessions can have them."""
        self.sums = plain.sums
        self._plain, self._with_intervals = plain, with_intervals
        self._first = {kind: plain.first(kind=kind) for kind in KINDS}
        self.columns_dtype = np.dtype([]) if not self.enabled else plain.dtype
        """The statistics of the sessions that `score_columns` scores, as rows of a structured array."""
        self.has_columns = not self.enabled or not plain.nullable
        """True if `score_columns` can score the model's sessions: those without intervals, whose targets are present.
        """
        # Both layouts also if scoring is disabled: answers that were stored before may have scores.
        layouts = [plain, with_intervals] if plain.numbers else [plain]
        self._by_size = {layout.size: RunningStatistics(layout) for layout in layouts}
        self._earlier = {size: layout for layout in layouts for size in layout.earlier_sizes}
        """The layouts by their sizes in earlier versions."""
        self.step_scorer = StepScorer(plain)
        """What scores a finite row of one step of a session that `score_columns` could score, with the same bits."""
        self.scored_dtype = plain.output_dtype if self.enabled else model.output_dtype
        """The outputs of a step that `score_columns` or `step_scorer` has scored."""
        dtypes = (model.output_dtype, *(layout.output_dtype for layout in layouts))
        self._dtypes = {dtype.itemsize: dtype for dtype in dtypes}

    def initial(self, nominal: float | None, kind: AnomalyKind | None = None) -> bytes:
        """Returns the statistics of a new session, without intervals or with their nominal coverage.

        kind: what its anomaly is; None: the default. Returns empty bytes if predictions are not scored.
        """
        if nominal and self.why_no_intervals is None:
            return self._with_intervals.first(nominal, kind or KINDS[0])
        return self._first[kind or KINDS[0]] if self.enabled else b""

    def anomaly_kind(self, statistics: bytes) -> AnomalyKind | None:
        """Returns what a session's anomaly is; None if its inputs have none."""
        return self._plain.anomaly_kind(self._present(statistics)) if self.enabled else None

    def can_read(self, size: int) -> bool:
        """True if statistics of that many bytes have this model's layout, or are not read at all."""
        return not self.enabled or size in self._by_size or size in self._earlier or not size

    def decode_outputs(self, data: bytes, steps: int) -> Outputs:
        """Decodes a stored answer (steps,); its length shows which scores it has beside the outputs."""
        return np.frombuffer(data, self._dtypes[len(data) // steps])

    @property
    def max_step_bytes(self) -> int:
        """The bytes of the longest answer to one step."""
        return max(self._dtypes)

    @np.errstate(all="ignore")
    def score_steps(
        self,
        statistics: Sequence[bytes | None],
        inputs: InputArray,
        sizes: Sequence[int],
        before: State,
        outputs: Outputs,
    ) -> tuple[Sequence[Outputs] | Outputs, Sequence[bytes | None]]:
        """Scores rows as `RunningStatistics.score` does; a row whose statistics are None keeps its plain outputs.

        Rows whose outputs are not finite are scored too, without a warning; the caller discards their results.
        """
        started = [self._present(row or b"") for row in statistics]
        scorers = [
            None if before is None else self._by_size[len(row)] for before, row in zip(statistics, started, strict=True)
        ]
        if len(distinct := set(scorers)) == 1 and (scorer := scorers[0]) is not None:
            return scorer.score(started, inputs, sizes, before, outputs)
        answers, after = list[Outputs](outputs), list[bytes | None](statistics)
        for scorer in distinct - {None}:
            assert scorer is not None
            rows = [row for row, row_scorer in enumerate(scorers) if row_scorer is scorer]
            scored, updated = scorer.score(
                [started[row] for row in rows], inputs[rows], [sizes[row] for row in rows], before[rows], outputs[rows]
            )
            for row, answer, row_statistics in zip(rows, scored, updated, strict=True):
                answers[row], after[row] = answer, row_statistics
        return answers, after

    @np.errstate(all="ignore")
    def score_columns(
        self, records: NDArray[np.void], start: int, inputs: InputArray, outputs: Outputs
    ) -> tuple[Outputs, Floats]:
        """Scores rows of one step, see `columns.score_columns`; the outputs stay as they are if nothing is scored.

        records: (rows,), each of which has at `start` its statistics, of `columns_dtype`, which are updated in place,
        and after them the state before its input. inputs: (rows, features). outputs: (rows,).
        """
        if not self.enabled:
            return outputs, np.zeros((len(outputs), 0))
        layout, rows, strides = self._plain, len(records), records.strides
        numbers = np.ndarray((rows, layout.row.size // 8), np.float64, records, start, (*strides, 8))
        ring = np.ndarray((rows, RING_SIZE), np.float32, records, start + layout.ring.start, (*strides, 4))
        predictions = np.ndarray(rows, layout.stored_prediction_dtype, records, start + layout.size, strides)
        return score_columns(layout, numbers, ring, inputs, predictions, outputs)

    def increments(self, before: Sequence[bytes], after: Sequence[bytes]) -> list[float]:
        """Returns the increment of each of `sums`, added over all rows."""
        sums, rows = self._plain.summed([*after, *map(self._present, before)]), len(after)
        total: list[float] = np.add.reduce(sums[:rows] - sums[rows:]).tolist()
        return total

    def target_statistics(self, statistics: bytes) -> dict[str, TargetStatistics] | None:
        """Returns a session's statistics by target; None if no input has been scored in a session without intervals."""
        statistics = self._present(statistics)
        if not self.enabled or statistics in self._first.values():
            return None
        return self._by_size[len(statistics)].target_statistics(statistics)

    def interval_statistics(self, statistics: bytes) -> IntervalStatistics | None:
        """Returns the statistics of a session's intervals; None if it has none."""
        if not self.enabled:
            return None
        statistics = self._present(statistics)
        return self._by_size[len(statistics)].interval_statistics(statistics)

    def _present(self, statistics: bytes) -> bytes:
        """Returns a session's statistics in the present layout, also those of a session that has not been scored."""
        if layout := self._earlier.get(len(statistics)):
            return layout.from_earlier(statistics)
        return statistics or self._first[KINDS[0]]


def _why_no_anomaly(head: Head, *, enabled: bool) -> str | None:
    if enabled and head.surprise is not None:
        return None
    return f"{'the model has no surprise' if enabled else 'accuracy is not counted here'}, so there is no anomaly"


def _why_no_intervals(head: Head, *, enabled: bool) -> str:
    if not enabled:
        reason = "accuracy is not counted here"
    elif head.ranks_categories or head.kind == "label":
        reason = "the model predicts no numbers"
    else:
        reason = "the model does not keep its last prediction in its state"
    return f"{reason}, so there are no intervals"
