"""How fast the service is beside the server that one would write oneself, and beside ONNX Runtime alone.

    make bench                  all cases, about ten minutes
    make bench ARGS="A B"       some; ARGS="--rounds 1" for a glance

Real servers on one core, the load from another process on another core, over loopback, every answer checked. What is
compared takes turns, round by round; a case's ratio is the median of its rounds'. Rates are per CPU second of the
server's worker, so that a busy machine does little to them. Prints a table and writes `bench/report.json`.
"""

import argparse
import http.client
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from bench import servers
from bench.servers import Calls, Server
from onward.model.manifest import Feature
from onward.service.store import record as records
from onward.service.store.contract import Change
from onward.service.store.lmdb import LmdbStore
from onward.service.store.record import Record
from onward.training.config import Model
from onward.training.export.export_bundle import PROOF_STEPS, export
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network, Signature

REPORT = Path(__file__).with_name("report.json")
SLICE_S = 0.5
"""Turns are short, so that what is compared meets the same phases of a machine that others use too."""
CLIENTS = 64
FEW, MANY = 1_000, 1_000_000
CATCH_UP = 100_000


@dataclass
class Case:
    """A ratio and its goal; `most`: the ratio is to stay below the goal, not to reach it."""

    what: str
    goal: float
    most: bool = False
    unit: str = ""
    rounds: list[tuple[float, float]] = field(default_factory=list)  # what is measured, and what it is compared with

    @property
    def ratio(self) -> float:
        return statistics.median(mine / other for mine, other in self.rounds)

    @property
    def met(self) -> bool:
        return self.ratio <= self.goal if self.most else self.ratio >= self.goal

    def row(self, name: str) -> str:
        mine, other = (statistics.median(column) for column in zip(*self.rounds, strict=True))
        goal = f"{'at most' if self.most else 'at least'} {self.goal:g}"
        told = "met" if self.met else "NOT MET"
        return f"{name:9} {self.what:62} {self.ratio:8.2f}  {goal:13} {told:8} {mine:10.4g} {other:10.4g} {self.unit}"


