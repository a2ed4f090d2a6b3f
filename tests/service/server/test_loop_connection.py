"""Connections that the event loop serves, over HTTP and over a WebSocket: which greenlets run, and what waits."""

import fcntl
import json
import struct
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.socket
import greenlet
import pytest
from gunicorn.config import Config
from gunicorn.util import close_graceful

from onward.model.repository import open_all
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import take_loop_turn
from onward.service.http.step_encoding import encode_step
from onward.service.server import fast_path
from onward.service.server.fast_path import FastPath
from onward.service.store.contract import Change
from onward.service.store.lmdb import LmdbStore
from onward.service.websocket.connection import WebSocketConnections
from onward.service.websocket.endpoint import SessionProtocol
from onward.service.websocket.framing import Frames
from tests.helpers import websocket_client
from tests.helpers.reference_loop import ZOO
from tests.helpers.websocket_client import BINARY, TEXT, frame

MOST = 2**20
LONG = 2000
"""Steps whose answer is too long to be encoded at once."""


class HeldStore(LmdbStore):
    """A store whose commits wait for a gate, as those of a store behind a network may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate, self.waits = gevent.event.Event(), gevent.event.Event()
        self.gate.set()

    def commit_many(self, changes: Sequence[Change]) -> Any:
        self.waits.set()
        self.gate.wait()
        return super().commit_many(changes)

    def hold(self) -> None:
        self.gate.clear()
        self.waits.clear()


class Peer:
    """The client of a session on one connection, and the greenlet that serves it."""

    def __init__(self, engine: Engine, kind: str, session_id: str = "s") -> None:
        self.kind, self._session_id = kind, session_id
        self.socket, self._remote = gevent.socket.socketpair()
        self._frames, self._rest, self._answers = websocket_client.Frames(), b"", list[Any]()
        self._remote.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, 8192)
        self.serving = gevent.spawn(self._serve, engine)

    def _serve(self, engine: Engine) -> None:
        """Serves the connection and closes it as a worker does."""
        try:
            if self.kind == "http":
                path = FastPath(engine, Config(), most_body=MOST, alive=lambda: True)
                path.serve(self._remote, b"")
            else:
                protocol = SessionProtocol(engine, self._session_id)
                WebSocketConnections(lambda: True).serve(self._remote, b"", Frames(MOST), protocol)
        finally:
            close_graceful(self._remote, max_drain=MOST)

    @property
    def unread(self) -> int:
        """The number of bytes that were sent to the service, and that it has not read."""
        (count,) = struct.unpack("i", fcntl.ioctl(self._remote.fileno(), termios.FIONREAD, bytes(4)))
        return int(count)

    def send(self, *bodies: dict[str, Any]) -> None:
        """Sends all of them in one write."""
        texts = [json.dumps(body).encode() for body in bodies]
        self.socket.sendall(b"".join(map(frame, texts) if self.kind == "websocket" else map(self._request, texts)))

    def _request(self, body: bytes) -> bytes:
        head = (
            f"POST /v1/sessions/{self._session_id}/steps HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        )
        return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)

    def receive(self) -> Any:
        """The next answer."""
        while not self._answers:
            data = self.socket.recv(65536)
            assert data, "the connection has ended"
            if self.kind == "websocket":
                for opcode, text in self._frames.feed(data):
                    assert opcode == TEXT
                    self._answers.append(json.loads(text))
            else:
                self._feed(data)
        return self._answers.pop(0)

    def _feed(self, data: bytes) -> None:
        self._rest += data
        while b"\r\n\r\n" in self._rest:
            head, _, rest = self._rest.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(rest) < length:
                return
            self._answers.append(json.loads(rest[:length]))
            self._rest = rest[length:]

    def close(self) -> None:
        self.socket.close()
        self.serving.get()


@pytest.fixture
def store(tmp_path: Path) -> HeldStore:
    return HeldStore(tmp_path)


@pytest.fixture
def engine(store: HeldStore) -> Iterator[Engine]:
    engine = Engine(open_all(ZOO), store, Limits())
    engine.start()
    for name in ("s", "other"):
        engine.create("public", "pulse", session_id=name)
        engine.steps.step("public", name, [[500]])  # so that the session's model is known
    yield engine
    engine.close()


@pytest.fixture(params=["http", "websocket"])
def opened(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Callable[..., Peer]]:
    """A function that opens a connection."""
    peers = list[Peer]()

    def open_connection(session_id: str = "s") -> Peer:
        peers.append(Peer(engine, request.param, session_id))
        return peers[-1]

    with gevent.Timeout(60):
        yield open_connection
    for peer in peers:
        peer.close()


@contextmanager
def traced(function: Callable[[Any, Any], None]) -> Iterator[None]:
    """Calls the function at each switch of greenlets, with the one that ran and the one that runs."""

    def trace(event: str, ends: tuple[Any, Any]) -> None:
        del event  # a switch or a throw
        function(*ends)

    before = greenlet.settrace(trace)
    try:
        yield
    finally:
        greenlet.settrace(before)


def test_an_ordinary_step_switches_to_no_greenlet_of_its_connection(opened: Callable[..., Peer]) -> None:
    """The event loop alone reads and answers steps that come one at a time."""
    peer = opened()
    peer.send({"inputs": [[500]]})
    peer.receive()
    switches = list[Any]()
    with traced(lambda _, target: switches.append(target)):
        for number in range(300):
            body: dict[str, Any] = {"inputs": [[500]]}
            peer.send(body if number % 2 else body | {"request_id": f"r{number}"})
            assert peer.receive()["step"] == 3 + number
    assert switches
    assert peer.serving not in switches


def test_binary_steps_switch_to_no_greenlet_of_their_connection(engine: Engine) -> None:
    """The event loop alone answers a binary message too, with the bytes that the greenlet would send."""
    peer = Peer(engine, "websocket")
    switches, frames = list[Any](), websocket_client.Frames()
    take_loop_turn()
    with traced(lambda _, target: switches.append(target)):
        for number in range(1, 100):
            peer.socket.sendall(frame(struct.pack("<Qf", number, 500), BINARY))
            ((opcode, data),) = frames.feed(peer.socket.recv(65536))
            assert (opcode, data[:8]) == (BINARY, struct.pack("<Q", 1 + number))
    assert peer.serving not in switches
    peer.socket.sendall(2 * frame(struct.pack("<Qf", 99, 500), BINARY))
    again = frames.feed(peer.socket.recv(65536))
    assert again == 2 * [(BINARY, data)]
    peer.close()


def test_a_batch_does_not_wait_for_the_answer_of_one_of_its_rows(opened: Callable[..., Peer]) -> None:
    """A long answer is encoded in turns of the event loop, by the connection's own greenlet."""
    waits = list[Any]()

    def find_wait(origin: Any, _: Any) -> None:
        stack = origin.gr_frame
        while stack is not None:
            if stack.f_code.co_name == "settled":
                waits.append(origin)
            stack = stack.f_back

    peer = opened()
    with traced(find_wait):
        peer.send({"inputs": [[500]] * LONG})
        answer = peer.receive()
    assert answer["step"] == 1 + LONG
    assert len(answer["surprise"]) == LONG
    assert not waits


