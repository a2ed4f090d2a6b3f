"""The time for which the largest bodies block a worker's event loop: `python -m bench.bodies [PATTERN]`.

The application answers in this process, while another greenlet measures the CPU time between two turns of its own.
The longest of these is the time for which every other connection of a worker would have waited. Bodies are generated
in many shapes for each field of each operation that takes JSON. CPU time is measured, so that other load on the
machine does not count.
"""

import gc
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import gevent
from flask import Flask

from onward.model.repository import open_all
from onward.service.app import OPERATIONS, create_app
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import take_loop_turn
from onward.service.http.operations import Operation
from onward.service.settings import Settings
from onward.service.store.lmdb import LmdbStore
from onward.service.store.signed_tokens import SignedTokens
from tests.helpers.reference_loop import ZOO

LARGEST = Settings().max_body_bytes
_KEYS = b",".join(b'"k%06d":1' % number for number in range(LARGEST // 12 + 1))
_VALUES = {
    "[]": b"[],", "[[]]": b"[[]],", "{}": b"{},", "null": b"null,", "1": b"1,", "true": b"true,", "0.5": b"0.5,",
    '"a"': b'"a",', "[1]": b"[1],", "[506.125]": b"[506.125],", "[[1]]": b"[[1]],", '{"ppg":1}': b'{"ppg":1},',
    '{"session_id":"s","inputs":[1]}': b'{"session_id":"s","inputs":[1]},', "twice": b'{"ppg":1,"ppg":2},',
    "1e400": b"1e400,", "-": b"-,",
}  # fmt: skip


class Body(NamedTuple):
    name: str
    data: bytes


class Measurement(NamedTuple):
    """seconds: the longest CPU time between two turns of the event loop; mib: the largest growth of memory."""

    seconds: float
    mib: float
    status: int


def bodies(operation: Operation, largest: int = LARGEST) -> Iterator[Body]:
    """Bodies of the length `largest`, in every shape; the service refuses nearly all of them."""
    keys = _KEYS[: _KEYS.rindex(b",", 0, largest - 100)]
    yield Body("unknown keys", b"{%b}" % keys)
    yield Body("one long key", b'{"%b":1}' % (b"k" * (largest - 6)))
    yield Body("[ [ [ ...", b"[" * largest)
    yield Body('{"a": {"a": ...', b'{"a":' * (largest // 5))
    yield from (Body(f"a list of {name}", _filled(largest, b"[", unit, b"]")) for name, unit in _VALUES.items())
    yield Body("the same key", _filled(largest, b"{", b'"inputs":1,', b"}"))
    yield Body("spaces", b" " * largest)
    assert operation.body is not None
    fields = getattr(operation.body, "model_fields", {})
    if "root" in fields:
        fields = {"items": None, "session_ids": None, "inputs": None, "steps": None, "request_ids": None}
    for field in fields:
        rest = _REST.get((operation.path.rpartition("/")[2], field), b"")
        before = b'{%b"%b":' % (rest, field.encode())
        for name, unit in _VALUES.items():
            yield Body(f"{field}: a list of {name}", _filled(largest, before + b"[", unit, b"]}"))
            yield Body(f"{field}: in a list, a list of {name}", _filled(largest, before + b"[[", unit, b"]]}"))
        yield Body(f"{field}: 1 ... and at last a list", _filled(largest, before + b"[", b"1,", b",[1]]}"))
        yield Body(f"{field}: [1] ... and at last a text", _filled(largest, before + b"[", b"[1],", b',"a"]}'))
        yield Body(f"{field}: [1], ... NaN", _filled(largest, before + b"[", b"[1],", b",[NaN]]}"))
        yield Body(f"{field}: a text", before + b'"' + b"a" * (largest - len(before) - 3) + b'"}')
        yield Body(f"{field}: a list of one text", before + b'["' + b"a" * (largest - len(before) - 5) + b'"]}')
        yield Body(f"{field}: a list of two texts", before + b'["a","' + b"a" * (largest - len(before) - 9) + b'"]}')
        yield Body(f"{field}: escapes", _filled(largest, before + b'"', b"\\u0000", b'0"}'))
        yield Body(f"{field}: escaped quotes", _filled(largest, before + b'["', b'\\"', b'"]}'))
        yield Body(f"{field}: a long whole number", before + b"9" * (largest - len(before) - 1) + b"}")
        yield Body(f"{field}: a list of one long number", before + b"[0." + b"9" * (largest - len(before) - 5) + b"]}")
        yield Body(f"{field}: [ [ [ ...", before + b"[" * (largest - len(before)))
        yield Body(f"{field}: an object", before + b"{%b}}" % keys)
        yield Body(f"{field}: an object in a list", before + b"[{%b}]}" % keys)


_ROWS = b",".join([b"[506.12345678901234567890123456789012345678901234567890123456789012345678901]"] * 100_000)
_REST = {
    ("generate", "stop"): b'"horizon":1,', ("generate", "inputs"): b'"horizon":1,',
    ("generate", "future"): b'"horizon":1,', ("forecast", "inputs"): b'"horizon":1,',
    ("forecast", "future"): b'"horizon":1,', ("forecast", "quantiles"): b'"horizon":1,',
    ("step", "state"): b'"inputs":[1],', ("steps", "inputs"): b"",
}  # fmt: skip


def _valid(operation: Operation) -> Iterator[Body]:
    """Valid bodies, nearly of the largest size or, where a limit is lower, of the largest number of entries."""
    route = operation.path.rpartition("/")[2]
    if operation.path == "/v1/steps":
        items = b",".join(b'{"session_id":"s%d","inputs":[[506.5]]}' % number for number in range(10_000))
        names = b",".join(b'"s%d"' % number for number in range(10_000))
        yield Body("HONEST items", b'{"items":[%b]}' % items)
        yield Body(
            "HONEST columns", b'{"session_ids":[%b],"inputs":[%b]}' % (names, b",".join([b"[[506.5]]"] * 10_000))
        )
    elif route == "predict":
        sequence = b",".join([b"[506.5]"] * 1000)
        yield Body("HONEST 1,000 sequences", b'{"inputs":[%b]}' % b",".join([b"[%b]" % sequence] * 1000))
        yield Body("HONEST 10 sequences", b'{"inputs":[%b]}' % b",".join([b"[%b]" % sequence] * 10))
    elif route in ("steps", "step", "sessions", "forecast", "generate"):
        more = b'"horizon":1,' if route in ("forecast", "generate") else b""
        yield Body("HONEST rows", b'{%b"inputs":[%b]}' % (more, _ROWS))
        yield Body("HONEST values", b'{%b"inputs":[%b]}' % (more, b",".join([b"506"] * 100_000)))
        yield Body("HONEST named", b'{%b"inputs":[%b]}' % (more, b",".join([b'{"ppg":506.5}'] * 100_000)))


def _filled(largest: int, before: bytes, unit: bytes, after: bytes) -> bytes:
    """`before`, as many repetitions of `unit` as fit, without the last comma, and `after`."""
    middle = unit * ((largest - len(before) - len(after)) // len(unit))
    return before + middle.removesuffix(b",") + after


def measure(app: Flask, operation: Operation, body: Body) -> Measurement:
    """Answers the request, and measures the turns of the event loop meanwhile."""
    path = operation.path.replace("{model}", "pulse").replace("{session_id}", "s")
    statuses: list[int] = []
    media = "application/json"

    def ask() -> None:
        answer = app.test_client().open(
            path, method=operation.method, data=body.data, content_type=media, buffered=False
        )
        for _ in answer.response:
            pass
        answer.close()
        statuses.append(answer.status_code)

    before = _memory(reset=True)
    asking = gevent.spawn(ask)
    longest, last = 0.0, time.thread_time()
    while not asking.dead:
        take_loop_turn()
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    asking.get()
    return Measurement(longest, (_memory() - before) / 1024, statuses[0])


def _memory(*, reset: bool = False) -> int:
    """The highest memory use in KiB since the last reset."""
    if reset:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def row(measurement: Measurement, name: str) -> str:
    seconds, mib, status = measurement
    return f"{seconds * 1e3:9.1f} ms {mib:8.1f} MiB  {status}  {name}"


def main() -> None:
    pattern = re.compile(sys.argv[1] if len(sys.argv) > 1 else "")
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(history=5)
        engine = Engine(open_all(ZOO), LmdbStore(Path(folder)), limits, seal=SignedTokens(["0123456789abcdef" * 2]))
        engine.start()
        gc.set_threshold(10_000)  # as a worker does
        app = create_app(Settings(), engine)
        app.test_client().post("/v1/models/pulse/sessions", json={"session_id": "s"})
        for number in range(10_000):
            app.test_client().post("/v1/models/pulse/sessions", json={"session_id": f"s{number}"})
        found = []
        for operation in OPERATIONS:
            if operation.body is None:
                continue
            for body in chain(bodies(operation), _valid(operation)):
                name = f"{operation.method} {operation.path} {body.name}"
                if not pattern.search(name):
                    continue
                measurement = measure(app, operation, body)
                found.append((measurement, name))
                print(row(measurement, name), flush=True)
        print("\nThe longest:")
        for measurement, name in sorted(found, reverse=True)[:15]:
            print(row(measurement, name))
        print("\nThe most memory:")
        for measurement, name in sorted(found, key=lambda pair: -pair[0].mib)[:10]:
            print(row(measurement, name))
        engine.close()


if __name__ == "__main__":
    main()