class Bench:
    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.cases: dict[str, Case] = {}
        self._made: set[Path] = set()

    def case(self, name: str, what: str, goal: float, *, most: bool = False, unit: str = "") -> Case:
        self.cases[name] = Case(what, goal, most, unit)
        return self.cases[name]

    def bundle(self, layers: int, units: int) -> Path:
        """An LSTM with random weights, alone in a repository of its own."""
        bundle = self.folder / f"lstm-{layers}x{units}" / "model" / "1"
        if bundle not in self._made:
            torch.manual_seed(0)
            model = Model(cell="lstm", layers=layers, units=units)
            signature = Signature((Feature(name="x"),), ("x",))
            network = Network(model, signature, TrainingStatistics(torch.zeros(1), torch.ones(1)))
            sample = np.random.default_rng(0).standard_normal((7, PROOF_STEPS, 1)).astype(np.float32)
            export(network, bundle=bundle, sample=sample)
            self._made.add(bundle)
        return bundle

    @contextmanager
    def onward(self, bundle: Path) -> Iterator[Server]:
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as store,
            servers.onward(bundle.parents[1], f"lmdb://{store}") as server,
        ):
            yield server

    def turns(self, *measured: Callable[[], float]) -> Iterator[tuple[float, ...]]:
        """Rounds of all that are measured, in an order that changes; one more before them warms up."""
        for turn in range(self.rounds + 1):
            order = list(enumerate(measured))[:: 1 if turn % 2 else -1]
            told = {place: measure() for place, measure in order}
            if turn:
                yield tuple(told[place] for place in range(len(measured)))

    def compare(self, measured: Sequence[Callable[[], float]], *cases: tuple[Case, int, int]) -> None:
        """Rounds of all; each case is one of them beside another, by their places."""
        for told in self.turns(*measured):
            for case, mine, other in cases:
                case.rounds.append((told[mine], told[other]))

    # The cases

    def singles(self, wanted: set[str]) -> None:
        """A, B: single steps of LSTM 2x128 beside the naive server, and beside it what is possible at all."""
        bundle = self.bundle(2, 128)
        store = self.folder / "bare"
        store.mkdir()
        with self.onward(bundle) as ours, servers.naive(bundle) as theirs, servers.bare(bundle, store) as bare:
            for name in sessions(CLIENTS):
                post(ours, "/v1/models/model/sessions", {"session_id": name})
                post(theirs, f"/sessions/{name}", {})
            mine, other = steps("/v1/sessions", CLIENTS), steps("/sessions", CLIENTS)
            bare_too = "the same of a server that is durable, and no more"
            if "A" in wanted:
                case = self.case("A", "median latency, LSTM 2x128, 1 client : naive", 0.5, most=True, unit="ms")
                least = self.case("A-bare", bare_too, 0.5, most=True, unit="ms")
                measured = [
                    lambda: 1e3 * ours.drive(mine[:1], SLICE_S).quantile(0.5),
                    lambda: 1e3 * theirs.drive(other[:1], SLICE_S).quantile(0.5),
                    lambda: 1e3 * bare.drive(other[:1], SLICE_S).quantile(0.5),
                ]
                self.compare(measured, (case, 0, 1), (least, 2, 1))
            if "B" in wanted:
                case = self.case("B", "single steps a CPU second, LSTM 2x128, 64 clients : naive", 10, unit="/s")
                most = self.case("B-bare", bare_too, 10, unit="/s")
                measured = [
                    lambda: ours.drive(mine, SLICE_S).per_cpu_s,
                    lambda: theirs.drive(other, SLICE_S).per_cpu_s,
                    lambda: bare.drive(other, SLICE_S).per_cpu_s,
                ]
                self.compare(measured, (case, 0, 1), (most, 2, 1))

    def large(self, wanted: set[str]) -> None:
        """C: the same with LSTM 2x1024, beside the naive server and the limit."""
        del wanted
        bundle = self.bundle(2, 1024)
        with self.onward(bundle) as ours, servers.naive(bundle) as theirs:
            for name in sessions(CLIENTS):
                post(ours, "/v1/models/model/sessions", {"session_id": name})
                post(theirs, f"/sessions/{name}", {})
            beside = self.case("C", "single steps a CPU second, LSTM 2x1024, 64 clients : naive", 8, unit="/s")
            limit = self.case("C-limit", "... : ONNX Runtime's rate in batches of 64", 0.85, unit="/s")
            measured = [
                lambda: ours.drive(steps("/v1/sessions", CLIENTS), 3 * SLICE_S).per_cpu_s,
                lambda: theirs.drive(steps("/sessions", CLIENTS), 3 * SLICE_S).per_cpu_s,
                lambda: servers.limit(bundle, CLIENTS, 1, 2 * SLICE_S),
            ]
            self.compare(measured, (beside, 0, 1), (limit, 0, 2))

    def bulk(self, wanted: set[str]) -> None:
        """D: 256 sessions a call."""
        del wanted
        bundle, rows = self.bundle(2, 128), 256
        with self.onward(bundle) as ours:
            for name in sessions(rows):
                post(ours, "/v1/models/model/sessions", {"session_id": name})
            chance = Random(0)
            calls: Calls = [
                ("/v1/steps", {"session_ids": sessions(rows), "inputs": [[value(chance)] for _ in range(rows)]})
                for _ in range(8)
            ]
            case = self.case("D", "bulk, 256 sessions a call : ONNX Runtime's rate in batches of 256", 0.5, unit="/s")
            measured = [
                lambda: rows * ours.drive([calls], SLICE_S).per_cpu_s,
                lambda: servers.limit(bundle, rows, 1, SLICE_S),
            ]
            self.compare(measured, (case, 0, 1))

    def predict(self, wanted: set[str]) -> None:
        """E: whole sequences, without sessions."""
        del wanted
        bundle, rows, length, chance = self.bundle(2, 128), 64, 100, Random(0)
        call = {"inputs": [[[value(chance)] for _ in range(length)] for _ in range(rows)]}
        with self.onward(bundle) as ours:
            case = self.case("E", "predict, 64 sequences x 100 steps, JSON : ONNX Runtime's rate", 0.5, unit="/s")
            measured = [
                lambda: rows * length * ours.drive([[("/v1/models/model/predict", call)]], 2).per_cpu_s,
                lambda: servers.limit(bundle, rows, length, 1),
            ]
            self.compare(measured, (case, 0, 1))

    def beside_a_catch_up(self, wanted: set[str]) -> None:
        """F: 8 clients' single steps, alone and while another session catches up."""
        del wanted
        bundle, clients, seconds, chance = self.bundle(2, 128), 8, 4.0, Random(0)
        long = {"inputs": [[value(chance)] for _ in range(CATCH_UP)]}
        with self.onward(bundle) as ours:
            for name in [*sessions(clients), "long"]:
                post(ours, "/v1/models/model/sessions", {"session_id": name})
            few = steps("/v1/sessions", clients)

            def disturbed() -> float:
                load = servers.begun(ours.load([[("/v1/sessions/long/steps", long)]], seconds))
                p99 = ours.drive(few, seconds).quantile(0.99)
                servers.result(load)  # waits for the catch-up's end
                return 1e3 * p99

            what = "p99 of single steps while a session catches up 100,000 : undisturbed"
            case = self.case("F", what, 3, most=True, unit="ms")
            self.compare([disturbed, lambda: 1e3 * ours.drive(few, seconds).quantile(0.99)], (case, 0, 1))

    def idle(self, wanted: set[str]) -> None:
        """G: a million sessions in the store against a thousand; the load goes over them at random."""
        del wanted
        bundle = self.bundle(1, 32)
        stores = {count: self.folder / f"store-{count}" for count in (MANY, FEW)}
        for count, store in stores.items():
            fill(bundle, store, count)
        with (
            servers.onward(bundle.parents[1], f"lmdb://{stores[MANY]}") as many,
            servers.onward(bundle.parents[1], f"lmdb://{stores[FEW]}") as few,
        ):
            speed = self.case("G", "single steps a CPU second, 1,000,000 sessions : 1,000 sessions", 0.9, unit="/s")
            memory = self.case("G-memory", "the worker's own memory after it : the same", 1.1, most=True, unit="MiB")
            calls = {count: scattered(count) for count in stores}
            for turn in self.turns(
                lambda: many.drive(calls[MANY], 2 * SLICE_S).per_cpu_s,
                lambda: few.drive(calls[FEW], 2 * SLICE_S).per_cpu_s,
            ):
                speed.rounds.append((turn[0], turn[1]))
                memory.rounds.append((many.anonymous_kib() / 1024, few.anonymous_kib() / 1024))

    def networked(self, wanted: set[str]) -> None:
        """H: sessions in Valkey, which writes its file each second, against LMDB. What Valkey costs counts too."""
        del wanted
        bundle = self.bundle(2, 128)
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            servers.valkey(Path(folder)) as valkey,
            self.onward(bundle) as local,
            servers.onward(bundle.parents[1], valkey.uri) as remote,
        ):
            remote.pids = [*remote.pids, valkey.pid]
            for server in (local, remote):
                for name in sessions(CLIENTS):
                    post(server, "/v1/models/model/sessions", {"session_id": name})
            case = self.case("H", "single steps a CPU second, Valkey (its own counted in) : LMDB", 0.4, unit="/s")
            calls = steps("/v1/sessions", CLIENTS)
            measured = [lambda: remote.drive(calls, SLICE_S).per_cpu_s, lambda: local.drive(calls, SLICE_S).per_cpu_s]
            self.compare(measured, (case, 0, 1))

    def streams(self, wanted: set[str]) -> None:
        """I: steps over WebSockets, beside requests in the lane and behind Flask."""
        del wanted
        bundle = self.bundle(2, 128)
        with (
            self.onward(bundle) as ours,
            tempfile.TemporaryDirectory(dir=self.folder) as store,
            servers.onward(bundle.parents[1], f"lmdb://{store}", ONWARD_LANE="0") as flask,
        ):
            for server in (ours, flask):
                for name in sessions(CLIENTS):
                    post(server, "/v1/models/model/sessions", {"session_id": name})
            requests = steps("/v1/sessions", CLIENTS)
            messages = [[(path.replace("/steps", "/stream"), body) for path, body in own] for own in requests]
            lane = self.case("I", "steps a CPU second over WebSockets, 64 clients : the step lane", 1, unit="/s")
            behind = self.case("I-flask", "the same : Flask", 2, unit="/s")
            measured = [
                lambda: ours.drive(messages, SLICE_S).per_cpu_s,
                lambda: ours.drive(requests, SLICE_S).per_cpu_s,
                lambda: flask.drive(requests, SLICE_S).per_cpu_s,
            ]
            self.compare(measured, (lane, 0, 1), (behind, 0, 2))


