"""A step of `onward.load` beside ONNX Runtime alone on the same graph, in one process. Prints CPU microseconds of both.

python -m bench.in_process BUNDLE ROUNDS SECONDS

The output is a list with a pair for each round, in which both take turns. ONNX Runtime alone computes the same arrays
again and again; a step also reads its input, checks and scores, carries the state, and returns a prediction.
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from random import Random

import onward
from bench import limit


def rounds(bundle: Path, count: int, seconds: float) -> list[tuple[float, float]]:
    session = onward.load(bundle).session()
    rng = Random(0)
    inputs = cycle([[round(rng.gauss(0, 1), 3)] for _ in range(16)])
    model, feeds = limit.opened(bundle, rows=1, steps=1)

    def step() -> None:
        session.step(next(inputs))

    def run() -> None:
        model.run(None, feeds)

    pairs = []
    for turn in range(count + 1):
        order = (step, run) if turn % 2 else (run, step)
        spent = {call: microseconds(call, seconds) for call in order}
        if turn:  # the first round warms up
            pairs.append((spent[step], spent[run]))
    return pairs


def microseconds(call: Callable[[], None], seconds: float) -> float:
    """CPU time of a call: the mean over some seconds."""
    began, calls = time.process_time(), 0
    while time.process_time() - began < seconds:
        for _ in range(100):
            call()
        calls += 100
    return 1e6 * (time.process_time() - began) / calls


if __name__ == "__main__":
    print(json.dumps(rounds(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
