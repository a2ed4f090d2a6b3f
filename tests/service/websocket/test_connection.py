"""A stream alone, with patience of a fraction of a second: clients that do not read, or do not answer, or have gone."""

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
from tests.helpers.reference_loop import ZOO
from tests.helpers.websocket_client import CLOSE, PING, PONG, TEXT, frame
from tests.helpers.websocket_client import Frames as Heard

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
    """Opens streams of a session: the client's socket, and the greenlet that serves the other end."""
    for name, seconds in (("PING_S", 0.4), ("SLOW_S", 0.4), ("CLOSE_S", 0.4), ("MESSAGE_S", 0.4)):
        monkeypatch.setattr(connection, name, seconds)
    all_of_them = WebSocketConnections(lambda: alive["alive"])
    watch = gevent.spawn(all_of_them.watch)
    sockets = list[Any]()

    def open_one() -> tuple[Any, Any]:
        ours, theirs = gevent.socket.socketpair()
        sockets.extend((ours, theirs))
        theirs.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, 8192)
        return ours, gevent.spawn(all_of_them.serve, theirs, b"", Frames(MOST), SessionProtocol(engine, "s"))

    with gevent.Timeout(60):
        yield open_one
    watch.kill()
    for one in sockets:
        one.close()


def fill(ours: Any) -> None:
    """Sends until the service does not read on."""
    ours.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        for _ in range(1000):
            ours.sendall(STEP)
        pytest.fail("it reads without end")


def of(serving: Any) -> WebSocketConnections:
    streams: WebSocketConnections = serving._run.__self__
    return streams


def heard(ours: Any) -> list[tuple[int, bytes]]:
    """All frames until the end."""
    frames, found = Heard(), []
    ours.settimeout(10)
    while data := ours.recv(65536):
        found += frames.feed(data)
    return found


def test_a_slow_reader_is_told_and_closed(opened: Open) -> None:
    """What waits for it is bounded, since nothing is read from it meanwhile; when it reads, it learns why it ends."""
    ours, serving = opened()
    fill(ours)
    (stream,) = of(serving)._open
    while stream._left_at is None:  # until the service has lost patience
        gevent.sleep(0.01)
    frames = heard(ours)
    serving.get()
    assert [opcode for opcode, _ in frames][-2:] == [TEXT, CLOSE]
    assert json.loads(frames[-2][1])["type"] == "urn:onward:problem:slow-reader"
    assert struct.unpack(">H", frames[-1][1][:2]) == (4008,)
    steps = [json.loads(data)["step"] for _, data in frames[:-2]]
    assert steps == list(range(50, 50 * len(steps) + 1, 50))


def test_a_reader_that_never_reads_is_cut(opened: Open) -> None:
    ours, serving = opened()
    fill(ours)
    began = time.monotonic()
    serving.get()
    assert time.monotonic() - began < 10


def test_a_silent_client_is_asked_and_cut(opened: Open) -> None:
    """One that answers pings goes on for as long as it likes; one that does not is cut."""
    ours, serving = opened()
    other, serving_other = opened()
    frames, pings = Heard(), 0
    while pings < 5:
        for opcode, data in frames.feed(other.recv(65536)):
            assert opcode == PING
            pings += 1
            other.sendall(frame(data, PONG))
    assert serving.ready()
    assert heard(ours) == [(PING, b"")]
    assert not serving_other.ready()


def test_a_stop_is_told_and_waits_for_no_one(opened: Open, alive: dict[str, bool]) -> None:
    """1001, and the end, whether the client answers it or not."""
    (polite, one), (rude, other) = opened(), opened()
    polite.sendall(frame(b'{"inputs": [[500]]}'))
    first = Heard()
    while not first.feed(polite.recv(65536)):
        pass
    alive["alive"] = False
    (told,) = [data for opcode, data in Heard().feed(polite.recv(65536)) if opcode == CLOSE]
    assert struct.unpack(">H", told[:2]) == (1001,)
    polite.sendall(frame(told, CLOSE))
    one.get()
    other.get()
    assert [opcode for opcode, _ in heard(rude)] == [CLOSE]


MALFORMED, PONGS = 5000, 10_000


def take_turns(times: list[float]) -> None:
    while True:
        times.append(time.process_time())
        take_loop_turn()


