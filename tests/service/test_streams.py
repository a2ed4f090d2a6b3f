"""A stream alone, with patience of a fraction of a second: clients that do not read, or do not answer, or have gone."""

import contextlib
import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from websockets.protocol import State
from websockets.server import ServerProtocol

from model.repository import open_all
from service import streams
from service.engine.engine import Engine, Limits
from service.frames import Frames
from service.http.stream import Conversation
from service.sessions.lmdb import LmdbStore
from service.streams import Streams
from tests.reference import ZOO
from tests.websocket import CLOSE, PING, PONG, TEXT, frame
from tests.websocket import Frames as Heard

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
    for name, seconds in (("PING_S", 0.4), ("SLOW_S", 0.4), ("CLOSE_S", 0.4)):
        monkeypatch.setattr(streams, name, seconds)
    all_of_them = Streams(lambda: alive["alive"])
    watch = gevent.spawn(all_of_them.watch)
    sockets = list[Any]()

    def open_one() -> tuple[Any, Any]:
        ours, theirs = gevent.socket.socketpair()
        sockets.extend((ours, theirs))
        theirs.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, 8192)
        protocol = ServerProtocol(state=State.OPEN)
        return ours, gevent.spawn(all_of_them.serve, theirs, b"", Frames(protocol), Conversation(engine, "s"))

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


def of(serving: Any) -> Streams:
    streams: Streams = serving._run.__self__
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


def test_what_cannot_be_done_now_ends_the_stream(tmp_path: Path) -> None:
    """So that nothing overtakes it: it is told why, what came after it is not looked at, and all may be sent again."""
    late = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(timeout_s=1e-9))
    late.start()
    late.create("public", "pulse", session_id="s")
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs, contextlib.closing(late):
        conversation = Conversation(late, "s")
        serving = gevent.spawn(
            Streams(lambda: True).serve, theirs, b"", Frames(ServerProtocol(state=State.OPEN)), conversation
        )
        wrong, good = frame(b'{"inputs": []}'), frame(b'{"inputs": [[500]], "request_id": "r"}')
        ours.sendall(wrong + good + good + wrong)
        frames = Heard().feed(ours.recv(65536))
        assert [opcode for opcode, _ in frames] == [TEXT, TEXT, CLOSE]
        assert [json.loads(data)["status"] for _, data in frames[:2]] == [422, 503]
        assert struct.unpack(">H", frames[2][1][:2]) == (1013,)
        ours.sendall(good + frame(frames[2][1], CLOSE))
        serving.get()
        assert late.lives.session("public", "s").record.step == 0
