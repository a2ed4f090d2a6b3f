"""Benchmarks of the service beside a FastAPI server, a naive server, and ONNX Runtime alone.

    make bench                  all cases, about ten minutes
    make bench ARGS="A B"       some cases; ARGS="--rounds 1" for a quick look

Real servers run on one core and are driven over loopback by another process on another core; every response is checked.
The servers that are compared take turns, round by round, and the ratio of a case is the median of the ratios of its
rounds. Rates are per CPU second of the server's worker, so that other work on the machine affects them little. Prints a
table and writes `bench/report.json`.
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
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from bench import network, servers
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
"""Turns are short, so that both servers meet the same phases of a shared machine."""
CLIENTS, FEW_CLIENTS = 64, 8
FEW, MANY = 1_000, 1_000_000
CATCH_UP = 100_000


@dataclass
class Case:
    """A ratio and its goal; `most`: the goal is an upper bound of the ratio, not a lower bound."""

    what: str
    goal: float
    most: bool = False
    unit: str = ""
    rounds: list[tuple[float, float]] = field(default_factory=list)  # pairs of measurement and reference

    @property
    def ratio(self) -> float:
        return statistics.median(measurement / reference for measurement, reference in self.rounds)

    @property
    def met(self) -> bool:
        return self.ratio <= self.goal if self.most else self.ratio >= self.goal

    def row(self, name: str) -> str:
        measurement, reference = (statistics.median(column) for column in zip(*self.rounds, strict=True))
        goal = f"{'at most' if self.most else 'at least'} {self.goal:g}"
        result = "met" if self.met else "NOT MET"
        figures = f"{measurement:10.4g} {reference:10.4g} {self.unit}"
        return f"{name:10} {self.what:62} {self.ratio:8.2f}  {goal:13} {result:8} {figures}"


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
            sample = np.random.default_rng(0).standard_normal((7, PROOF_STEPS, 1)).astype(np.float32)
            export(lstm(layers, units), bundle=bundle, sample=sample)
            self._made.add(bundle)
        return bundle

    def bare_network(self, layers: int, units: int) -> Path:
        """The ONNX file of the network of `bundle`, without the score."""
        file = self.folder / f"lstm-{layers}x{units}.onnx"
        network.write(lstm(layers, units), file, self.bundle(layers, units))
        return file

    @contextmanager
    def onward(self, bundle: Path) -> Iterator[Server]:
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as store,
            servers.onward(bundle.parents[1], f"lmdb://{store}") as server,
        ):
            yield server

    def turns(self, *measured: Callable[[], float]) -> Iterator[tuple[float, ...]]:
        """Rounds of all measurements, in alternating order, after a round that warms up."""
        for turn in range(self.rounds + 1):
            order = list(enumerate(measured))[:: 1 if turn % 2 else -1]
            results = {index: measure() for index, measure in order}
            if turn:
                yield tuple(results[index] for index in range(len(measured)))

    def compare(self, measured: Sequence[Callable[[], float]], *cases: tuple[Case, int, int]) -> None:
        """Runs rounds of all measurements. A case names the indices of its measurement and of its reference."""
        for results in self.turns(*measured):
            for case, measurement, reference in cases:
                case.rounds.append((results[measurement], results[reference]))

    # The cases

    def singles(self, selected: set[str]) -> None:
        """A, B, B8: single steps of LSTM 2x128 beside the naive server and beside the FastAPI server."""
        bundle = self.bundle(2, 128)
        with (
            self.onward(bundle) as service,
            servers.naive(bundle) as naive,
            servers.fastapi(self.bare_network(2, 128)) as fastapi,
        ):
            for name in sessions(CLIENTS):
                post(service, "/v1/models/model/sessions", {"session_id": name})
                for server in (naive, fastapi):
                    post(server, f"/sessions/{name}", {})
            driven = [
                (service, steps("/v1/sessions", CLIENTS)),
                (naive, steps("/sessions", CLIENTS)),
                (fastapi, steps("/sessions", CLIENTS)),
            ]

            def latency_ms(server: Server, calls: list[Calls]) -> float:
                return 1e3 * server.drive(calls[:1], SLICE_S).quantile(0.5)

            def rate(clients: int, server: Server, calls: list[Calls]) -> float:
                return server.drive(calls[:clients], SLICE_S).per_cpu_s

            if "A" in selected:
                case = self.case("A", "median latency, LSTM 2x128, 1 client : naive", 0.6, most=True, unit="ms")
                beside = self.case("A-fastapi", "... : FastAPI, the bare network", 0.75, most=True, unit="ms")
                self.compare([partial(latency_ms, *pair) for pair in driven], (case, 0, 1), (beside, 0, 2))
            if "B" in selected:
                case = self.case("B", "single steps a CPU second, LSTM 2x128, 64 clients : naive", 12, unit="/s")
                beside = self.case("B-fastapi", "... : FastAPI, the bare network", 8, unit="/s")
                self.compare([partial(rate, CLIENTS, *pair) for pair in driven], (case, 0, 1), (beside, 0, 2))
            if "B8" in selected:
                what = "single steps a CPU second, LSTM 2x128, 8 clients : FastAPI"
                case = self.case("B8-fastapi", what, 3, unit="/s")
                self.compare([partial(rate, FEW_CLIENTS, *pair) for pair in (driven[0], driven[2])], (case, 0, 1))

    def large(self, selected: set[str]) -> None:
        """C: single steps of LSTM 2x1024 beside ONNX Runtime alone."""
        del selected
        bundle = self.bundle(2, 1024)
        with self.onward(bundle) as service:
            for name in sessions(CLIENTS):
                post(service, "/v1/models/model/sessions", {"session_id": name})
            what = "steps a CPU second, LSTM 2x1024 : ONNX Runtime, batches of 64"
            case = self.case("C", what, 0.8, unit="/s")
            measured = [
                lambda: service.drive(steps("/v1/sessions", CLIENTS), 3 * SLICE_S).per_cpu_s,
                lambda: servers.limit(bundle, CLIENTS, 1, 2 * SLICE_S),
            ]
            self.compare(measured, (case, 0, 1))

    def bulk(self, selected: set[str]) -> None:
        """D: bulk calls of 256 sessions."""
        del selected
        bundle, rows = self.bundle(2, 128), 256
        with self.onward(bundle) as service:
            for name in sessions(rows):
                post(service, "/v1/models/model/sessions", {"session_id": name})
            rng = Random(0)
            calls: Calls = [
                ("/v1/steps", {"session_ids": sessions(rows), "inputs": [[value(rng)] for _ in range(rows)]})
                for _ in range(8)
            ]
            case = self.case("D", "bulk, 256 sessions a call : ONNX Runtime's rate in batches of 256", 0.3, unit="/s")
            measured = [
                lambda: rows * service.drive([calls], SLICE_S).per_cpu_s,
                lambda: servers.limit(bundle, rows, 1, SLICE_S),
            ]
            self.compare(measured, (case, 0, 1))

    def predict(self, selected: set[str]) -> None:
        """E: predictions of whole sequences, without sessions."""
        del selected
        bundle, rows, length, rng = self.bundle(2, 128), 64, 100, Random(0)
        call = {"inputs": [[[value(rng)] for _ in range(length)] for _ in range(rows)]}
        with self.onward(bundle) as service:
            case = self.case("E", "predict, 64 sequences x 100 steps, JSON : ONNX Runtime's rate", 0.5, unit="/s")
            measured = [
                lambda: rows * length * service.drive([[("/v1/models/model/predict", call)]], 2).per_cpu_s,
                lambda: servers.limit(bundle, rows, length, 1),
            ]
            self.compare(measured, (case, 0, 1))

    def beside_a_catch_up(self, selected: set[str]) -> None:
        """F: single steps of 8 clients, alone and beside another session that catches up."""
        del selected
        bundle, clients, seconds, rng = self.bundle(2, 128), FEW_CLIENTS, 4.0, Random(0)
        long = {"inputs": [[value(rng)] for _ in range(CATCH_UP)]}
        with self.onward(bundle) as service:
            for name in [*sessions(clients), "long"]:
                post(service, "/v1/models/model/sessions", {"session_id": name})
            few = steps("/v1/sessions", clients)

            def disturbed() -> float:
                load = servers.begun(service.load([[("/v1/sessions/long/steps", long)]], seconds))
                p99 = service.drive(few, seconds).quantile(0.99)
                servers.result(load)  # waits for the end of the catch-up
                return 1e3 * p99

            what = "p99 of single steps while a session catches up 100,000 : undisturbed"
            case = self.case("F", what, 3, most=True, unit="ms")
            self.compare([disturbed, lambda: 1e3 * service.drive(few, seconds).quantile(0.99)], (case, 0, 1))

    def idle(self, selected: set[str]) -> None:
        """G: a million sessions in the store against a thousand, stepped at random."""
        del selected
        bundle = self.bundle(1, 32)
        stores = {count: self.folder / f"store-{count}" for count in (MANY, FEW)}
        for count, store in stores.items():
            fill(bundle, store, count)
        with (
            servers.onward(bundle.parents[1], f"lmdb://{stores[MANY]}") as many,
            servers.onward(bundle.parents[1], f"lmdb://{stores[FEW]}") as few,
        ):
            speed = self.case("G", "single steps a CPU second, 1,000,000 sessions : 1,000 sessions", 0.85, unit="/s")
            memory = self.case("G-memory", "the worker's own memory after it : the same", 1.1, most=True, unit="MiB")
            calls = {count: scattered(count) for count in stores}
            for turn in self.turns(
                lambda: many.drive(calls[MANY], 2 * SLICE_S).per_cpu_s,
                lambda: few.drive(calls[FEW], 2 * SLICE_S).per_cpu_s,
            ):
                speed.rounds.append((turn[0], turn[1]))
                memory.rounds.append((many.anonymous_kib() / 1024, few.anonymous_kib() / 1024))

    def networked(self, selected: set[str]) -> None:
        """H: sessions in Valkey, which writes its file each second, against LMDB. The CPU time of Valkey counts too."""
        del selected
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
            case = self.case("H", "single steps a CPU second, Valkey (its own counted in) : LMDB", 0.6, unit="/s")
            calls = steps("/v1/sessions", CLIENTS)
            measured = [lambda: remote.drive(calls, SLICE_S).per_cpu_s, lambda: local.drive(calls, SLICE_S).per_cpu_s]
            self.compare(measured, (case, 0, 1))

    def streams(self, selected: set[str]) -> None:
        """I: steps over WebSockets beside requests on the fast path and behind Flask."""
        del selected
        bundle = self.bundle(2, 128)
        with (
            self.onward(bundle) as service,
            tempfile.TemporaryDirectory(dir=self.folder) as store,
            servers.onward(bundle.parents[1], f"lmdb://{store}", ONWARD_LANE="0") as flask,
        ):
            for server in (service, flask):
                for name in sessions(CLIENTS):
                    post(server, "/v1/models/model/sessions", {"session_id": name})
            requests = steps("/v1/sessions", CLIENTS)
            messages = [[(path.replace("/steps", "/stream"), body) for path, body in calls] for calls in requests]
            lane = self.case("I", "steps a CPU second over WebSockets, 64 clients : the fast path", 1.2, unit="/s")
            behind = self.case("I-flask", "the same : Flask", 2, unit="/s")
            measured = [
                lambda: service.drive(messages, SLICE_S).per_cpu_s,
                lambda: service.drive(requests, SLICE_S).per_cpu_s,
                lambda: flask.drive(requests, SLICE_S).per_cpu_s,
            ]
            self.compare(measured, (lane, 0, 1), (behind, 0, 2))

    def in_process(self, selected: set[str]) -> None:
        """J: a step of `onward.load` beside ONNX Runtime alone on the same graph, in one process."""
        del selected
        what = "a step of onward.load, LSTM 2x128 : ONNX Runtime, same graph"
        case = self.case("J", what, 1.5, most=True, unit="us")
        case.rounds.extend(servers.in_process(self.bundle(2, 128), self.rounds, SLICE_S))


def lstm(layers: int, units: int) -> Network:
    """A network with random weights, the same at each call, that scales neither its inputs nor its targets."""
    torch.manual_seed(0)
    signature = Signature((Feature(name="x"),), ("x",))
    model = Model(cell="lstm", layers=layers, units=units)
    return Network(model, signature, TrainingStatistics(torch.zeros(1), torch.ones(1)))


def sessions(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


def value(rng: Random) -> float:
    return round(rng.gauss(0, 1), 3)


def steps(prefix: str, clients: int) -> list[Calls]:
    """Requests of clients that each step their own session, with 16 different inputs that repeat."""
    rng = Random(0)
    return [[(f"{prefix}/{name}/steps", {"inputs": [[value(rng)]]}) for _ in range(16)] for name in sessions(clients)]


def scattered(count: int) -> list[Calls]:
    """Requests of clients that step random sessions, no two clients the same session."""
    rng = Random(0)
    names = sessions(count)
    return [
        [(f"/v1/sessions/{rng.choice(names[client::CLIENTS])}/steps", {"inputs": [[value(rng)]]}) for _ in range(250)]
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
    """Fills a store with so many sessions, copies of one that the service created."""
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
    "singles": ("A", "B", "B8"),
    "bulk": ("D",),
    "predict": ("E",),
    "beside_a_catch_up": ("F",),
    "large": ("C",),
    "idle": ("G",),
    "networked": ("H",),
    "streams": ("I",),
    "in_process": ("J",),
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
    all_cases = sorted({name for names in GROUPS.values() for name in names})
    parser = argparse.ArgumentParser(prog="make bench ARGS=...")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {' '.join(all_cases)}; all if left out")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.cases) - set(all_cases)):
        parser.error(f"no such case: {' '.join(unknown)}; there is {' '.join(all_cases)}")
    selected = set(arguments.cases or all_cases)
    if len(servers.CORES) < 2:
        sys.exit("the benchmark needs two cores: one for the server, one for the load")
    print(machine(), f"commit {commit()}", sep="\n", flush=True)
    head = f"{'case':10} {'what : compared with':62} {'ratio':>8}  {'goal':13} {'':8} {'measured':>10} {'compared':>10}"
    print(head, flush=True)
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.rounds)
        for group, names in GROUPS.items():
            if selected & set(names):
                before = set(bench.cases)
                getattr(bench, group)(selected)
                for name in [name for name in bench.cases if name not in before]:
                    case = bench.cases[name]
                    print(case.row(name), flush=True)
                    ratios = [measurement / reference for measurement, reference in case.rounds]
                    cases[name] = {"ratio": case.ratio, "goal": case.goal, "met": case.met, "what": case.what,
                                   "rounds": ratios, "measured": case.rounds, "unit": case.unit}  # fmt: skip
    REPORT.write_text(json.dumps({"machine": machine(), "commit": commit(), "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