def test_malformed_messages_that_come_together_hold_nobody_up(opened: Open) -> None:
    """Thousands in one read are answered in their order, a few in each turn of the loop, in the memory of a few.

    The time is the process's own, and a share of the whole: how busy the machine is does not count.
    """
    ours, _ = opened()
    turns, answered, frames = list[float](), 0, Heard()
    data = b"".join(frame(b'{"request_id":"%d"}' % number) for number in range(MALFORMED))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    others, sending = gevent.spawn(take_turns, turns), gevent.spawn(ours.sendall, data)
    while answered < MALFORMED:
        for _, answer in frames.feed(ours.recv(8192)):
            problem = json.loads(answer)
            assert (problem["status"], problem["request_id"]) == (422, str(answered))
            answered += 1
    sending.get()
    others.kill()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    longest = max(stop - start for start, stop in pairwise(turns))
    assert longest < (turns[-1] - turns[0]) / 10
    assert peak - before < 8 * 2**20


def test_frames_that_come_together_hold_nobody_up(opened: Open) -> None:
    """As many as one read brings, though none is answered, so that the stream never waits for its client."""
    ours, _ = opened()
    ours.sendall(frame(b'{"inputs": [[500]]}'))
    ours.recv(65536)
    turns = list[float]()
    others = gevent.spawn(take_turns, turns)
    take_loop_turn()
    ours.sendall(frame(b"", PONG) * PONGS + frame(b'{"inputs": [[500]]}'))
    ours.recv(65536)
    others.kill()
    assert len(turns) > PONGS // PIECE


def test_a_refused_text_is_named_where_it_is_short(engine: Engine) -> None:
    """By its `request_id`; a long one is not read a second time for that."""
    for size, name in ((10, {"request_id": "r"}), (2**16, {})):
        text = json.dumps({"request_id": "r", "unknown": "x" * size}).encode()
        ((answer, is_text),), goes_on = SessionProtocol(engine, "s").answers([(text, True)])
        problem = json.loads(answer)
        assert (is_text, goes_on, problem["status"]) == (True, True, 422)
        assert {key: problem[key] for key in problem.keys() & {"request_id"}} == name


def test_a_message_must_be_whole_in_time(opened: Open) -> None:
    """Byte by byte it would hold what has come of it for as long as its client likes; the session goes on."""
    ours, serving = opened()
    byte = iter(frame(b"x" * 2**16))
    while not gevent.select.select([ours], [], [], 0.01)[0]:
        ours.sendall(bytes([next(byte)]))
    ((opcode, payload),) = Heard().feed(ours.recv(65536))
    assert (opcode, payload) == (CLOSE, struct.pack(">H", 1008) + b"a message must be whole within 0.4 s")
    ours.sendall(bytes(byte) + frame(payload, CLOSE))
    serving.get()


def test_messages_whose_frames_come_in_parts_go_on(opened: Open) -> None:
    """Each read ends within a frame, for longer than one message may take."""
    ours, _ = opened()
    step = frame(b'{"inputs": [[500]]}')
    frames, began, count = Heard(), time.monotonic(), 0
    ours.sendall(step[:9])
    while time.monotonic() - began < 2:
        count += 1
        ours.sendall(step[9:] + step[:9])
        while not (answers := frames.feed(ours.recv(65536))):
            pass
        ((opcode, answer),) = answers
        assert opcode == TEXT, answer
        assert json.loads(answer)["step"] == count


def test_what_cannot_be_done_now_ends_the_stream(tmp_path: Path) -> None:
    """So that nothing overtakes it: it is told why, what came after it is not looked at, and all may be sent again."""
    late = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(timeout_s=1e-9))
    late.start()
    late.create("public", "pulse", session_id="s")
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs, contextlib.closing(late):
        conversation = SessionProtocol(late, "s")
        serving = gevent.spawn(WebSocketConnections(lambda: True).serve, theirs, b"", Frames(MOST), conversation)
        wrong, good = frame(b'{"inputs": []}'), frame(b'{"inputs": [[500]], "request_id": "r"}')
        ours.sendall(wrong + good + good + wrong)
        frames = Heard().feed(ours.recv(65536))
        assert [opcode for opcode, _ in frames] == [TEXT, TEXT, CLOSE]
        assert [json.loads(data)["status"] for _, data in frames[:2]] == [422, 503]
        assert struct.unpack(">H", frames[2][1][:2]) == (1013,)
        ours.sendall(good + frame(frames[2][1], CLOSE))
        serving.get()
        assert late.sessions.get("public", "s").record.step == 0
