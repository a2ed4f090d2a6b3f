"""Compares anomaly scores on series with planted faults: `python -m bench.anomaly [series a family]`. Needs `train`.

A small model is trained for each series on the points before any fault, and scores the rest as a session does: by the
rank among the last 256 surprises, by the tail, by runs, and by the rarer of tail and run. Printed are, for the families
on which constants were chosen and for the others, the standard score of a streaming anomaly benchmark, and precision
and recall at thresholds: the share of faults with an alarm in the window around their start, the share of alarms that
are in windows, and the false alarms among the points outside. At last, recall by kind of fault at an equal rate of
false alarms, and the time of a step.
"""

import math
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import gettempdir

import numpy as np
from numpy.typing import NDArray

from bench.anomaly_score import Scored, best
from bench.anomaly_series import FAMILIES, TUNED_ON, Series, corpus
from bench.anomaly_surprises import surprises
from onward.model.scoring.anomaly import KINDS, first_numbers, score_surprise
from onward.model.scoring.conformal import EMPTY

Floats = NDArray[np.float64]
Answers = list[tuple[Series, dict[str, Floats]]]

THRESHOLDS = (0.99, 0.995, 0.999, 0.9999)
EQUAL_RATE = 1e-3
"""The rate of false alarms at which recall is compared by kind of fault."""


def anomalies(row: NDArray[np.float32], kind: int) -> list[float]:
    """Returns the anomalies of surprises, one after another, as a session returns them."""
    numbers, data = first_numbers(kind), EMPTY + row.tobytes()
    return [
        score_surprise(numbers, 0, count, data, len(EMPTY) + 4 * count, surprise)
        for count, surprise in enumerate(row.tolist())
    ]


def answers(series: Series, folder: Path) -> dict[str, Floats]:
    """Returns the anomaly (points,) of each point by kind, and that of the rarer of run and tail."""
    scored, found = surprises(series, folder), {}
    for number, kind in enumerate(KINDS):
        found[str(kind)] = np.array(anomalies(scored, number))
    rarer = np.maximum(found["run"], found["tail"])
    return found | {"run or tail": np.maximum(1 - 2 * (1 - rarer), 0)}  # of two probabilities (Bonferroni)


def outside(series: Series) -> NDArray[np.bool_]:
    """Returns which points (points,) are scored and in no window."""
    is_outside = np.arange(len(series.values)) >= series.probation
    for first, last in series.windows:
        is_outside[first : last + 1] = False
    return is_outside


def print_scores(part: str, scored: Answers) -> None:
    """Prints the standard score, and recall, precision and the rate of false alarms at thresholds, by kind."""
    print(f"\n{part}: {len(scored)} series, {sum(len(series.faults) for series, _ in scored)} faults")
    print("anomaly | standard score | best threshold | recall, precision, false alarms in 1000 points at", *THRESHOLDS)
    for kind in scored[0][1]:
        result = best(Scored(found[kind], series.windows, series.probation) for series, found in scored)
        cells = []
        for threshold in THRESHOLDS:
            hits, inside, alarms, points = 0, 0, 0, 0
            for series, found in scored:
                is_alarm = found[kind] >= threshold
                hits += sum(bool(is_alarm[first : last + 1].any()) for first, last in series.windows)
                inside += sum(int(is_alarm[first : last + 1].sum()) for first, last in series.windows)
                is_outside = outside(series)
                alarms += int((is_alarm & is_outside).sum())
                points += int(is_outside.sum())
            recall, precision = hits / result.windows, inside / max(inside + alarms, 1)
            cells.append(f"{recall:.2f} {precision:.2f} {1000 * alarms / points:.2f}")
        print(kind, f"{result.score:.1f}", f"{1 - result.threshold:.1e} rarer", *cells, sep=" | ")


def print_kinds_of_faults(scored: Answers) -> None:
    """Prints the recall by kind of fault at thresholds with an equal rate of false alarms."""
    print(f"\nrecall by kind of fault at {1000 * EQUAL_RATE:g} false alarm in 1000 points")
    for kind in scored[0][1]:
        usual = np.concatenate([found[kind][outside(series)] for series, found in scored])
        rising = np.sort(usual[~np.isnan(usual)])
        threshold = rising[len(rising) - 1 - int(EQUAL_RATE * len(rising))]
        hits = defaultdict(list)
        for series, found in scored:
            for fault, (first, last) in zip(series.faults, series.windows, strict=True):
                hits[fault.kind].append(bool((found[kind][first : last + 1] > threshold).any()))
        every = [hit for of_fault in hits.values() for hit in of_fault]
        cells = [f"{name} {np.mean(of_fault):.2f} of {len(of_fault)}" for name, of_fault in sorted(hits.items())]
        print(kind, f"all {np.mean(every):.2f} of {len(every)}", *cells, sep=" | ")


def print_false_alarms(sessions: int = 300, steps: int = 3000) -> None:
    """Prints the rates of alarms where inputs are independent and distributed as predicted."""
    print("\nalarms in 1000 inputs of the predicted distribution, inputs 20 to 100, 101 to 256, later, at", *THRESHOLDS)
    rng = np.random.default_rng(0)
    drawn = {
        "gaussian": rng.standard_normal((sessions, steps)) ** 2 / 2,
        "student_t, df 5": 3 * np.log1p(rng.standard_t(5, (sessions, steps)) ** 2 / 5),
        "exponential surprise": rng.exponential(size=(sessions, steps)),
    }
    for name, rows in drawn.items():
        for number, kind in enumerate(KINDS):
            found = np.array([anomalies(row.astype(np.float32), number) for row in rows])
            cells = [
                " ".join(f"{1000 * (found[:, start:stop] >= threshold).mean():.2f}" for threshold in THRESHOLDS)
                for start, stop in ((19, 100), (100, 256), (256, steps))
            ]
            print(name, kind, *cells, sep=" | ")


def print_times(steps: int = 20_000) -> None:
    """Prints the CPU time of a surprise by kind, the least of some repetitions."""
    row = np.random.default_rng(0).exponential(size=steps).astype(np.float32)
    least = dict.fromkeys(range(len(KINDS)), math.inf)
    for _ in range(9):
        for kind in least:
            start = time.process_time()
            anomalies(row, kind)
            least[kind] = min(least[kind], time.process_time() - start)
    print(
        "\nmicroseconds of a surprise:", *(f"{KINDS[kind]} {1e6 * spent / steps:.2f}" for kind, spent in least.items())
    )


def main(numbers: int = 6) -> None:
    folder = Path(os.environ.get("ONWARD_BENCH_SURPRISES", str(Path(gettempdir()) / "onward-bench-surprises")))
    scored = [(series, answers(series, folder)) for series in corpus(tuple(FAMILIES), range(numbers))]
    print_scores("families on which constants were chosen", [item for item in scored if item[0].family in TUNED_ON])
    print_scores("other families", [item for item in scored if item[0].family not in TUNED_ON])
    print_scores("all", scored)
    print_kinds_of_faults(scored)
    print_false_alarms()
    print_times()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