def sessions(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


def value(chance: Random) -> float:
    return round(chance.gauss(0, 1), 3)


def steps(prefix: str, clients: int) -> list[Calls]:
    """A session a client, and 16 different inputs that it repeats."""
    chance = Random(0)
    return [
        [(f"{prefix}/{name}/steps", {"inputs": [[value(chance)]]}) for _ in range(16)] for name in sessions(clients)
    ]


def scattered(count: int) -> list[Calls]:
    """Each client steps sessions at random, no session of another client's."""
    chance = Random(0)
    names = sessions(count)
    return [
        [
            (f"/v1/sessions/{chance.choice(names[client::CLIENTS])}/steps", {"inputs": [[value(chance)]]})
            for _ in range(250)
        ]
        for client in range(CLIENTS)
    ]


def post(server: Server, path: str, body: Any) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status in {200, 201}, answer.read()
    answer.read()
    connection.close()


def fill(bundle: Path, folder: Path, count: int) -> None:
    """A store with that many sessions, as the service makes them."""
    with servers.onward(bundle.parents[1], f"lmdb://{folder}") as server:
        post(server, "/v1/models/model/sessions", {"session_id": "s0", "ttl_s": 86_400})
    store = LmdbStore(folder)
    (first,) = store.load_many([records.key("public", "s0")])
    assert isinstance(first, Record)
    names = sessions(count)[1:]
    for start in range(0, len(names), 5000):
        changes = [Change(records.key("public", name), None, first) for name in names[start : start + 5000]]
        assert all(store.commit_many(changes))
    store.close()


GROUPS: dict[str, tuple[str, ...]] = {
    "singles": ("A", "B"),
    "bulk": ("D",),
    "predict": ("E",),
    "beside_a_catch_up": ("F",),
    "large": ("C",),
    "idle": ("G",),
    "networked": ("H",),
    "streams": ("I",),
}


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    system = f"{platform.system()} {platform.release()}"
    return f"{cpu}, {len(servers.CORES)} cores, {system}, Python {platform.python_version()}"


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=servers.ROOT).stdout.strip()


