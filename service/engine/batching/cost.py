"""What a call of a model costs, measured once when it is opened.

A call of `rows` x `steps` takes about `call_s + steps * (step_s + rows * row_s)`. From it follow the lengths of chunks,
the size of batches, and whether a call runs in the event loop or in a native thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import gevent
import numpy as np

from onward.model.runner import StepModel
from onward.service.engine.batching.model_call import Caller, padded

INLINE_S = 0.004
"""Longer calls run in a native thread: ONNX Runtime lets go of the interpreter, and the event loop goes on."""
CHUNK_S, MOST_CHUNK = 0.002, 64
"""One row's chunk of a long call takes about so long, and has no more steps: what waits beside it is not held up."""
BATCH_S, MOST_ROWS = 0.02, 256
"""A batch takes about so long at most, and has no more rows; 64 rows of one step it has whatever they cost."""

_ROWS, _STEPS, _TIMES = 32, 8, 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    call_s: float
    step_s: float
    row_s: float

    def seconds(self, rows: int, steps: int) -> float:
        return self.call_s + steps * (self.step_s + rows * self.row_s)

    @property
    def chunk(self) -> int:
        """Most steps of one row in one call."""
        return max(1, min(MOST_CHUNK, int(CHUNK_S / (self.step_s + self.row_s))))

    @property
    def cells(self) -> int:
        """Most rows x steps of a call."""
        return max(64, int(BATCH_S / (self.row_s + self.step_s / 64)))


def measure(model: StepModel) -> Cost:
    """The least of a few tries each: other work on the machine only ever adds."""
    call = Caller(model)
    one, chunk, batch = (_fastest(model, call, *of) for of in ((1, 1), (1, _STEPS), (_ROWS, _STEPS)))
    alone = max(chunk - one, 1e-7) / (_STEPS - 1)
    row = max(batch - chunk, 1e-7) / _STEPS / (_ROWS - 1)
    return Cost(max(one - alone, 0.0), max(alone - row, 0.0), row)


def _fastest(model: StepModel, call: Caller, rows: int, steps: int) -> float:
    inputs, sizes = padded([np.zeros((steps, len(model.features)), np.float32)] * rows)
    states = model.layout.initial(rows)
    times = []
    for _ in range(_TIMES):
        wall, cpu = time.perf_counter(), time.process_time()
        call(inputs, sizes, states)
        times += [time.perf_counter() - wall, time.process_time() - cpu]  # less is right: other work, or more threads
    return min(times)


def run(work: Callable[[], T], seconds: float) -> T:
    """Here if it is short, in a native thread if it is long; other greenlets run meanwhile."""
    if seconds <= INLINE_S:
        return work()
    done: T = gevent.get_hub().threadpool.apply(work)
    return done
