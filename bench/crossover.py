"""The number of rows from which a batch of plain steps costs less as columns than row by row in plain Python.

    python -m bench.crossover

The engine and the LMDB store run in one process without HTTP; the model is an LSTM 2x128. Both ways take turns, and the
printed ratios are medians of their rounds.
"""

import statistics
import time

from bench.local_engine import TENANT, local_engine
from onward.service.engine.batching import executor
from onward.service.engine.batching.batch_row import StepRequest, StepResult
from onward.service.engine.engine import Engine

ROWS, ROUNDS, STEPS = (1, 2, 4, 8, 12, 16, 24, 32, 64), 15, 400
ALWAYS, NEVER = 1, 10**9


def seconds(engine: Engine, rows: int, least: int) -> float:
    """The time of a step of so many sessions. least: the number of rows from which they are columns."""
    executor.MIN_COLUMN_ROWS = least
    requests = [StepRequest(f"s{number}", [[0.513]]) for number in range(rows)]
    repeats = max(3, STEPS // rows)
    began = time.perf_counter()
    for _ in range(repeats):
        assert all(isinstance(result, StepResult) for result in engine.steps.step_many(TENANT, requests))
    return (time.perf_counter() - began) / repeats / rows


def main() -> None:
    print(f"chosen: columns from {executor.MIN_COLUMN_ROWS} rows on")
    with local_engine(max(ROWS)) as engine:
        for rows in ROWS:
            pairs = [(seconds(engine, rows, ALWAYS), seconds(engine, rows, NEVER)) for _ in range(ROUNDS)]
            ratio = statistics.median(columns / alone for columns, alone in pairs)
            print(f"{rows:3} rows: columns take {ratio:5.2f} of the time of row by row")


if __name__ == "__main__":
    main()
