"""Tests that only the networked store needs: broken connections, a server that is down, full, or has lost data."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from onward.model.repository import open_all
from onward.service.engine.engine import Engine, Limits
from onward.service.errors import StepConflictError, StoreFullError, StoreUnavailableError
from onward.service.store import record as records
from onward.service.store.contract import Change
from onward.service.store.opening import redact_uri
from onward.service.store.record import Record
from onward.service.store.redis import RedisStore
from tests.contracts.test_stores import NOW, damage, key, session
from tests.helpers import tls_proxy
from tests.helpers.reference_loop import ZOO, BareLoop, pulse
from tests.helpers.valkey_server import Server

T = "tenant"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, which the test may stop."""
    started = Server(tmp_path / "valkey")
    yield started
    started.kill()


@pytest.fixture
def store(server: Server) -> Iterator[RedisStore]:
    opened = RedisStore(server.uri)
    yield opened
    opened.close()


def test_a_commit_that_is_sent_twice_is_applied_once(store: RedisStore) -> None:
    """A commit repeated after a broken connection succeeds and is not applied again; a conflicting one is refused."""
    store.commit_many([Change(key("a"), None, session(1))])
    step = Change(key("a"), 1, session(records.new_revision(), step=1), advances=True)
    assert store.commit_many([step]) == [True]
    assert store.commit_many([step]) == [True]
    conflicting = Change(key("a"), 1, session(records.new_revision(), step=1), advances=True)
    assert store.commit_many([conflicting]) == [False]
    assert store.load_many([key("a")]) == [step.record]


class CuttingProxy:
    """A proxy that cuts the connection once: a commit reaches the server, and its answer is lost.

    The proxy calls `before_cut` after the commit and before it closes the connection.
    """

    def __init__(self, port: int, before_cut: Callable[[], object]) -> None:
        self._port, self._before_cut, self._has_cut = port, before_cut, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._port)) as server:
            while data := client.recv(1 << 20):
                server.sendall(data)
                answer = server.recv(1 << 20)
                if b"EVALSHA" in data and b"NOSCRIPT" not in answer and not self._has_cut:
                    self._has_cut = True
                    self._before_cut()
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("moved", [False, True])
def test_a_commit_whose_answer_was_lost_is_applied_once(server: Server, store: RedisStore, moved: bool) -> None:
    """The store repeats the commit; if the session has moved since, the error says that it may have been applied."""
    store.commit_many([Change(key("a"), None, session(1))])
    committed = session(records.new_revision(), step=1)
    after = session(records.new_revision(), step=2)

    def move() -> None:
        if moved:
            assert store.commit_many([Change(key("a"), committed.revision, after, advances=True)]) == [True]

    proxy = CuttingProxy(server.port, move)
    behind_proxy = RedisStore(proxy.uri)
    step = [Change(key("a"), 1, committed, advances=True)]
    if moved:
        with pytest.raises(StoreUnavailableError, match="may have been applied"):
            behind_proxy.commit_many(step)
    else:
        assert behind_proxy.commit_many(step) == [True]
    assert store.load_many([key("a")]) == [after if moved else committed]
    behind_proxy.close()
    proxy.close()


def test_a_server_that_is_down_is_reported_and_comes_back(server: Server, store: RedisStore) -> None:
    """Every operation raises an error of the store while the server is down; committed records are there afterwards."""
    store.commit_many([Change(key("a"), None, session(1))])
    server.kill()
    for operation in (
        lambda: store.load_many([key("a")]),
        lambda: store.commit_many([Change(key("a"), 1, session(2))]),
        store.count,
        lambda: store.sweep(NOW),
        lambda: store.page(b"t/", b"t/", 10, now=NOW),
    ):
        with pytest.raises(StoreUnavailableError):
            operation()
    server.start()
    assert store.load_many([key("a")]) == [session(1)]
    assert store.commit_many([Change(key("a"), 1, session(2))]) == [True]


def test_the_store_opens_while_the_server_is_down(server: Server) -> None:
    """A service can start before its store: each operation raises an error until the server is up."""
    server.kill()
    for uri in (server.uri, server.uri.replace("redis:", "redis+cluster:")):
        store = RedisStore(uri)
        with pytest.raises(StoreUnavailableError):
            store.count()
        store.close()
    server.start()


