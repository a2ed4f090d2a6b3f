"""How well the sessions of a model do: which of them are scored, and by which ledger.

Knows nothing of what is counted; that is the ledger's.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import Head
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.layout import StatisticsLayout
from onward.model.scoring.statistics import IntervalStatistics, RunningStatistics, TargetStatistics
from onward.model.state import State


class Accuracy:
    """One model's ledgers, and which of them a row's bytes are of: nothing yet, or as long as a ledger's.

    on: whether predictions are scored; where not, answers of when they were are told still.
    """

    def __init__(self, model: StepModel, *, enabled: bool = True) -> None:
        plain, corrected = StatisticsLayout(model), StatisticsLayout(model, intervals=True)
        self.enabled = enabled and (bool(plain.targets) or model.manifest.head.surprise is not None)
        self.why_no_intervals = (
            None if self.enabled and plain.numbers else _why_no_intervals(model.manifest.head, enabled=enabled)
        )
        """Why no session can have intervals; None: they can."""
        self.sums = plain.sums
        self._plain, self._corrected, self._first = plain, corrected, plain.first()
        known = [plain, corrected] if plain.numbers else [plain]  # also where off: what was kept before is read on
        self._by_size = {figures.size: RunningStatistics(figures) for figures in known}
        self._by_size[0] = self._by_size[plain.size]
        self._answers = {one.itemsize: one for one in (model.output_dtype, *(figures.answer for figures in known))}

    def initial(self, wanted: float | None) -> bytes:
        """Of a session that has seen nothing; of one that wants no intervals that is nothing."""
        return self._corrected.first(wanted) if wanted and self.why_no_intervals is None else b""

    def can_read(self, kept: bytes) -> bool:
        return not self.enabled or len(kept) in self._by_size

    def decode_outputs(self, data: bytes, steps: int) -> Outputs:
        """(steps,) an answer that was kept as bytes: how long it is says what it has beside outputs."""
        return np.frombuffer(data, self._answers[len(data) // steps])

    @property
    def max_step_bytes(self) -> int:
        """Bytes of the longest answer to a step."""
        return max(self._answers)

    @np.errstate(all="ignore")
    def score_steps(
        self,
        kept: Sequence[bytes | None],
        inputs: NDArray[np.float32],
        sizes: Sequence[int],
        before: State,
        outputs: Outputs,
    ) -> tuple[Sequence[Outputs] | Outputs, Sequence[bytes | None]]:
        """As a ledger's; None: a row that is not to be scored, which has its outputs alone for an answer.

        Rows whose outputs are not finite are scored too, without a warning: they come to nothing.
        """
        ledgers = [None if one is None else self._by_size[len(one)] for one in kept]
        begun = [one or self._first for one in kept]
        if len(kinds := set(ledgers)) == 1 and (ledger := ledgers[0]) is not None:
            return ledger.score(begun, inputs, sizes, before, outputs)
        answers, after = list[Outputs](outputs), list[bytes | None](kept)
        for ledger in kinds - {None}:
            assert ledger is not None
            rows = [row for row, its in enumerate(ledgers) if its is ledger]
            told, then = ledger.score(
                [begun[row] for row in rows], inputs[rows], [sizes[row] for row in rows], before[rows], outputs[rows]
            )
            for row, answer, one in zip(rows, told, then, strict=True):
                answers[row], after[row] = answer, one
        return answers, after

    def increments(self, before: Sequence[bytes], after: Sequence[bytes]) -> list[float]:
        """What each of `sums` has grown by from one to the other, over rows."""
        sums, rows = self._plain.summed([*after, *(one or self._first for one in before)]), len(after)
        total: list[float] = np.add.reduce(sums[:rows] - sums[rows:]).tolist()
        return total

    def target_statistics(self, kept: bytes) -> dict[str, TargetStatistics] | None:
        """By target, of a session that keeps these bytes; None where nothing is kept."""
        return self._by_size[len(kept)].target_statistics(kept) if kept and self.enabled else None

    def interval_statistics(self, kept: bytes) -> IntervalStatistics | None:
        """None where the session asked for none."""
        return self._by_size[len(kept)].interval_statistics(kept) if kept and self.enabled else None


def _why_no_intervals(head: Head, *, enabled: bool) -> str:
    if not enabled:
        why = "accuracy is not counted here"
    elif head.ranks_categories or head.kind == "label":
        why = "the model predicts no numbers"
    else:
        why = "the model does not keep its last prediction in its state"
    return f"{why}, so there are no intervals"
