"""A campaign of faults, one after another, under load, and its report."""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import httpx

from tests.e2e.faults import repository
from tests.e2e.faults.load import Tally, clients
from tests.e2e.faults.repository import Repository
from tests.e2e.server import Server
from tests.helpers.reference_loop import ROOT
from tests.helpers.valkey_server import Server as Valkey

CLIENTS, SESSIONS = 16, 200
PAUSE_S = 0.7
"""The time between two faults, and the unit of the duration of a temporary fault."""
DISK_BYTES = 64 * 2**20
MOST_CREATED = 2000


@dataclass
class Report:
    seconds: float
    acknowledged: int
    lost: int
    doubled: int
    strayed: int
    """The number of sessions whose model version has changed."""
    wrong: list[str]
    faults: Counter[str]
    errors: Counter[str]
    longest_unavailability_s: float

    def __str__(self) -> str:
        lines = [
            f"{self.seconds:.0f} s, {CLIENTS} clients, {SESSIONS} sessions",
            f"acknowledged steps      {self.acknowledged}",
            f"lost                    {self.lost}",
            f"applied twice           {self.doubled}",
            f"on another version      {self.strayed}",
            f"wrong answers           {len(self.wrong)}",
            f"longest unavailability  {self.longest_unavailability_s:.1f} s",
            "faults    " + ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items())),
            "errors    " + ", ".join(f"{name} {count}" for name, count in sorted(self.errors.items())),
        ]
        return "\n".join(lines + self.wrong[:3])


class Site:
    """The service with its store and, now and then, a second replica; and the faults that can be caused in them."""

    def __init__(self, folder: Path, store: str, chance: Random, valkey: Valkey | None) -> None:
        self._clock, self._valkey, self._chance, self._folder = folder / "clock", valkey, chance, folder
        self._clock.write_text("0")
        self._repository = Repository(folder / "models")
        self._settings = {
            "ONWARD_MODELS": str(self._repository.folder), "ONWARD_STORE": store,
            "ONWARD_SWEEP_S": "0.5", "ONWARD_FLUSH_S": "0.5",
            "PYTHONPATH": f"{ROOT / 'tests/e2e/faults/clock'}{os.pathsep}{ROOT}", "STEPPED_CLOCK": str(self._clock),
        }  # fmt: skip
        self.server = Server(folder, **self._settings)
        self.replica: Server | None = None
        self.faults: dict[str, Callable[[], None]] = {
            "worker killed": self._worker_killed,
            "service killed": self._service_killed,
            "service stopped": self._service_stopped,
            "reload": lambda: repository.reload(self.server),
            "models changed": self._models_changed,
            "worker paused": self._worker_paused,
            "clock stepped": lambda: self._step_clock(chance.uniform(-60, 60)),
            "replica": self._replica,
        }
        if valkey is None:
            self.faults |= {"disk full": self._disk_full, "store cut short": self._store_cut_short}
        else:
            self.faults |= {"Valkey killed": self._valkey_killed, "Valkey paused": self._valkey_paused}

    def urls(self) -> list[str]:
        return [self.server.url] + ([self.replica.url] if self.replica else [])

    def _choose_worker(self) -> int | None:
        workers = self.server.workers()
        return self._chance.choice(workers) if workers else None

    def _worker_killed(self) -> None:
        self._kill_worker()

    def _kill_worker(self) -> int | None:
        if (worker := self._choose_worker()) is not None:
            send_signal(worker, signal.SIGKILL)
        return worker

    def _models_changed(self) -> None:
        repository.check_change(self.server, self._repository, self._kill_worker)

    def _worker_paused(self) -> None:
        if (worker := self._choose_worker()) is not None and send_signal(worker, signal.SIGSTOP):
            time.sleep(3 * PAUSE_S)
            send_signal(worker, signal.SIGCONT)

    def _service_killed(self) -> None:
        self.server.kill()
        self.server.start()

    def _service_stopped(self) -> None:
        assert self.server.stop() == 0, "".join(self.server.log[-20:])
        self.server.start()

    def _step_clock(self, offset: float) -> None:
        self._clock.write_text(f"{offset:<30}")

    def _replica(self) -> None:
        if self.replica is None:
            started = Server(self._folder, **self._settings)
            started.start()
            self.replica = started
        else:
            stopped, self.replica = self.replica, None
            stopped.kill()

    def _disk_full(self) -> None:
        ballast = self._folder / "store" / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (2**20, 2**12):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass
        assert self._create_until(507), "the disk was full, and no session was refused"
        with httpx.Client(base_url=self.server.url, timeout=30) as client:
            filler = client.get("/v1/sessions", params={"limit": 1}).json()["sessions"][0]["session_id"]
            if not filler.startswith(
                "s"
            ):  # the ids of the load are s0, s1, ...; the ids made here are random and hexadecimal
                assert client.delete(f"/v1/sessions/{filler}").status_code == 204, "a full disk takes no deletion"
        ballast.unlink()
        assert self._create_until(201), "the disk has room again, and sessions are refused"

    def _store_cut_short(self) -> None:
        if self.replica is not None:
            self._replica()
        assert self.server.stop() == 0, "".join(self.server.log[-20:])
        data = self._folder / "store" / "data.mdb"
        whole = data.read_bytes()
        os.truncate(data, self._chance.randrange(2**16))
        assert "data.mdb is cut short" in self.server.refusal()
        data.write_bytes(whole)
        self.server.start()

    def _create_until(self, status: int) -> bool:
        """Creates sessions until one is answered with that status; returns whether one was.

        On a full disk existing sessions continue in the pages that they have; a new session needs new pages and fails.
        """
        with httpx.Client(base_url=self.server.url, timeout=30) as client:
            return any(
                client.post("/v1/models/pulse/sessions", json={}).status_code == status for _ in range(MOST_CREATED)
            )

    def _valkey_killed(self) -> None:
        assert self._valkey is not None
        self._valkey.kill()
        time.sleep(PAUSE_S)
        self._valkey.start()

    def _valkey_paused(self) -> None:
        assert self._valkey is not None
        self._valkey.signal(signal.SIGSTOP)
        time.sleep(2 * PAUSE_S)
        self._valkey.signal(signal.SIGCONT)

    def close(self) -> None:
        for server in (self.server, self.replica):
            if server is not None:
                server.__exit__(None, None, None)