def test_a_full_server_is_reported(server: Server, store: RedisStore) -> None:
    """A commit on a full server changes nothing; acknowledged records stay, and sessions can be ended."""
    store.commit_many([Change(key("a"), None, session(1))])
    server.client().config_set("maxmemory", 1)
    with pytest.raises(StoreFullError):
        store.commit_many([Change(key("a"), 1, session(2), advances=True)])
    assert store.load_many([key("a")]) == [session(1)]
    store.commit_many([Change(key("a"), 1, session(1).tombstone("deleted", NOW))])  # a tombstone needs no room
    assert store.load_many([key("a")]) == [None]
    assert store.page(b"t/", b"t/", 10, now=NOW).sessions == []
    server.client().config_set("maxmemory", 0)
    assert store.commit_many([Change(key("a"), None, session(1))]) == [True]
    assert store.commit_many([Change(key("a"), 1, session(2), advances=True)]) == [True]


def test_scripts_that_the_server_lost_are_sent_again(server: Server, store: RedisStore) -> None:
    """A restart or a failover of the server loses its scripts."""
    store.commit_many([Change(key("a"), None, session(1))])
    server.client().script_flush()
    assert store.commit_many([Change(key("a"), 1, session(2), advances=True)]) == [True]


def test_the_server_drops_a_session_that_was_never_swept(server: Server, store: RedisStore) -> None:
    """A session is dropped a day after it expired, and a tombstone a day after the session's end."""
    store.commit_many([Change(key("a"), None, session(1, ttl_s=60)), Change(key("b"), None, session(1, ttl_s=60))])
    store.commit_many([Change(key("b"), 1, session(1).tombstone("deleted", NOW))])
    expires = [server.client().pexpiretime("onward:session:{t/" + name + "}") for name in "ab"]
    assert expires == [(NOW + 60 + 86_400) * 1000, (NOW + 86_400) * 1000]


def test_a_deleted_session_occupies_100_bytes_beside_its_key(server: Server, store: RedisStore) -> None:
    """The limit includes the server's own bookkeeping, whatever size the record had, and no index has an entry."""
    names = [key(f"{number:032x}") for number in range(50)]
    store.commit_many([Change(name, None, session().replace(state=bytes(4096))) for name in names])
    store.commit_many([Change(name, 1, session().tombstone("deleted", NOW)) for name in names])
    for name in names:
        usage = server.client().memory_usage(b"onward:session:{" + name + b"}")
        assert usage is not None
        assert usage <= 100 + len(b"onward:session:{" + name + b"}")
    assert sorted(server.client().keys()) == sorted(
        [b"onward:groups", *(b"onward:session:{" + n + b"}" for n in names)]
    )


def test_index_entries_of_an_older_version_for_tombstones_are_cleared(server: Server, store: RedisStore) -> None:
    """A sweep clears each entry that is due, because nothing else would."""
    server.client().zadd("onward:ended", {"t/a": NOW + 1, "t/b": NOW + 3})
    store.sweep(NOW + 2)
    assert server.client().zrange("onward:ended", 0, -1) == [b"t/b"]


def test_a_refused_commit_leaves_no_entry(server: Server, store: RedisStore) -> None:
    """The entries in the counts and in the listing, which are written before the commit, are removed again."""
    store.commit_many([Change(key("a"), None, session(1))])
    assert store.commit_many([Change(key(name), 5, session(2, model="n")) for name in "ab"]) == [False, False]
    assert store.count() == {("m", 1): 1, ("n", 1): 0}
    assert server.client().zrange("onward:ids:t", 0, -1) == [b"a"]


def test_a_record_that_was_replaced_is_not_quarantined(server: Server, store: RedisStore) -> None:
    """The server compares the record, because a step may have replaced the damaged bytes since they were read."""
    store.commit_many([Change(key("a"), None, session(1))])
    damage(store, key("a"))
    get = vars(RedisStore)["_get"]

    class SlowStore(RedisStore):
        def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
            values: list[bytes | None] = get(self, keys)
            store.commit_many([Change(key("a"), 1, session(2, step=1), advances=True)])
            return values

    slow = SlowStore(server.uri)
    slow.quarantine(key("a"))
    slow.close()
    assert store.load_many([key("a")]) == [session(2, step=1)]
    assert store.count() == {("m", 1): 1}


