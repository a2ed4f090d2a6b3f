"""The cost of a call of a model, measured once when the model is opened.

A call of `rows` x `steps` takes about `call_s + steps * (step_s + rows * row_s)`. This cost determines the lengths of
chunks, the size of batches, and whether a call runs in the event loop or in a native thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import gevent
import numpy as np

from onward.model.runner import StepModel
from onward.service.engine.batching.model_call import ModelCall, padded

INLINE_S = 0.004
"""Calls that take longer run in a native thread: ONNX Runtime releases the GIL, so the event loop goes on."""
CHUNK_S, MOST_CHUNK = 0.002, 64
"""Limits of one row's chunk of a long input, in time and in steps, so that it does not hold up the rows that wait."""
BATCH_S, MOST_ROWS = 0.02, 256
"""Limits of a batch, in time and in rows. A batch may have 64 rows of one step whatever they cost."""

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
        """The most steps of one row in one call."""
        return max(1, min(MOST_CHUNK, int(CHUNK_S / (self.step_s + self.row_s))))

    @property
    def cells(self) -> int:
        """The most rows x steps of one call."""
        return max(64, int(BATCH_S / (self.row_s + self.step_s / 64)))


def measure(model: StepModel) -> Cost:
    """Returns the cost of the model's calls.

    Each time is the least of a few tries, because other work on the machine can only add to it.
    """
    call = ModelCall(model)
    step, chunk, batch = (_fastest(model, call, *shape) for shape in ((1, 1), (1, _STEPS), (_ROWS, _STEPS)))
    step_of_one_row = max(chunk - step, 1e-7) / (_STEPS - 1)
    row = max(batch - chunk, 1e-7) / _STEPS / (_ROWS - 1)
    return Cost(max(step - step_of_one_row, 0.0), max(step_of_one_row - row, 0.0), row)


def _fastest(model: StepModel, call: ModelCall, rows: int, steps: int) -> float:
    inputs, sizes = padded([np.zeros((steps, len(model.features)), model.input_dtype)] * rows)
    states = model.layout.initial(rows)
    times = []
    for _ in range(_TIMES):
        wall, cpu = time.perf_counter(), time.process_time()
        call(inputs, sizes, states)
        times += [
            time.perf_counter() - wall,
            time.process_time() - cpu,
        ]  # the smaller counts: wall time has other work in it, CPU time may be that of several threads
    return min(times)


def run(seconds: float, work: Callable[..., T], *arguments: Any) -> T:
    """Runs `work`, which takes about so many seconds, with the arguments and returns its result.

    Work longer than `INLINE_S` runs in a native thread, and other greenlets run meanwhile.
    """
    if seconds <= INLINE_S:
        return work(*arguments)
    result: T = gevent.get_hub().threadpool.apply(work, arguments)
    return result
