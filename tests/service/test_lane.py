"""The lane alone: no gunicorn worker, no Flask behind it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gunicorn.config import Config

from model.repository import open_all
from service import handed as hands
from service import lane as lanes
from service.engine.engine import Engine, Limits
from service.handed import Handed
from service.lane import Lane
from service.sessions.lmdb import LmdbStore
from tests.reference import ZOO

STEP = b"POST /v1/sessions/s/steps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n"
STEP += b'{"inputs": [500]}'
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def lane(tmp_path: Path) -> Iterator[Lane]:
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    engine.start()
    engine.create("public", "pulse", session_id="s")
    yield Lane(engine, Config(), most_body=1000, alive=lambda: True)
    engine.close()


def served(lane: Lane, sent: bytes) -> tuple[bytes, Handed | None]:
    """What the lane answers to these bytes and the end of the connection, and what it hands over."""
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        serving: Any = gevent.spawn(lane.serve, theirs, b"")
        ours.sendall(sent)
        ours.shutdown(gevent.socket.SHUT_WR)
        handed = serving.get()
        theirs.shutdown(gevent.socket.SHUT_WR)
        return b"".join(iter(lambda: ours.recv(65536), b"")), handed


def test_steps_are_answered_here(lane: Lane) -> None:
    """Two behind each other: there is no Flask to answer them."""
    said, handed = served(lane, 2 * STEP)
    assert said.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert said.endswith(b"}")
    assert handed is None


def test_the_rest_is_handed_over_with_its_bytes(lane: Lane) -> None:
    """One request is handed over, no byte less and none of the next; what follows it comes back."""
    said, handed = served(lane, STEP + GET + STEP)
    assert said.count(b"HTTP/1.1 ") == 1
    assert handed is not None
    assert b"".join(iter(lambda: handed.recv(7), b"")) == GET
    assert handed.asked_for_more
    assert handed.rest == STEP


@pytest.mark.parametrize("unusual", [b"Transfer-Encoding: chunked", b"Upgrade: h2c", b"Expect: 100-continue"])
def test_what_has_no_length_takes_the_connection(lane: Lane, unusual: bytes) -> None:
    """From its first byte on, all that is read is gunicorn's."""
    sent = b"POST /v1/sessions/s/steps HTTP/1.1\r\nHost: x\r\n" + unusual + b"\r\n\r\n" + STEP
    said, handed = served(lane, sent)
    assert said == b""
    assert handed is not None
    assert handed.recv(65536) == sent
    assert not handed.asked_for_more


def test_an_idle_connection_is_ended(lane: Lane) -> None:
    """One that says nothing for longer than gunicorn lets it is closed; one that said the half of a request too."""
    vars(lane)["_idle_s"] = 0.0
    watch = gevent.spawn(lane.watch)
    for sent in (b"", STEP[:20]):
        ours, theirs = gevent.socket.socketpair()
        with ours, theirs, gevent.Timeout(20):
            ours.sendall(sent)
            assert lane.serve(theirs, b"") is None
    watch.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hands, lanes):
        monkeypatch.setattr(module, "STALLED_S", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_stalled_client_of_the_lane_is_cut_off(lane: Lane) -> None:
    """In the middle of a body, and where it sends on and on and reads no answer."""
    for sent in (STEP[:-1], STEP * 10_000):
        ours, theirs = gevent.socket.socketpair()
        with ours, theirs, gevent.Timeout(60):
            sending = gevent.spawn(ours.sendall, sent)
            assert lane.serve(theirs, b"") is None
            sending.kill()


@pytest.mark.usefixtures("impatient")
def test_a_stalled_client_of_gunicorn_is_cut_off() -> None:
    """As one that has gone, for all that gunicorn knows; one that is slow and goes on is not, nor one that may wait."""
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs, gevent.Timeout(60):
        handed = Handed(theirs, b"half", None)
        assert handed.recv(100) == b"half"
        with pytest.raises(ConnectionResetError):
            Handed(theirs, b"", 5).recv(100)
        with pytest.raises(ConnectionResetError):
            handed.sendall(bytes(10_000_000))
        handed.wait_for_more()
        gevent.spawn_later(0.3, ours.sendall, b"more")
        assert handed.recv(100) == b"more"


@pytest.mark.usefixtures("impatient")
def test_a_slow_reader_gets_it_all() -> None:
    ours, theirs = gevent.socket.socketpair()
    data = bytes(range(256)) * 8000
    with ours, theirs, gevent.Timeout(60):
        sending = gevent.spawn(Handed(theirs, b"", None).sendall, data)
        got = b""
        while len(got) < len(data):
            got += ours.recv(50_000)
            gevent.sleep(0.01)  # all in all for longer than a client may read nothing
        sending.get()
        assert got == data
