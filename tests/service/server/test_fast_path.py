"""The fast path alone: no gunicorn worker, no Flask behind it."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gunicorn.config import Config

from onward.model.repository import open_all
from onward.service.engine.engine import Engine, Limits
from onward.service.http.connection import deliver
from onward.service.server import connection_handoff as hands
from onward.service.server import fast_path as lanes
from onward.service.server.connection_handoff import HandoffConnection
from onward.service.server.fast_path import FastPath
from onward.service.store.lmdb import LmdbStore
from tests.helpers.reference_loop import ZOO

STEP = b"POST /v1/sessions/s/steps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n"
STEP += b'{"inputs": [500]}'
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[FastPath]:
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    engine.start()
    engine.create("public", "pulse", session_id="s")
    yield FastPath(engine, Config(), most_body=1000, alive=lambda: True)
    engine.close()


def served(fast_path: FastPath, sent: bytes) -> tuple[bytes, HandoffConnection | None]:
    """What the fast path answers to these bytes and the end of the connection, and what it hands over."""
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        serving: Any = gevent.spawn(fast_path.serve, theirs, b"")
        ours.sendall(sent)
        ours.shutdown(gevent.socket.SHUT_WR)
        handed = serving.get()
        theirs.shutdown(gevent.socket.SHUT_WR)
        return b"".join(iter(lambda: ours.recv(65536), b"")), handed


def test_steps_are_answered_here(fast_path: FastPath) -> None:
    """Two behind each other: there is no Flask to answer them."""
    said, handed = served(fast_path, 2 * STEP)
    assert said.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert said.endswith(b"}")
    assert handed is None


def test_the_rest_is_handed_over_with_its_bytes(fast_path: FastPath) -> None:
    """One request is handed over, no byte less and none of the next; what follows it comes back."""
    said, handed = served(fast_path, STEP + GET + STEP)
    assert said.count(b"HTTP/1.1 ") == 1
    assert handed is not None
    assert b"".join(iter(lambda: handed.recv(7), b"")) == GET
    assert handed.asked_for_more
    assert handed.rest == STEP


@pytest.mark.parametrize("unusual", [b"Transfer-Encoding: chunked", b"Upgrade: h2c", b"Expect: 100-continue"])
def test_what_has_no_length_takes_the_connection(fast_path: FastPath, unusual: bytes) -> None:
    """From its first byte on, all that is read is gunicorn's."""
    sent = b"POST /v1/sessions/s/steps HTTP/1.1\r\nHost: x\r\n" + unusual + b"\r\n\r\n" + STEP
    said, handed = served(fast_path, sent)
    assert said == b""
    assert handed is not None
    assert handed.recv(65536) == sent
    assert not handed.asked_for_more


def test_an_idle_connection_is_ended(fast_path: FastPath) -> None:
    """One that says nothing for longer than gunicorn lets it is closed; one that said the half of a request too."""
    vars(fast_path)["_idle_s"] = 0.0
    watch = gevent.spawn(fast_path.watch)
    for sent in (b"", STEP[:20]):
        ours, theirs = gevent.socket.socketpair()
        with ours, theirs, gevent.Timeout(20):
            ours.sendall(sent)
            assert fast_path.serve(theirs, b"") is None
    watch.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hands, lanes):
        monkeypatch.setattr(module, "STALLED_S", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_stalled_client_of_the_lane_is_cut_off(fast_path: FastPath) -> None:
    """Where it sends on and on and reads no answer; one that stops in the middle of a body is told so by Flask."""
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs, gevent.Timeout(60):
        sending = gevent.spawn(ours.sendall, STEP * 10_000)
        assert fast_path.serve(theirs, b"") is None
        sending.kill()
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs, gevent.Timeout(60):
        ours.sendall(STEP[:-1])
        handed = fast_path.serve(theirs, b"")
        assert handed is not None
        assert handed.recv(65536) == STEP[:-1]
        with pytest.raises(ConnectionResetError):
            handed.recv(65536)


@pytest.mark.usefixtures("impatient")
def test_a_stalled_client_of_gunicorn_is_cut_off() -> None:
    """As one that has gone, for all that gunicorn knows; not one that may wait, while it may."""
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs, gevent.Timeout(60):
        handed = HandoffConnection(theirs, b"half", None, timeout_s=0.1)
        assert handed.recv(100) == b"half"
        with pytest.raises(ConnectionResetError):
            handed.recv(100)
        with pytest.raises(ConnectionResetError):
            handed.sendall(bytes(10_000_000))
        handed.wait_long()
        gevent.spawn_later(0.3, ours.sendall, b"more")
        assert handed.recv(100) == b"more"
        handed.begin()
        with pytest.raises(ConnectionResetError):
            handed.recv(100)


def test_a_client_that_the_network_has_lost_is_gone() -> None:
    """It says so by a time-out of its own, also where there is no other."""

    class Lost:
        def recv(self, size: int) -> bytes:
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

        def settimeout(self, seconds: float | None) -> None: ...
        def setsockopt(self, *option: int) -> None: ...

    handed = HandoffConnection(Lost(), b"", None, timeout_s=1)
    handed.wait_long()
    with pytest.raises(ConnectionResetError):
        handed.recv(100)


def test_a_slow_reader_gets_it_all() -> None:
    """Over TCP, which lets more be sent only once much of what it holds was read: for longer than it may stall."""
    with gevent.socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        ours = gevent.socket.socket()
        ours.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_RCVBUF, 65_536)  # says soon how much has arrived
        ours.connect(listening.getsockname())
        theirs, _ = listening.accept()
        data = bytes(range(256)) * 20_000
        with ours, theirs, gevent.Timeout(100):
            theirs.settimeout(1.0)
            sending = gevent.spawn(deliver, theirs, data)
            got = 0
            while got < len(data):
                got += len(ours.recv(16_384))
                gevent.sleep(0.025)
            sending.get()
            assert got == len(data)
