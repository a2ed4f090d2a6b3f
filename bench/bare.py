"""The bare server: the least that a durable server in Python can be, without any other promise.

BUNDLE=<repository>/<name>/<version> STORE=<folder> gunicorn --worker-class bench.bare.Worker bench.bare:app

The waiting steps form one batch: one call of ONNX Runtime and one LMDB commit, answered on the connection ahead of
WSGI. There are no retries, no order, no limits, no expiry, no checksums, no statistics, and no error responses. The
server shows the highest rate that is possible, and, beside the service, what the service's promises cost.
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
        """The outputs of the steps of a session. The batch runs once everything that is readable has been read."""
        if not self._waiting:
            get_hub().loop.run_callback(self._drain)
        result: Any = AsyncResult()
        self._waiting.append((key, inputs, result))
        outputs: dict[str, Any] = result.get()
        return outputs

    def _drain(self) -> None:
        items, self._waiting = self._waiting, []
        rows, longest = len(items), max(len(inputs) for _, inputs, _ in items)
        inputs = np.zeros((longest, rows, len(items[0][1][0])), np.float32)
        lengths = np.array([len(steps) for _, steps, _ in items], np.int32)
        for row, (_, steps, _) in enumerate(items):
            inputs[: len(steps), row] = steps
        with self._store.begin() as txn:
            stored = [txn.get(key) for key, _, _ in items]
        feeds, offset = {"inputs": inputs, "lengths": lengths}, 0
        for pair in self._pairs:
            axis, shape = pair["shape"].index("batch"), [size for size in pair["shape"] if size != "batch"]
            size = int(np.prod(shape)) * 4
            parts = [np.full(shape, pair["init"], np.float32).tobytes() if memory is None
                     else memory[offset : offset + size] for memory in stored]  # fmt: skip
            states = np.frombuffer(b"".join(parts), np.float32).reshape(rows, *shape)
            feeds[pair["input"]] = np.ascontiguousarray(np.moveaxis(states, 0, axis))
            offset += size
        outputs = dict(zip(self._outputs, self._model.run(self._outputs, feeds), strict=True))
        after = [np.moveaxis(outputs.pop(pair["output"]), pair["shape"].index("batch"), 0) for pair in self._pairs]
        memory = np.concatenate([state.reshape(rows, -1) for state in after], axis=1)
        with self._store.begin(write=True) as txn:
            for row, (key, _, _) in enumerate(items):
                txn.put(key, memory[row].tobytes())
        for row, (_, steps, result) in enumerate(items):
            result.set({name: np.ascontiguousarray(value[: len(steps), row]) for name, value in outputs.items()})


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
    """An application that is never called; gunicorn requires one."""
    del environ
    start_response("404 Not Found", [])
    return []
