"""What a call of a model costs, measured once when it is opened.

A call of `rows` x `steps` takes about `steps * (step_s + rows * row_s)`. From it follow the lengths of chunks, the size
of batches, and whether a call runs in the event loop or in a native thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import gevent
import numpy as np

from model.runner import StepModel

INLINE_S = 0.002
"""Longer calls run in a native thread: ONNX Runtime lets go of the interpreter, and the event loop goes on."""
CHUNK_S, MOST_CHUNK = 0.001, 64
"""One row's chunk of a long call takes about so long, and has no more steps: what waits beside it is not held up."""
BATCH_S, MOST_ROWS = 0.02, 256
"""A batch takes about so long at most, and has no more rows; 64 rows of one step it has whatever they cost."""

_ROWS, _STEPS, _TIMES = 32, 4, 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    step_s: float
    row_s: float

    def call_s(self, rows: int, steps: int) -> float:
        return steps * (self.step_s + rows * self.row_s)

    @property
    def chunk(self) -> int:
        """Most steps of one row in one call."""
        return max(1, min(MOST_CHUNK, int(CHUNK_S / self.call_s(1, 1))))

    @property
    def cells(self) -> int:
        """Most rows x steps of a call."""
        return max(64, int(BATCH_S / (self.row_s + self.step_s / 64)))


def measure(model: StepModel) -> Cost:
    """The least of a few tries each: other work on the machine only ever adds."""
    alone, many = _fastest(model, 1) / _STEPS, _fastest(model, _ROWS) / _STEPS
    row_s = max(many - alone, many / _ROWS / 2) / (_ROWS - 1)
    return Cost(max(alone - row_s, 1e-7), row_s)


def _fastest(model: StepModel, rows: int) -> float:
    inputs = np.zeros((rows, _STEPS, len(model.features)), np.float32)
    lengths, state = np.full(rows, _STEPS, np.int32), model.layout.initial(rows)
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        model.run(inputs, lengths, state)
        times.append(time.perf_counter() - began)
    return min(times)


def run(work: Callable[[], T], seconds: float) -> T:
    """Here if it is short, in a native thread if it is long; other greenlets run meanwhile."""
    if seconds <= INLINE_S:
        return work()
    done: T = gevent.get_hub().threadpool.apply(work)
    return done
