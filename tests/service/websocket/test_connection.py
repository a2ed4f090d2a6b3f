"""WebSocket connections with timeouts of a fraction of a second: clients that do not read, answer or stay connected."""

import contextlib
import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
import gevent.select
import gevent.socket
import pytest

from onward.model.repository import open_all
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import take_loop_turn
from onward.service.store.lmdb import LmdbStore
from onward.service.websocket import connection
from onward.service.websocket.connection import WebSocketConnections
from onward.service.websocket.endpoint import SessionProtocol
from onward.service.websocket.framing import PIECE, Frames
from tests.helpers import websocket_client
from tests.helpers.reference_loop import ZOO
from tests.helpers.websocket_client import CLOSE, PING, PONG, TEXT, frame

MOST = 2**20
STEP = frame(json.dumps({"inputs": [[500.5]] * 50}).encode())
Open = Callable[[], tuple[Any, Any]]


@pytest.fixture
def alive() -> dict[str, bool]:
    return {"alive": True}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    engine.start()
    engine.create("public", "pulse", session_id="s")
    yield engine
    engine.close()


@pytest.fixture
def opened(engine: Engine, alive: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """A function that opens a connection of a session and returns its socket and the greenlet that serves it."""
    for name, seconds in (("PING_S", 0.4), ("SLOW_S", 0.4), ("CLOSE_S", 0.4), ("MESSAGE_S", 0.4)):
        monkeypatch.setattr(connection, name, seconds)
    connections = WebSocketConnections(lambda: alive["alive"])
    watch = gevent.spawn(connections.watch)
    sockets = list[Any]()

    def open_connection() -> tuple[Any, Any]:
        local, remote = gevent.socket.socketpair()
        sockets.extend((local, remote))
        remote.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, 8192)
        return local, gevent.spawn(connections.serve, remote, b"", Frames(MOST), SessionProtocol(engine, "s"))

    with gevent.Timeout(60):
        yield open_connection
    watch.kill()
    for end in sockets:
        end.close()


def fill(local: Any) -> None:
    """Sends steps until the service stops reading."""
    local.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        for _ in range(1000):
            local.sendall(STEP)
        pytest.fail("the service reads without end")


def connections_of(serving: Any) -> WebSocketConnections:
    connections: WebSocketConnections = serving._run.__self__
    return connections


def received_frames(local: Any) -> list[tuple[int, bytes]]:
    """All frames that arrive until the connection is closed."""
    frames, found = websocket_client.Frames(), []
    local.settimeout(10)
    while data := local.recv(65536):
        found += frames.feed(data)
    return found


def test_a_slow_reader_is_disconnected_with_a_reason(opened: Open) -> None:
    """Responses that wait are bounded, as the service reads no further; the client finds the reason when it reads."""
    local, serving = opened()
    fill(local)
    (stream,) = connections_of(serving)._open
    while stream._left_at is None:  # until the timeout of a slow reader
        gevent.sleep(0.01)
    frames = received_frames(local)
    serving.get()
    assert [opcode for opcode, _ in frames][-2:] == [TEXT, CLOSE]
    assert json.loads(frames[-2][1])["type"] == "urn:onward:problem:slow-reader"
    assert struct.unpack(">H", frames[-1][1][:2]) == (4008,)
    steps = [json.loads(data)["step"] for _, data in frames[:-2]]
    assert steps == list(range(50, 50 * len(steps) + 1, 50))


def test_a_client_that_never_reads_is_disconnected(opened: Open) -> None:
    """The service closes the connection without waiting for the client."""
    local, serving = opened()
    fill(local)
    began = time.monotonic()
    serving.get()
    assert time.monotonic() - began < 10


def test_a_silent_client_is_pinged_and_disconnected(opened: Open) -> None:
    """A client that answers pings stays connected, and a client that does not is disconnected."""
    local, serving = opened()
    answering, serving_answering = opened()
    frames, pings = websocket_client.Frames(), 0
    while pings < 5:
        for opcode, data in frames.feed(answering.recv(65536)):
            assert opcode == PING
            pings += 1
            answering.sendall(frame(data, PONG))
    assert serving.ready()
    assert received_frames(local) == [(PING, b"")]
    assert not serving_answering.ready()


def test_a_stopping_service_closes_connections_without_waiting(opened: Open, alive: dict[str, bool]) -> None:
    """The close code is 1001, and the connection ends whether or not the client answers the close frame."""
    (polite, serving_polite), (rude, serving_rude) = opened(), opened()
    polite.sendall(frame(b'{"inputs": [[500]]}'))
    first = websocket_client.Frames()
    while not first.feed(polite.recv(65536)):
        pass
    alive["alive"] = False
    (close,) = [data for opcode, data in websocket_client.Frames().feed(polite.recv(65536)) if opcode == CLOSE]
    assert struct.unpack(">H", close[:2]) == (1001,)
    polite.sendall(frame(close, CLOSE))
    serving_polite.get()
    serving_rude.get()
    assert [opcode for opcode, _ in received_frames(rude)] == [CLOSE]


MALFORMED, PONGS = 5000, 10_000


def take_turns(times: list[float]) -> None:
    while True:
        times.append(time.process_time())
        take_loop_turn()