def test_entries_that_a_stopped_process_left_behind_are_cleared(server: Server, store: RedisStore) -> None:
    """An entry without a session is never listed; it is counted until it is due, when a sweep removes it."""
    server.client().zadd("onward:due:m/1", {key("ghost"): NOW})
    server.client().zadd("onward:ids:t", {"ghost": 0})
    store.commit_many([Change(key("a"), None, session(1))])
    assert [listed for listed, _ in store.page(b"t/", b"t/", 10, now=NOW).sessions] == [key("a")]
    assert store.count() == {("m", 1): 2}
    assert store.sweep(NOW + 1) == 1
    assert store.count() == {("m", 1): 1}
    assert server.client().zrange("onward:ids:t", 0, -1) == [b"a"]


def test_steps_that_the_server_has_lost_are_reported(server: Server, store: RedisStore) -> None:
    """After a failover to a replica that was behind, the conflict names the step that the store has."""
    engine = Engine(open_all(ZOO), store, Limits())
    engine.start()
    engine.create(T, "pulse", session_id="s")
    inputs = pulse(4)
    name = b"onward:session:{tenant/s}"
    engine.steps.step(T, "s", inputs[:1])
    before: Any = server.client().get(name)
    engine.steps.step(T, "s", inputs[1:2])
    server.client().set(name, before)
    with pytest.raises(StepConflictError) as conflict:
        engine.steps.step(T, "s", inputs[2:3])
    assert conflict.value.expected == 1
    repeated = engine.steps.step(T, "s", inputs[1:], step=1)
    assert repeated.step == 4
    assert repeated.outputs["mean"].tobytes() == BareLoop(ZOO / "pulse/1").run(inputs)["mean"][1:].tobytes()
    (record,) = store.load_many([records.key(T, "s")])
    assert isinstance(record, Record)
    engine.close()


def test_tls_and_passwords_are_supported(server: Server, tmp_path: Path) -> None:
    """rediss:// works with a private certificate; without trust in it or without the password, the store refuses."""
    server.client().config_set("requirepass", "secret")
    file = tls_proxy.certificate(tmp_path)
    with tls_proxy.tls_port(server.port, file) as port:
        store = RedisStore(f"rediss://:secret@127.0.0.1:{port}/0?ssl_ca_certs={file}")
        assert store.commit_many([Change(key("a"), None, session(1))]) == [True]
        assert store.load_many([key("a")]) == [session(1)]
        store.close()
        for uri in (f"rediss://:secret@127.0.0.1:{port}/0", f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={file}"):
            refused = RedisStore(uri)
            with pytest.raises(StoreUnavailableError) as error:
                refused.count()
            assert "secret" not in str(error.value)
            refused.close()


def test_a_step_is_one_round_trip_if_its_worker_committed_the_last_step(server: Server, store: RedisStore) -> None:
    """The worker then reads nothing from the store; another process reads the model and the state once."""

    def commands_of(engine: Engine, steps: int) -> tuple[int, int]:
        server.client().config_resetstat()
        for _ in range(steps):
            engine.steps.step(T, "s", [[500]])
        statistics: Any = server.client().info("commandstats")
        return tuple(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("mget", "evalsha"))

    engine = Engine(open_all(ZOO), store, Limits())
    engine.start(sweep_s=1000)
    engine.create(T, "pulse", session_id="s")
    engine.steps.step(T, "s", [[500]])  # finds the session's model, once
    assert commands_of(engine, 10) == (0, 10)
    second_engine = Engine(open_all(ZOO), RedisStore(server.uri), Limits())
    second_engine.start(sweep_s=1000)
    assert commands_of(second_engine, 10) == (2, 10)  # reads the session's model and its state
    for opened in (engine, second_engine):
        opened.close()


def test_a_password_is_not_shown() -> None:
    """Passwords before the host and in the query are both removed."""
    assert redact_uri("rediss://me:secret@host:6379/0?password=secret") == "rediss://host:6379/0"
    assert redact_uri("unix:///run/valkey.sock?password=secret") == "unix:///run/valkey.sock"
    assert redact_uri("lmdb:///var/lib/onward") == "lmdb:///var/lib/onward"
