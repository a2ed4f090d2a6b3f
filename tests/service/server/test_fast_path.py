"""The fast path answers steps without a gunicorn worker or Flask, and hands other requests over."""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import orjson
import pytest
from gunicorn.config import Config

from onward.model.repository import open_all
from onward.service.engine.batching.batch_row import BatchRow
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import take_loop_turn
from onward.service.http.connection import deliver
from onward.service.http.loop_connection import LoopConnection
from onward.service.server import connection_handoff
from onward.service.server import fast_path as fast_path_module
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


def serve(fast_path: FastPath, sent: bytes) -> tuple[bytes, HandoffConnection | None]:
    """The bytes that the fast path sends for a connection with these bytes, and the connection that it hands over."""
    local, remote = gevent.socket.socketpair()
    with local, remote:
        serving: Any = gevent.spawn(fast_path.serve, remote, b"")
        local.sendall(sent)
        local.shutdown(gevent.socket.SHUT_WR)
        handoff = serving.get()
        remote.shutdown(gevent.socket.SHUT_WR)
        return b"".join(iter(lambda: local.recv(65536), b"")), handoff


def test_the_fast_path_keeps_the_limit_of_steps(tmp_path: Path) -> None:
    """A request with more steps is refused, also where the limit is below that of inputs that the batch parses."""
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(max_steps=3))
    engine.start()
    engine.create("public", "pulse", session_id="s")
    fast_path = FastPath(engine, Config(), most_body=1000, alive=lambda: True)
    too_long = STEP.replace(b"17", b"32").replace(b"[500]", b"[500, 500, 500, 500]")
    response, _ = serve(fast_path, STEP + too_long + STEP)
    first, _, second = response.partition(b"HTTP/1.1 422 ")
    assert b'{"step":1,' in first
    assert b"inputs: at most 3 steps a call, not 4" in second
    assert b'{"step":2,' in second
    engine.close()


def test_the_fast_path_answers_steps(fast_path: FastPath) -> None:
    """Two pipelined steps are answered without Flask."""
    response, handoff = serve(fast_path, 2 * STEP)
    assert response.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert response.endswith(b"}")
    assert handoff is None


def test_another_request_is_handed_over_with_its_bytes(fast_path: FastPath) -> None:
    """The handed over connection has the bytes of the request alone, and returns the bytes that follow."""
    response, handoff = serve(fast_path, STEP + GET + STEP)
    assert response.count(b"HTTP/1.1 ") == 1
    assert handoff is not None
    assert b"".join(iter(lambda: handoff.recv(7), b"")) == GET
    assert handoff.asked_for_more
    assert handoff.rest == STEP


@pytest.mark.parametrize("unusual", [b"Transfer-Encoding: chunked", b"Upgrade: h2c", b"Expect: 100-continue"])
def test_a_request_without_a_length_takes_the_connection(fast_path: FastPath, unusual: bytes) -> None:
    """Gunicorn reads the connection from the first byte of such a request to the end."""
    sent = b"POST /v1/sessions/s/steps HTTP/1.1\r\nHost: x\r\n" + unusual + b"\r\n\r\n" + STEP
    response, handoff = serve(fast_path, sent)
    assert response == b""
    assert handoff is not None
    assert handoff.recv(65536) == sent
    assert not handoff.asked_for_more


def test_an_idle_connection_is_closed(fast_path: FastPath) -> None:
    """A connection that sends nothing, or half of a request, is closed after the keep-alive time of gunicorn."""
    vars(fast_path)["_idle_s"] = 0.0
    watch = gevent.spawn(fast_path.watch)
    for sent in (b"", STEP[:20]):
        local, remote = gevent.socket.socketpair()
        with local, remote, gevent.Timeout(20):
            local.sendall(sent)
            assert fast_path.serve(remote, b"") is None
    watch.kill()


def test_pipelined_steps_of_a_slow_reader_are_answered_completely(fast_path: FastPath) -> None:
    """A response that the socket takes only in part is continued where it was cut."""
    count, inputs, received = 50, 200, bytearray()
    body = orjson.dumps({"inputs": [500] * inputs})
    local, remote = gevent.socket.socketpair()
    with local, remote, gevent.Timeout(60):
        remote.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, 4096)
        gevent.spawn(fast_path.serve, remote, b"")
        gevent.spawn(local.sendall, count * STEP.replace(b"17", b"%d" % len(body)).replace(b'{"inputs": [500]}', body))
        while received.count(b"HTTP/1.1 ") < count or not received.endswith(b"}"):
            received += local.recv(997)
            gevent.sleep(0)
    responses = [response.partition(b"\r\n\r\n")[2] for response in bytes(received).split(b"HTTP/1.1 ")[1:]]
    assert [orjson.loads(response)["step"] for response in responses] == [*range(inputs, count * inputs + 1, inputs)]


def test_many_pipelined_refusals_are_all_sent(fast_path: FastPath) -> None:
    """A refusal is sent at once, and the next request begins in another turn, so that no stack grows."""
    count = 500
    assert serve(fast_path, STEP)[0].startswith(b"HTTP/1.1 200 ")
    fast_path.engine._batchers._backlog.most = 0
    local, remote = gevent.socket.socketpair()
    with local, remote, gevent.Timeout(60):
        remote.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, 2**22)  # all of the answers fit
        local.sendall(count * STEP)
        gevent.spawn(fast_path.serve, remote, b"")
        responses = b""
        while responses.count(b"HTTP/1.1 503 ") < count:
            responses += local.recv(65_536)