def send_signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def small_disk(folder: Path, size: int = DISK_BYTES) -> Iterator[None]:
    """Mounts a file system of `size` bytes at the folder, so that it can be filled. Needs the right to mount."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def campaign(folder: Path, kind: str, seconds: float, seed: int) -> Report:
    """Causes faults one after another under load, for that long and until each has come at least once.

    No fault comes again before every other fault has come.
    """
    chance, tally, over = Random(seed), Tally(), threading.Event()
    faults: Counter[str] = Counter()
    with ExitStack() as stack:
        valkey = None
        if kind == "lmdb":
            stack.enter_context(small_disk(folder / "store"))
            store = f"lmdb://{folder}/store"
        else:
            valkey = Valkey(folder / "valkey")
            stack.callback(valkey.kill)
            store = valkey.uri
        site = Site(folder, store, chance, valkey)
        stack.callback(site.close)
        site.server.start()
        load = clients(CLIENTS, SESSIONS, site.urls, tally, over)
        began = time.monotonic()
        for client in load:
            client.start()
        try:
            deck: list[str] = []
            while time.monotonic() - began < seconds or len(faults) < len(site.faults):
                deck = deck or chance.sample(sorted(site.faults), len(site.faults))
                name = deck.pop()
                site.faults[name]()
                faults[name] += 1
                time.sleep(PAUSE_S)
        finally:
            over.set()
            for client in load:
                client.join(30)
        assert not any(client.is_alive() for client in load), (
            f"requests without a response: {tally.errors} {site.server.log[-30:]}"
        )
        lost = doubled = strayed = 0
        with httpx.Client(base_url=site.server.url, timeout=30) as checker:
            for client in load:
                for session in client.sessions:
                    info = checker.get(f"/v1/sessions/{session.name}").json()
                    strayed += info["version"] != repository.FIRST
                    lost += max(0, session.step - info["step"])
                    doubled += max(0, info["step"] - session.step)
    faults["upload with a length cut"] = tally.cut
    return Report(
        time.monotonic() - began, tally.acknowledged, lost, doubled, strayed, tally.wrong, faults, tally.errors,
        tally.longest_unavailability_s,
    )  # fmt: skip
