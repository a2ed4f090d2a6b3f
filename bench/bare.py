"""The least that a durable server in Python can be: the step path, and none of the promises beside durability.

BUNDLE=<repository>/<name>/<version> STORE=<folder> gunicorn --worker-class bench.bare.Worker bench.bare:app

What waits is one batch: one ONNX Runtime call, one LMDB commit, answered on the connection ahead of WSGI. No retries,
no order, no limits, no expiry, no checksums, no statistics, and no error is answered. So it shows how fast it can be
at all, and, beside the service, what the promises cost.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import onnxruntime as ort
import orjson
from gevent import get_hub
from gevent.event import AsyncResult
from gunicorn import util
from gunicorn.workers.ggevent import GeventWorker
from gunicorn_h1c import _parser_fast

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
Waiting = tuple[bytes, Any, Any]


class Engine:
    def __init__(self, bundle: Path, store: str) -> None:
        self._pairs = json.loads((bundle / "manifest.json").read_text())["state"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._model = ort.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self._outputs = [node.name for node in self._model.get_outputs()]
        self._store = lmdb.open(store, map_size=2**30, sync=False)
        self._waiting: list[Waiting] = []

    def step(self, key: bytes, inputs: list[list[float]]) -> dict[str, Any]:
        """Runs once all that is readable now has been read."""
        if not self._waiting:
            get_hub().loop.run_callback(self._drain)
        result: Any = AsyncResult()
        self._waiting.append((key, inputs, result))
        told: dict[str, Any] = result.get()
        return told

    def _drain(self) -> None:
        items, self._waiting = self._waiting, []
        rows, longest = len(items), max(len(inputs) for _, inputs, _ in items)
        inputs = np.zeros((longest, rows, len(items[0][1][0])), np.float32)
        lengths = np.array([len(steps) for _, steps, _ in items], np.int32)
        for row, (_, steps, _) in enumerate(items):
            inputs[: len(steps), row] = steps
        with self._store.begin() as txn:
            kept = [txn.get(key) for key, _, _ in items]
        feeds, place = {"inputs": inputs, "lengths": lengths}, 0
        for pair in self._pairs:
            axis, shape = pair["shape"].index("batch"), [one for one in pair["shape"] if one != "batch"]
            size = int(np.prod(shape)) * 4
            parts = [np.full(shape, pair["init"], np.float32).tobytes() if one is None else one[place : place + size]
                     for one in kept]  # fmt: skip
            states = np.frombuffer(b"".join(parts), np.float32).reshape(rows, *shape)
            feeds[pair["input"]] = np.ascontiguousarray(np.moveaxis(states, 0, axis))
            place += size
        told = dict(zip(self._outputs, self._model.run(self._outputs, feeds), strict=True))
        after = [np.moveaxis(told.pop(pair["output"]), pair["shape"].index("batch"), 0) for pair in self._pairs]
        memory = np.concatenate([one.reshape(rows, -1) for one in after], axis=1)
        with self._store.begin(write=True) as txn:
            for row, (key, _, _) in enumerate(items):
                txn.put(key, memory[row].tobytes())
        for row, (_, steps, result) in enumerate(items):
            result.set({name: np.ascontiguousarray(value[: len(steps), row]) for name, value in told.items()})


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    engine: Engine | None = None

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        del listener, addr
        engine = Worker.engine = Worker.engine or Engine(Path(os.environ["BUNDLE"]), os.environ["STORE"])
        client.setblocking(True)
        data = b""
        try:
            while more := client.recv(65_536):
                data += more
                while data:
                    try:
                        request = _parser_fast.parse_request(data)
                    except _parser_fast.IncompleteError:
                        break
                    end = request.consumed + request.content_length
                    if len(data) < end:
                        break
                    body, data = orjson.loads(data[request.consumed : end]), data[end:]
                    answer = orjson.dumps(engine.step(request.path, body["inputs"]), option=orjson.OPT_SERIALIZE_NUMPY)
                    client.sendall(HEAD % (len(answer), answer))
        finally:
            util.close(client)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Never called: gunicorn asks for one."""
    del environ
    start_response("404 Not Found", [])
    return []