def test_malformed_messages_that_arrive_together_do_not_block_the_event_loop(opened: Open) -> None:
    """Thousands of messages in a read are answered in order, a few in each turn of the loop, in the memory of a few.

    The test compares shares of the CPU time of the process, so the load of the machine has no effect.
    """
    local, _ = opened()
    turns, answered, frames = list[float](), 0, websocket_client.Frames()
    data = b"".join(frame(b'{"request_id":"%d"}' % number) for number in range(MALFORMED))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    counting, sending = gevent.spawn(take_turns, turns), gevent.spawn(local.sendall, data)
    while answered < MALFORMED:
        for _, answer in frames.feed(local.recv(8192)):
            problem = json.loads(answer)
            assert (problem["status"], problem["request_id"]) == (422, str(answered))
            answered += 1
    sending.get()
    counting.kill()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    longest = max(stop - start for start, stop in pairwise(turns))
    assert longest < (turns[-1] - turns[0]) / 10
    assert peak - before < 8 * 2**20


def test_frames_that_arrive_together_do_not_block_the_event_loop(opened: Open) -> None:
    """The loop turns while the frames of a read are handled, although none has an answer that waits for its client."""
    local, _ = opened()
    local.sendall(frame(b'{"inputs": [[500]]}'))
    local.recv(65536)
    turns = list[float]()
    counting = gevent.spawn(take_turns, turns)
    take_loop_turn()
    local.sendall(frame(b"", PONG) * PONGS + frame(b'{"inputs": [[500]]}'))
    local.recv(65536)
    counting.kill()
    assert len(turns) > PONGS // PIECE


def test_the_problem_of_a_short_message_has_its_request_id(engine: Engine) -> None:
    """A long message is not parsed a second time to find its `request_id`."""
    for size, name in ((10, {"request_id": "r"}), (2**16, {})):
        text = json.dumps({"request_id": "r", "unknown": "x" * size}).encode()
        ((answer, is_text),), goes_on = SessionProtocol(engine, "s").answers([(text, True)])
        problem = json.loads(answer)
        assert (is_text, goes_on, problem["status"]) == (True, True, 422)
        assert {key: problem[key] for key in problem.keys() & {"request_id"}} == name


def test_a_message_must_be_complete_in_time(opened: Open) -> None:
    """A client that sends byte by byte cannot make the service store a partial message for any time it likes."""
    local, serving = opened()
    byte = iter(frame(b"x" * 2**16))
    while not gevent.select.select([local], [], [], 0.01)[0]:
        local.sendall(bytes([next(byte)]))
    ((opcode, payload),) = websocket_client.Frames().feed(local.recv(65536))
    assert (opcode, payload) == (CLOSE, struct.pack(">H", 1008) + b"a message must be whole within 0.4 s")
    local.sendall(bytes(byte) + frame(payload, CLOSE))
    serving.get()


def test_messages_in_partial_frames_are_accepted(opened: Open) -> None:
    """Every read ends within a frame, for longer than a single message may take."""
    local, _ = opened()
    step = frame(b'{"inputs": [[500]]}')
    frames, began, count = websocket_client.Frames(), time.monotonic(), 0
    local.sendall(step[:9])
    while time.monotonic() - began < 2:
        count += 1
        local.sendall(step[9:] + step[:9])
        while not (answers := frames.feed(local.recv(65536))):
            pass
        ((opcode, answer),) = answers
        assert opcode == TEXT, answer
        assert json.loads(answer)["step"] == count


def test_a_retryable_error_ends_the_connection(tmp_path: Path) -> None:
    """Messages after the failed one are skipped, so that none is applied out of order; all may be sent again."""
    overloaded = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(timeout_s=1e-9))
    overloaded.start()
    overloaded.create("public", "pulse", session_id="s")
    local, remote = gevent.socket.socketpair()
    with local, remote, contextlib.closing(overloaded):
        protocol = SessionProtocol(overloaded, "s")
        serving = gevent.spawn(WebSocketConnections(lambda: True).serve, remote, b"", Frames(MOST), protocol)
        wrong, good = frame(b'{"inputs": []}'), frame(b'{"inputs": [[500]], "request_id": "r"}')
        local.sendall(wrong + good + good + wrong)
        frames = websocket_client.Frames().feed(local.recv(65536))
        assert [opcode for opcode, _ in frames] == [TEXT, TEXT, CLOSE]
        assert [json.loads(data)["status"] for _, data in frames[:2]] == [422, 503]
        assert struct.unpack(">H", frames[2][1][:2]) == (1013,)
        local.sendall(good + frame(frames[2][1], CLOSE))
        serving.get()
        assert overloaded.sessions.get("public", "s").record.step == 0


def test_a_retryable_error_of_a_message_that_comes_alone_ends_the_connection(tmp_path: Path) -> None:
    """The first connection finds the session's model; a step on the second one is submitted by the event loop."""
    overloaded = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(timeout_s=1e-9))
    overloaded.start()
    overloaded.create("public", "pulse", session_id="s")
    with contextlib.closing(overloaded):
        for _ in range(2):
            local, remote = gevent.socket.socketpair()
            with local, remote:
                protocol = SessionProtocol(overloaded, "s")
                serving = gevent.spawn(WebSocketConnections(lambda: True).serve, remote, b"", Frames(MOST), protocol)
                local.sendall(frame(b'{"inputs": [[500]], "request_id": "r"}'))
                (_, problem), (opcode, close) = websocket_client.Frames().feed(local.recv(65536))
                assert (json.loads(problem)["status"], json.loads(problem)["request_id"]) == (503, "r")
                assert (opcode, struct.unpack(">H", close[:2])) == (CLOSE, (1013,))
                local.sendall(frame(b'{"inputs": [[500]]}') + frame(close, CLOSE))
                serving.get()
        assert overloaded.sessions.get("public", "s").record.step == 0
