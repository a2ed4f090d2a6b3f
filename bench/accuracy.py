"""The cost of accuracy for a step, in instructions of the process: the engine alone, with and without scoring.

    python -m bench.accuracy

Needs `perf`. The model is an LSTM 2x128, in one process, without HTTP; the number of instructions does not depend on
other work of the machine. Two processes run a different number of calls, and the difference of their instructions is
that of the calls, without the start of the process.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gevent

from bench.__main__ import Bench
from onward.model.repository import open_all
from onward.service.engine.engine import Engine, Limits
from onward.service.store.lmdb import LmdbStore

CASES = ((1, 1, 4000), (64, 1, 200), (1, 64, 200))
"""Sessions that step together, steps a call, and number of calls."""


def play(repository: str, accuracy: str, sessions: int, steps: int, calls: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(accuracy=accuracy == "on")
        engine = Engine(open_all(Path(repository)), LmdbStore(Path(folder)), limits)
        engine.start(flush_s=1000, sweep_s=1000)
        names = [f"s{number}" for number in range(sessions)]
        for name in names:
            engine.create("t", "model", session_id=name)

        def stepping(name: str) -> None:
            for call in range(calls):
                engine.steps.step("t", name, [[float(call % 7)]] * steps)

        gevent.joinall([gevent.spawn(stepping, name) for name in names], raise_error=True)
        engine.close()


def instructions(*arguments: str) -> int:
    command = ["perf", "stat", "-x,", "-e", "instructions:u", sys.executable, "-m", "bench.accuracy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "0"})
    return int(done.stderr.rpartition("instructions")[0].rpartition("\n")[2].split(",")[0])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = str(Bench(Path(folder), 1).bundle(2, 128).parents[1])
        print(f"{'sessions':>8} {'steps':>6} {'without':>10} {'with':>10} {'more':>7}   instructions a step")
        for sessions, steps, calls in CASES:
            each = []
            for accuracy in ("off", "on"):
                few, many = (
                    instructions(repository, accuracy, str(sessions), str(steps), str(times))
                    for times in (calls // 4, calls + calls // 4)
                )
                each.append((many - few) // (sessions * steps * calls))
            print(f"{sessions:8} {steps:6} {each[0]:10,} {each[1]:10,} {each[1] / each[0] - 1:7.1%}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