@contextmanager
def waiting_step(fast_path: FastPath, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[BatchRow]]]:
    """Sends a step whose row does not reach its batch. Yields the client's socket, and the rows that were submitted."""
    rows: list[BatchRow] = []
    assert serve(fast_path, STEP)[0].startswith(b"HTTP/1.1 200 ")  # the session's model is known after the first step
    local, remote = gevent.socket.socketpair()
    with local, remote, gevent.Timeout(60):
        monkeypatch.setattr(fast_path.engine.steps, "submit", rows.append)
        gevent.spawn(fast_path.serve, remote, b"")
        local.sendall(STEP)
        while not rows:
            take_loop_turn()
        yield local, rows


def resume(fast_path: FastPath, monkeypatch: pytest.MonkeyPatch, row: BatchRow) -> None:
    """Submits the row that waits, and those after it."""
    submit = fast_path.engine._batchers.submit
    monkeypatch.setattr(fast_path.engine.steps, "submit", submit)
    submit(row)


def test_a_connection_whose_step_waits_is_not_idle(fast_path: FastPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long an answer takes, the connection goes on after it."""
    with waiting_step(fast_path, monkeypatch) as (local, rows):
        (connection,) = fast_path._connections
        connection.end_if_idle(math.inf)
        resume(fast_path, monkeypatch, rows[0])
        for step in (2, 3):
            assert b'{"step":%d,' % step in local.recv(65_536)
            local.sendall(STEP)


def test_bytes_that_come_before_the_answer_wait_without_work(
    fast_path: FastPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a step waits for its batch, the event loop does not look again and again at the next request's bytes."""
    reads: list[bool] = []
    read = LoopConnection._read

    def counted(connection: LoopConnection[Any]) -> None:
        reads.append(True)
        read(connection)

    monkeypatch.setattr(LoopConnection, "_read", counted)
    with waiting_step(fast_path, monkeypatch) as (local, rows):
        reads.clear()
        local.sendall(STEP)
        for _ in range(20):
            take_loop_turn()
        assert len(reads) <= 1
        assert len(rows) == 1
        resume(fast_path, monkeypatch, rows[0])
        received = b""
        while received.count(b'"step":') < 2:
            received += local.recv(65_536)
        assert received.index(b'{"step":2,') < received.index(b'{"step":3,')


@pytest.fixture
def short_stall_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (connection_handoff, fast_path_module):
        monkeypatch.setattr(module, "STALLED_S", 0.1)


@pytest.mark.usefixtures("short_stall_timeout")
def test_a_stalled_client_of_the_fast_path_is_disconnected(fast_path: FastPath) -> None:
    """A client that sends and never reads is disconnected; one that stops within a body is handed over to Flask."""
    local, remote = gevent.socket.socketpair()
    with local, remote, gevent.Timeout(60):
        sending = gevent.spawn(local.sendall, STEP * 10_000)
        assert fast_path.serve(remote, b"") is None
        sending.kill()
    local, remote = gevent.socket.socketpair()
    with local, remote, gevent.Timeout(60):
        local.sendall(STEP[:-1])
        handoff = fast_path.serve(remote, b"")
        assert handoff is not None
        assert handoff.recv(65536) == STEP[:-1]
        with pytest.raises(ConnectionResetError):
            handoff.recv(65536)


@pytest.mark.usefixtures("short_stall_timeout")
def test_a_stalled_client_of_gunicorn_is_disconnected() -> None:
    """Gunicorn sees a connection reset, except while `wait_long` allows the client to be silent."""
    local, remote = gevent.socket.socketpair()
    with local, remote, gevent.Timeout(60):
        handoff = HandoffConnection(remote, b"half", None, timeout_s=0.1)
        assert handoff.recv(100) == b"half"
        with pytest.raises(ConnectionResetError):
            handoff.recv(100)
        with pytest.raises(ConnectionResetError):
            handoff.sendall(bytes(10_000_000))
        handoff.wait_long()
        gevent.spawn_later(0.3, local.sendall, b"more")
        assert handoff.recv(100) == b"more"
        handoff.begin()
        with pytest.raises(ConnectionResetError):
            handoff.recv(100)


def test_a_tcp_timeout_is_a_connection_reset() -> None:
    """The socket raises TimeoutError for a lost peer, even if no timeout is set."""

    class Lost:
        def recv(self, size: int) -> bytes:
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

        def settimeout(self, seconds: float | None) -> None: ...
        def setsockopt(self, *option: int) -> None: ...

    handoff = HandoffConnection(Lost(), b"", None, timeout_s=1)
    handoff.wait_long()
    with pytest.raises(ConnectionResetError):
        handoff.recv(100)


def test_a_slow_reader_receives_the_whole_response() -> None:
    """A client that keeps reading may take longer than the stall timeout, although TCP opens its window in steps."""
    with gevent.socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        local = gevent.socket.socket()
        # a small buffer soon acknowledges what has arrived
        local.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_RCVBUF, 65_536)
        local.connect(listening.getsockname())
        remote, _ = listening.accept()
        data = bytes(range(256)) * 20_000
        with local, remote, gevent.Timeout(100):
            remote.settimeout(1.0)
            sending = gevent.spawn(deliver, remote, data)
            received = 0
            while received < len(data):
                received += len(local.recv(16_384))
                gevent.sleep(0.025)
            sending.get()
            assert received == len(data)