def test_what_comes_while_a_step_is_answered_waits(opened: Callable[..., Peer], store: HeldStore) -> None:
    """The service reads no more before the answer is sent, so steps that come apart are answered in order."""
    peer = opened()
    store.hold()
    peer.send({"inputs": [[500]]})
    store.waits.wait()
    peer.send({"inputs": [[501]], "request_id": "a"})
    for _ in range(3):
        take_loop_turn()
    assert peer.unread
    store.gate.set()
    assert [peer.receive()["step"] for _ in range(2)] == [2, 3]
    peer.send({"inputs": [[502]], "step": 3})
    assert peer.receive()["step"] == 4


def test_a_client_that_reads_late_gets_every_answer(opened: Callable[..., Peer], engine: Engine) -> None:
    """An answer that the system does not take at once is sent by the greenlet, and nothing is read before it is."""
    peer = opened()
    switches, sent = list[Any](), 0
    take_loop_turn()
    with traced(lambda _, target: switches.append(target)):
        while peer.serving not in switches:
            switches.clear()
            peer.send({"inputs": [[500]]})
            sent += 1
            while peer.serving not in switches and engine.sessions.get("public", "s").record.step <= sent:
                take_loop_turn()
    peer.send({"inputs": [[500]]})
    for _ in range(3):
        take_loop_turn()
    assert peer.unread
    assert [peer.receive()["step"] for _ in range(sent + 1)] == list(range(2, sent + 3))


