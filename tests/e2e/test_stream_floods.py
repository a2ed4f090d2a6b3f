"""A client that floods its stream does not grow the memory of the worker, and the stream stays usable."""

import contextlib
import json
import struct
from collections.abc import Iterator
from threading import Thread

import pytest

from tests.e2e.server import Server
from tests.e2e.test_websocket import resident
from tests.helpers.websocket_client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WebSocket, frame

FRAMES, PER_SEND, GROWTH = 200_000, 5000, 8 * 2**20
FLOODS = {
    "pings": (b"", frame(b"0123456789", PING), PONG),
    "pongs": (b"", frame(b"0123456789", PONG), None),
    "pings within a message": (frame(b"[", fin=False), frame(b"", PING), PONG),
}
"""Floods: the first bytes, the repeated frame, and the opcode of the response to each repetition."""


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("floods"), ONWARD_WORKERS="1") as server:
        with server.client() as client:
            client.post("/v1/models/pulse/sessions", json={"session_id": "s"}).raise_for_status()
        yield server


@contextlib.contextmanager
def constant_memory(server: Server) -> Iterator[None]:
    (worker,) = server.workers()
    before = resident(worker)
    yield
    assert resident(worker) - before < GROWTH


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_control_frames(one_worker: Server, kind: str) -> None:
    """Every ping has its pong, and the message around or after the flood is answered."""
    first, repeated, answer = FLOODS[kind]
    last = frame(b"]", CONTINUATION) if first else frame(b"[]")
    with constant_memory(one_worker), WebSocket(one_worker.url, "s") as stream:

        def send() -> None:
            stream.socket.sendall(first)
            for _ in range(FRAMES // PER_SEND):
                stream.socket.sendall(repeated * PER_SEND)
            stream.socket.sendall(last)

        sending = Thread(target=send)
        sending.start()
        opcodes = {answer: 0, TEXT: 0}
        while not opcodes[TEXT]:
            opcodes[stream.frame()[0]] += 1
        sending.join()
        assert answer is None or opcodes[answer] == FRAMES


def test_a_flood_of_empty_fragments(one_worker: Server) -> None:
    """The stream is closed with 1008, however many more fragments are sent."""
    with constant_memory(one_worker), WebSocket(one_worker.url, "s") as stream:
        stream.socket.sendall(frame(b"", fin=False))
        with contextlib.suppress(ConnectionError):
            for _ in range(10 * FRAMES // PER_SEND):
                stream.socket.sendall(frame(b"", CONTINUATION, fin=False) * PER_SEND)
        opcode, payload = stream.frame()
        assert (opcode, payload[:2]) == (CLOSE, struct.pack(">H", 1008))


@pytest.mark.parametrize("message", [frame(b"{}"), frame(b"x", BINARY)], ids=["texts", "bytes"])
def test_a_flood_of_malformed_messages(one_worker: Server, message: bytes) -> None:
    """Every message is answered, though a single read brings thousands of them."""
    count = 20_000
    with constant_memory(one_worker), WebSocket(one_worker.url, "s") as stream:
        sending = Thread(target=stream.socket.sendall, args=(message * count,))
        sending.start()
        for _ in range(count):
            assert json.loads(stream.frame()[1])["status"] in {400, 422}
        sending.join()


def test_a_flood_whose_answers_nobody_reads(one_worker: Server) -> None:
    """The worker reads no more from such a stream, so that its messages stay with the client and the network."""
    with constant_memory(one_worker), WebSocket(one_worker.url, "s") as stream:
        stream.socket.settimeout(1)
        pings = frame(bytes(125), PING) * 2**18  # beyond what the network holds
        with pytest.raises(TimeoutError):
            stream.socket.sendall(pings)
