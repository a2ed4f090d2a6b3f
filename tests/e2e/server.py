"""A real service in processes of its own: gunicorn, its workers, LMDB."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tests.helpers.reference_loop import ROOT

START_S = 60
ESTABLISHED = "01"
"""The state of an established connection in /proc/net/tcp."""
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""A context without certificates: by default httpx loads all system certificates for each client, which is slow."""
COMMAND = [sys.executable, "-m", "onward", "serve"]


class Server:
    """`onward serve` on a free port with two workers. The store survives when the service is killed and started again.

    `log` has the lines that the service has printed; it is complete once the service has ended.
    """

    command: Sequence[str | Path] = COMMAND
    cwd = ROOT

    def __init__(self, folder: Path, **settings: str) -> None:
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ONWARD_")}
        self._environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._environment |= {
            "ONWARD_WORKERS": "2",
            "ONWARD_BIND": "127.0.0.1:0",
            "ONWARD_STORE": f"lmdb://{folder}/store",
        }
        self._environment |= settings
        self._process: subprocess.Popen[str] | None = None
        self.log: list[str] = []
        self.url = ""

    def start(self) -> None:
        """Starts the service; returns once the first worker serves."""
        process, up = self._launch()
        assert up.wait(START_S), "".join(self.log)
        assert process.poll() is None, "".join(self.log)

    def _launch(self) -> tuple["subprocess.Popen[str]", threading.Event]:
        self._process = subprocess.Popen(
            self.command, env=self._environment, cwd=self.cwd, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        up = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._process, up))
        self._reader.start()
        return self._process, up

    def start_and_fail(self) -> int:
        """Starts a service that must give up; returns its exit status."""
        self._launch()
        return self._wait()

    def refusal(self) -> str:
        """Starts a service that must refuse to start; returns what it prints."""
        finished = subprocess.run(
            self.command, env=self._environment, cwd=self.cwd, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 1, finished.stderr
        assert not finished.stdout
        return finished.stderr

    def _read(self, process: "subprocess.Popen[str]", up: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.log.append(line)
            if found := re.search(r"Listening at: (http://[\d.]+:(\d+))", line):
                self.url = found[1]
                self._environment["ONWARD_BIND"] = f"127.0.0.1:{found[2]}"
            if line.startswith("Onward serves"):
                up.set()
        up.set()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        """Returns the worker processes that are alive."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(child) for child in children.split()]

    def holder(self, connection: socket.socket) -> int:
        """Returns the worker process that has accepted this connection."""
        local, peer = (f"{address[1]:04X}" for address in (connection.getpeername(), connection.getsockname()))
        # the table changes while it is read, so that a line may occur twice or be missing in a single reading
        readings = (Path("/proc/net/tcp").read_text().splitlines()[1:] for _ in range(3))
        table = [line.split() for line in chain.from_iterable(readings)]
        matching = [row for row in table if row[1].endswith(f":{local}") and row[2].endswith(f":{peer}")]
        # an ended connection with the same ports may still be listed
        sockets = {f"socket:[{row[9]}]" for row in matching if row[3] == ESTABLISHED}
        for worker in self.workers():
            if sockets & open_files(worker):
                return worker
        raise AssertionError("no worker holds the connection")

    def ready_workers(self) -> list[int]:
        """Returns the workers that have begun to serve, which have the store open."""
        return [worker for worker in self.workers() if any(name.endswith("/lock.mdb") for name in open_files(worker))]

    def has_ended(self) -> bool:
        """True if the service has ended by itself."""
        assert self._process is not None
        return self._process.poll() is not None

    def exit_status(self) -> int:
        """Waits for a service that ends by itself; returns its exit status."""
        return self._wait()

    def kill_worker(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kills the master and the workers at once with SIGKILL."""
        os.killpg(self.pid, signal.SIGKILL)
        self._wait()

    def stop(self) -> int:
        """Stops the service with SIGTERM, as an operator does; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int:
        assert self._process is not None
        status = self._process.wait(START_S)
        self._reader.join(START_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return status

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, verify=NO_TLS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()


def open_files(pid: int) -> set[str]:
    """Returns the names of the open files of a process; an empty set if it has just ended."""
    names = set()
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                names.add(str(link.readlink()))
    return names