@pytest.mark.parametrize("ends", ["closed", "killed"])
def test_a_step_is_settled_after_its_connection_has_ended(
    opened: Callable[..., Peer], engine: Engine, store: HeldStore, caplog: pytest.LogCaptureFixture, ends: str
) -> None:
    """The step is committed, the greenlet ends, and other connections are served."""
    peer, neighbour = opened(), opened("other")
    store.hold()
    peer.send({"inputs": [[500]]})
    store.waits.wait()
    peer.socket.close() if ends == "closed" else peer.serving.kill(block=False)
    neighbour.send({"inputs": [[500]]})
    take_loop_turn()
    store.gate.set()
    assert neighbour.receive()["step"] == 2
    if ends == "killed":
        assert not peer.socket.recv(1), "an answer after the end"
        peer.socket.close()
    peer.serving.get()
    assert engine.sessions.get("public", "s").record.step == 2
    assert not caplog.records


def test_a_greenlet_is_killed_just_before_it_gets_work(opened: Callable[..., Peer], store: HeldStore) -> None:
    """The wait of its greenlet while it closes the connection is not interrupted by that work."""
    peer = opened()
    store.hold()
    peer.send({"inputs": [[500]] * LONG})
    store.waits.wait()
    store.gate.set()  # the batch ends in the next turn of the loop, and gives the long answer to the greenlet
    peer.serving.kill(block=False)
    assert not peer.socket.recv(1)
    for _ in range(3):
        take_loop_turn()
    assert not peer.serving.ready(), "it waits for the client to close the connection"


def test_a_session_on_another_model_is_answered_by_it(opened: Callable[..., Peer], engine: Engine) -> None:
    """A session that was ended and created anew meanwhile is stepped on its new model."""
    peer = opened()
    peer.send({"inputs": [[500]]})
    assert peer.receive()["predictions"].keys() == {"mean", "std"}
    engine.sessions.delete("public", "s")
    engine.create("public", "characters", session_id="s")
    for step in (1, 2):
        peer.send({"inputs": "a"})
        answer = peer.receive()
        assert answer["step"] == step
        assert "top" in answer["predictions"]


def test_a_response_that_cannot_be_encoded_concerns_its_client_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets a problem, and the other rows of the batch are answered."""
    peers = [Peer(engine, "http", name) for name in ("s", "other")]
    failed: list[Any] = []

    def failing_once(result: Any) -> bytes:
        failed.append(result)
        if len(failed) == 1:
            raise ZeroDivisionError
        return encode_step(result)

    monkeypatch.setattr(fast_path, "encode_step", failing_once)
    for peer in peers:
        peer.send({"inputs": [[500]]})
    answers = [peer.receive() for peer in peers]
    assert [answer["status"] for answer in answers if "status" in answer] == [500]
    assert [answer["step"] for answer in answers if "step" in answer] == [2]
    for peer in peers:
        peer.close()


def test_a_defect_in_reading_ends_the_connection(
    opened: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client sees the end of the connection, and the defect is logged."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    peer = opened()
    peer.send({"inputs": [[500]]})
    assert peer.receive()["step"] == 2
    monkeypatch.setattr(FastPath, "ordinary", fail)
    monkeypatch.setattr(Frames, "single", fail)
    peer.send({"inputs": [[500]]})
    with pytest.raises(AssertionError, match="the connection has ended"):
        peer.receive()
    assert "what a client sent could not be read" in caplog.text
