"""The longest step and /healthz beside the largest request of every route, with one worker and with two.

    python -m bench.responsive              every route, about ten minutes
    python -m bench.responsive predict      some routes
    python -m bench.responsive --workers 1

Real servers serve the model `pulse` over loopback. Each large request is sent once, and repeated for WINDOW_S if it
is shorter. Beside it, clients send a step and a GET of /healthz in turn, on connections that are already open. The
table has the longest of each in milliseconds, their number, and the duration and response size of the large request.
Other work on the machine adds to all of them; the row `undisturbed` shows how much.
"""

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MOST_STEPS, MOST_HORIZON, MOST_ITEMS, HISTORY = 100_000, 10_000, 10_000, 1_000
WINDOW_S, MOST_S = 1.0, 60.0
JSON, LINES = "application/json", "application/x-ndjson"

Large = tuple[str, str, str]
"""A path, a body and its media type."""


def posted(path: str, body: Any) -> Large:
    return path, json.dumps(body), JSON


STEPS = [500.0] * MOST_STEPS
ROUTES: dict[str, Callable[[], Large]] = {
    "undisturbed": lambda: ("", "", ""),
    "step of 100,000": lambda: posted("/v1/sessions/large/steps", {"inputs": STEPS}),
    "create with 100,000": lambda: posted("/v1/models/pulse/sessions", {"inputs": STEPS}),
    "step without a session": lambda: posted("/v1/models/pulse/step", {"inputs": STEPS}),
    "predict, one of 100,000": lambda: posted("/v1/models/pulse/predict", {"inputs": [STEPS]}),
    "predict, 1,024 sequences": lambda: posted("/v1/models/pulse/predict", {"inputs": [[500.0] * 97] * 1024}),
    "predict, horizons": lambda: posted("/v1/models/pulse/predict", {"inputs": [[500.0]] * 1024, "horizon": 96}),
    "predict, long horizons": lambda: posted("/v1/models/pulse/predict", {"inputs": [[500.0]] * 10, "horizon": 9999}),
    "forecast": lambda: posted("/v1/sessions/large/forecast", {"horizon": MOST_HORIZON}),
    "sample paths, many": lambda: posted(
        "/v1/sessions/large/forecast", {"horizon": 97, "samples": 1024, "paths": True}
    ),
    "sample paths, long": lambda: posted(
        "/v1/sessions/large/forecast", {"horizon": MOST_HORIZON, "samples": 10, "paths": True}
    ),
    "quantiles": lambda: posted(
        "/v1/sessions/large/forecast",
        {"horizon": 1000, "samples": 100, "quantiles": [(number + 1) / 100 for number in range(99)]},
    ),
    "generate": lambda: posted("/v1/sessions/large/generate", {"horizon": MOST_HORIZON}),
    "bulk of 10,000 items": lambda: posted(
        "/v1/steps",
        {"session_ids": [f"s{n % 100}" for n in range(MOST_ITEMS)], "inputs": [[500.0] * 10] * MOST_ITEMS},
    ),
    "lines": lambda: ("/v1/sessions/large/steps", "500.0\n" * MOST_STEPS, LINES),
    "rewind": lambda: posted("/v1/sessions/past/rewind", {"step": 2 * HISTORY - 1}),
    "migrate": lambda: posted("/v1/sessions/past/migrate", {}),
    "list": lambda: ("/v1/sessions?limit=1000", "", "GET"),
}


@contextmanager
def serving(workers: int) -> Iterator[tuple[str, int]]:
    """Starts a service with its own store, and yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ONWARD_")} | {
            "PYTHONPATH": str(ROOT),
            "ONWARD_BIND": "127.0.0.1:0",
            "ONWARD_WORKERS": str(workers),
            "ONWARD_STORE": f"lmdb://{folder}/store",
            "ONWARD_HISTORY": str(HISTORY),
            "ONWARD_SECRET": "0123456789abcdef" * 2,
            "ONWARD_TIMEOUT_S": str(MOST_S),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "onward", "serve"], env=environment, cwd=ROOT, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            address = None
            for line in process.stdout:
                if found := re.search(r"Listening at: http://([\d.]+):(\d+)", line):
                    address = found[1], int(found[2])
                if line.startswith("Onward serves"):
                    break
            assert address is not None, "the service did not start"
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(connection: http.client.HTTPConnection, path: str, body: str = "", media: str = "GET") -> int:
    """Sends a request and returns the size of its response in bytes."""
    if media == "GET":
        connection.request("GET", path)
    else:
        connection.request("POST", path, body, {"Content-Type": media})
    answer = connection.getresponse()
    data = answer.read()
    assert answer.status < 300, data[:500]
    return len(data)


class Beside(threading.Thread):
    """Sends small requests in turn until `end` is called, and records how long each took."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__()
        self._address, self._over = address, threading.Event()
        self.took: dict[str, list[float]] = {"step": [], "healthz": []}

    def run(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=MOST_S)
        small = {"step": ("/v1/sessions/small/steps", '{"inputs": [500.0]}', JSON), "healthz": ("/healthz", "", "GET")}
        while not self._over.is_set():
            for name, request in small.items():
                began = time.perf_counter()
                ask(connection, *request)
                self.took[name].append(time.perf_counter() - began)
        connection.close()

    def end(self) -> None:
        self._over.set()
        self.join()


def measured(address: tuple[str, int], large: Large) -> str:
    """Measures a large request and returns a row of the table."""
    # two connections, so that two workers may each have one
    beside = [Beside(address) for _ in range(2)]
    for client in beside:
        client.start()
    connection = http.client.HTTPConnection(*address, timeout=2 * MOST_S)
    began, times, size = time.perf_counter(), 0, 0
    while (now := time.perf_counter()) - began < WINDOW_S:
        if large[0]:
            size, times = ask(connection, *large), times + 1
        else:
            time.sleep(WINDOW_S)
    took = (time.perf_counter() - began) / times if times else 0.0
    del now
    for client in beside:
        client.end()
    connection.close()
    step, healthz = ([second for client in beside for second in client.took[name]] for name in ("step", "healthz"))
    return f"{1e3 * max(step):6.0f} | {1e3 * max(healthz):7.0f} | {len(step):5} | {took:8.2f} | {size / 1e6:6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("routes", nargs="*", help="routes whose name begins so; all if left out")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    arguments = parser.parse_args()
    chosen = [
        name for name in ROUTES if not arguments.routes or any(name.startswith(route) for route in arguments.routes)
    ]
    print(
        "workers | beside | longest step (ms) | longest /healthz (ms) | steps | large request (s) | its response (MB)"
    )
    for workers in arguments.workers:
        with serving(workers) as address:
            connection = http.client.HTTPConnection(*address, timeout=MOST_S)
            for name in ("small", "large", "past", *(f"s{number}" for number in range(100))):
                ask(connection, *posted("/v1/models/pulse/sessions", {"session_id": name}))
            for _ in range(2):
                ask(connection, *posted("/v1/sessions/past/steps", {"inputs": STEPS[:HISTORY]}))
            connection.close()
            for name in chosen:
                print(f"{workers} | {name:26} | {measured(address, ROUTES[name]())}", flush=True)


if __name__ == "__main__":
    main()
