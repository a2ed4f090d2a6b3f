"""A profile of a step: where the time goes from the socket to the answer, by file, and how many calls a step makes.

    python -m bench.step_profile

The engine, the LMDB store and the fast path run in one process over pairs of sockets; the model is an LSTM 2x128. The
profiler makes each call of a function slower, so the shares overstate files with many short functions.
"""

import cProfile
import pstats
from collections import Counter
from pathlib import Path
from typing import Any

import gevent.socket
from gunicorn.config import Config

from bench.local_engine import local_engine
from onward.service.server.fast_path import FastPath

CLIENTS, REQUESTS = (1, 64), 6400
ROOT = str(Path(__file__).resolve().parents[1])
BODY = b'{"inputs":[[0.513]]}'
HEAD = (
    b"POST /v1/sessions/s%d/steps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


def step(pairs: list[tuple[Any, Any]]) -> None:
    for number, (local, _) in enumerate(pairs):
        local.sendall(HEAD % (number, len(BODY)) + BODY)
    for local, _ in pairs:
        assert local.recv(65_536).startswith(b"HTTP/1.1 200")


def profiled(fast_path: FastPath, clients: int) -> None:
    pairs = [gevent.socket.socketpair() for _ in range(clients)]
    for _, remote in pairs:
        gevent.spawn(fast_path.serve, remote, b"")
    profile = cProfile.Profile()
    for _ in range(3):
        step(pairs)
    profile.enable()
    for _ in range(REQUESTS // clients):
        step(pairs)
    profile.disable()
    report(profile, clients)
    for local, remote in pairs:
        local.close()
        remote.close()


def report(profile: cProfile.Profile, clients: int) -> None:
    times, calls = Counter[str](), 0
    for (file, _, name), (_, count, own_s, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file == "~":
            where = f"built in: {name}"
        else:
            where = str(Path(file).resolve()).removeprefix(ROOT + "/").rpartition("site-packages/")[2]
        times[where] += own_s
        calls += count
    total = sum(times.values())
    print(f"{clients} clients: {calls / REQUESTS:.0f} calls a step, {1e6 * total / REQUESTS:.0f} us with the profiler")
    for where, own_s in times.most_common(20):
        print(f"  {100 * own_s / total:5.1f}%  {where[:90]}")


def main() -> None:
    with local_engine(max(CLIENTS)) as engine:
        fast_path = FastPath(engine, Config(), most_body=1000, alive=lambda: True)
        for clients in CLIENTS:
            profiled(fast_path, clients)


if __name__ == "__main__":
    main()