def main() -> None:
    known = sorted({name for names in GROUPS.values() for name in names})
    parser = argparse.ArgumentParser(prog="make bench ARGS=...")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {' '.join(known)}; all if left out")
    parser.add_argument("--rounds", type=int, default=9)
    told = parser.parse_args()
    if unknown := sorted(set(told.cases) - set(known)):
        parser.error(f"no such case: {' '.join(unknown)}; there is {' '.join(known)}")
    wanted = set(told.cases or known)
    if len(servers.CORES) < 2:
        sys.exit("the bench needs two cores: one serves, the other makes the load")
    print(machine(), f"commit {commit()}", sep="\n", flush=True)
    head = f"{'case':9} {'what : compared with':62} {'ratio':>8}  {'goal':13} {'':8} {'measured':>10} {'compared':>10}"
    print(head, flush=True)
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), told.rounds)
        for group, names in GROUPS.items():
            if wanted & set(names):
                before = set(bench.cases)
                getattr(bench, group)(wanted)
                for name in [name for name in bench.cases if name not in before]:
                    case = bench.cases[name]
                    print(case.row(name), flush=True)
                    ratios = [mine / other for mine, other in case.rounds]
                    cases[name] = {"ratio": case.ratio, "goal": case.goal, "met": case.met, "what": case.what,
                                   "rounds": ratios, "measured": case.rounds, "unit": case.unit}  # fmt: skip
    REPORT.write_text(json.dumps({"machine": machine(), "commit": commit(), "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
