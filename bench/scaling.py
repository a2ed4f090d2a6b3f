"""The machines that a number of sessions and a rate of steps need: measured costs of single cores, and arithmetic.

    python -m bench.scaling --sessions 10000000 --rate 1000000

Measures the cost of a step for a worker and for Valkey, and the size of a session, with an LSTM 2x128 on this machine;
then multiplies. Every step is assumed to read its record and to write it: with so many sessions, no worker has the
record of a session in its cache.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis

from bench import servers
from bench.__main__ import CLIENTS, Bench, machine, post, sessions, steps
from onward.service.store import record as records
from onward.service.store.contract import Change
from onward.service.store.record import Record
from onward.service.store.redis import RedisStore

WEIGHED, BATCH, SECONDS = 20_000, 64, 3.0
BUSY = 0.6
"""The planned utilisation of a core or a link. The rest is for peaks and for the loss of a machine."""
COPIES, SHARD_BYTES, LINK_BYTES_S = 2, 32e9, 1.25e9
"""A shard has a replica, at most 32 GB, and a link of 10 Gbit/s."""


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / servers.TICKS


def spent(pid: int, work: Callable[[], int]) -> float:
    """CPU seconds of the process for each operation of `work`, which returns how many it did, over a few seconds."""
    began, until, done = cpu_s(pid), time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        done += work()
    return (cpu_s(pid) - began) / done


def measured(folder: Path) -> dict[str, float]:
    """Bytes of a session, and CPU seconds of a step: of a worker, of a write to Valkey, and of a read."""
    bundle = Bench(folder, 1).bundle(2, 128)
    with servers.valkey(folder) as valkey, servers.onward(bundle.parents[1], valkey.uri) as server:
        for name in sessions(CLIENTS):
            post(server, "/v1/models/model/sessions", {"session_id": name})
        calls = steps("/v1/sessions", CLIENTS)
        server.drive(calls, 1)
        worker = 1 / server.drive(calls, SECONDS).per_cpu_s
        client, store = Redis.from_url(valkey.uri), RedisStore(valkey.uri)
        (template,) = store.load_many([records.key("public", "s0")])
        assert isinstance(template, Record)
        keys = [records.key("public", f"w{number:08}") for number in range(WEIGHED)]
        before = client.info("memory")["used_memory"]
        for start in range(0, WEIGHED, 1000):
            assert all(store.commit_many([Change(key, None, template) for key in keys[start : start + 1000]]))
        weight = (client.info("memory")["used_memory"] - before) / WEIGHED
        stored = dict.fromkeys(keys[:BATCH], template)

        def write() -> int:
            after = {key: record.replace(revision=records.new_revision()) for key, record in stored.items()}
            changes = [Change(key, stored[key].revision, record, advances=True) for key, record in after.items()]
            assert all(store.commit_many(changes))
            stored.update(after)
            return BATCH

        def read() -> int:
            return len(store.load_many(keys[:BATCH]))

        return {
            "weight": weight, "record": len(template.to_bytes()), "worker": worker,
            "write": spent(valkey.pid, write), "read": spent(valkey.pid, read),
        }  # fmt: skip


def planned(cost: dict[str, float], count: float, rate: float) -> list[str]:
    """Lines of the plan: the machines for a number of sessions and a rate, and the resource that runs out first."""
    valkey = cost["write"] + cost["read"]
    traffic = 2 * cost["record"] * rate  # to the store and back
    shards = {
        "CPU": rate * valkey / BUSY,
        "memory": count * cost["weight"] / (SHARD_BYTES * BUSY),
        "network": traffic / (LINK_BYTES_S * BUSY),
    }
    scarcest = max(shards, key=lambda resource: shards[resource])
    number = math.ceil(shards[scarcest])
    return [
        f"a session                {cost['weight']:,.0f} bytes in Valkey, of which its record is {cost['record']:,.0f}",
        f"a step                   {1e6 * cost['worker']:.0f} us of a worker",
        f"a write to Valkey        {1e6 * cost['write']:.1f} us of it, in batches of {BATCH}",
        f"a read                   {1e6 * cost['read']:.1f} us, the same",
        f"a shard, one core        {BUSY / valkey:,.0f} steps a second at {BUSY:.0%}",
        "",
        f"{count:,.0f} sessions, {rate:,.0f} steps a second:",
        f"worker cores             {math.ceil(rate * cost['worker'] / BUSY):,}",
        f"shards by CPU            {shards['CPU']:,.1f}",
        f"shards by memory         {shards['memory']:,.1f} of {SHARD_BYTES / 1e9:.0f} GB",
        f"shards by network        {shards['network']:,.1f} behind 10 Gbit/s; {traffic / 1e9:.1f} GB/s in all",
        f"shards                   {number:,}, and {number * (COPIES - 1):,} replicas: {scarcest} runs out first",
        f"round trips a second     {2 * rate / BATCH:,.0f} or more: two a batch of {BATCH} for each of its shards",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling")
    parser.add_argument("--sessions", type=float, default=1e7)
    parser.add_argument("--rate", type=float, default=1e6, help="steps a second")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(machine())
        print("\n".join(planned(measured(Path(folder)), arguments.sessions, arguments.rate)))


if __name__ == "__main__":
    main()
