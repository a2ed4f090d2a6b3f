"""The contract of session stores: the same tests run over every store, on real servers."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path

import pytest

from onward.service.errors import DamagedRecordError, ForeignRecordError
from onward.service.store import record as records
from onward.service.store.contract import Change, Store
from onward.service.store.opening import open_store
from onward.service.store.record import TOMBSTONE_S, BundleRef, Record, Tombstone
from onward.service.store.record_cache import RecordCache
from onward.service.store.redis import RedisStore
from tests.helpers.valkey_server import Server

NOW = 1_800_000_000.0


def session(revision: int = 1, *, model: str = "m", version: int = 1, step: int = 0, ttl_s: float = 60.0) -> Record:
    return Record.pack(
        revision=revision, tenant="t", ref=BundleRef(model, version, bytes(32)), step=step, created_at=NOW,
        last_step_at=NOW, ttl_s=ttl_s, expires_at=NOW + ttl_s, state=b"state",
    )  # fmt: skip


def key(name: str) -> bytes:
    return records.key("t", name)


@pytest.fixture(params=["lmdb", "redis", "unix", "redis+cluster"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty store of each kind."""
    if request.param == "lmdb":
        return f"lmdb://{tmp_path}/store"
    server: Server = request.getfixturevalue("cluster" if "cluster" in request.param else "valkey")
    server.empty()
    return server.unix if request.param == "unix" else server.uri


@pytest.fixture
def store(uri: str) -> Iterator[Store]:
    opened = open_store(uri)
    yield opened
    opened.close()


def test_committed_records_are_loaded(store: Store) -> None:
    """Records are loaded unchanged in the order of the keys, and a key without a record gives None."""
    first, second = session(1), session(2, step=7)
    assert store.commit_many([Change(key("a"), None, first), Change(key("b"), None, second)]) == [True, True]
    assert store.load_many([key("b"), key("x"), key("a")]) == [second, None, first]


def test_compare_and_set(store: Store) -> None:
    """A change with the present revision is applied; any other change is refused and has no effect."""
    first, second = session(5), session(6, step=1)
    assert store.commit_many([Change(key("a"), 5, first)]) == [False]
    assert store.commit_many([Change(key("a"), None, first)]) == [True]
    assert store.commit_many([Change(key("a"), None, second)]) == [False]
    assert store.commit_many([Change(key("a"), 4, second)]) == [False]
    assert store.load_many([key("a")]) == [first]
    assert store.commit_many([Change(key("a"), 5, second)]) == [True]
    assert store.load_many([key("a")]) == [second]


def test_a_refused_change_does_not_fail_its_group(store: Store) -> None:
    """Every change of a group is applied or refused by itself."""
    changes = [Change(key("a"), None, session()), Change(key("b"), 9, session()), Change(key("c"), None, session())]
    assert store.commit_many(changes) == [True, False, True]
    assert store.load_many([key("b")]) == [None]


def test_a_session_is_ended_once(store: Store) -> None:
    """If two changes end a session from the same record, the first is applied and its reason is stored."""
    store.commit_many([Change(key("a"), None, session(1))])
    ended = [Change(key("a"), 1, session(1).tombstone(reason, NOW)) for reason in ("deleted", "expired")]
    assert [store.commit_many([change]) for change in ended] == [[True], [False]]
    assert store.load_many([key("a")]) == [ended[0].record]


def test_a_late_commit_does_not_restore_an_ended_session(uri: str) -> None:
    """A worker that has cached the last record can neither step, replace nor end a session that has ended."""
    store = open_store(uri)
    store.commit_many([Change(key("a"), None, session(1))])
    late = in_another_process(store)
    assert late.load_many([key("a")]) == [session(1)]
    ended = session(1).tombstone("deleted", NOW)
    assert store.commit_many([Change(key("a"), 1, ended)]) == [True]
    for change in (
        Change(key("a"), 1, session(2, step=1), advances=True),
        Change(key("a"), 1, session(2, step=1)),
        Change(key("a"), 1, session(1).tombstone("expired", NOW)),
        Change(key("a"), None, session(2)),
    ):
        assert late.commit_many([change]) == [False]
    assert store.load_many([key("a")]) == [ended]
    assert store.count() == {("m", 1): 0}
    assert store.page(b"t/", b"t/", 10, now=NOW).sessions == []
    assert store.commit_many([Change(key("a"), ended.revision, session(3))]) == [True]
    assert store.load_many([key("a"), records.key("t2", "a")]) == [session(3), None]
    store.close()


def test_two_changes_of_one_key_in_a_group(store: Store) -> None:
    """The second change is compared with the revision that the first has set."""
    assert store.commit_many([Change(key("a"), None, session(1)), Change(key("a"), 1, session(2))]) == [True, True]
    assert store.commit_many([Change(key("a"), 2, session(3)), Change(key("a"), 2, session(4))]) == [True, False]


def test_pages_have_each_live_session_once_in_order(store: Store) -> None:
    """The pages have the live sessions of a prefix, without ended sessions and without those of another tenant."""
    names = [f"s{number:02}" for number in range(25)]
    store.commit_many([Change(key(name), None, session(model="mn"[i % 2])) for i, name in enumerate(names)])
    store.commit_many(
        [Change(records.key("t2", "s00"), None, session()), Change(records.key("s", "zz"), None, session())]
    )
    store.commit_many([Change(key("s03"), 1, session(1).tombstone("deleted", NOW))])
    for model, expected in ((None, [name for name in names if name != "s03"]), ("m", names[::2])):
        seen, after = [], b"t/"
        while True:
            page = store.page(b"t/", after, 10, now=NOW, model=model)
            seen += [records.session_id(found) for found, _ in page.sessions]
            assert len(page.sessions) <= 10
            if page.after is None:
                break
            after = page.after
        assert seen == expected


def test_a_page_omits_expired_sessions(store: Store) -> None:
    """An expired session is not alive, whether or not it was swept."""
    store.commit_many([Change(key("a"), None, session(ttl_s=10)), Change(key("b"), None, session(ttl_s=99))])
    assert [found for found, _ in store.page(b"t/", b"t/", 10, now=NOW + 11).sessions] == [key("b")]


def test_counts_follow_creation_and_end(store: Store) -> None:
    """Live sessions are counted by model and version through creation, steps, deletion, another creation and expiry."""
    store.commit_many([Change(key(name), None, session(1, model="m")) for name in "abc"])
    store.commit_many([Change(key("d"), None, session(1, model="n", version=2, ttl_s=10))])
    assert store.count() == {("m", 1): 3, ("n", 2): 1}
    store.commit_many([Change(key("a"), 1, session(2, step=1))])
    assert store.count() == {("m", 1): 3, ("n", 2): 1}
    ended = session(2).tombstone("deleted", NOW)
    store.commit_many([Change(key("a"), 2, ended)])
    assert store.count() == {("m", 1): 2, ("n", 2): 1}
    store.commit_many([Change(key("a"), ended.revision, session(9))])
    assert store.sweep(NOW + 11) == 1
    assert store.count() == {("m", 1): 3, ("n", 2): 0}


def test_counts_follow_an_id_from_one_model_to_another(store: Store) -> None:
    """A session that replaces an expired one before a sweep is counted in its place."""
    store.commit_many([Change(key("a"), None, session(1, model="m", ttl_s=10))])
    store.commit_many([Change(key("a"), 1, session(7, model="n"))])
    assert store.count() == {("m", 1): 0, ("n", 1): 1}
    assert [found for found, _ in store.page(b"t/", b"t/", 10, now=NOW).sessions] == [key("a")]
    store.commit_many([Change(key("a"), 7, session(7, model="n").tombstone("deleted", NOW))])
    store.sweep(NOW + 100)
    assert store.count() == {("m", 1): 0, ("n", 1): 0}


def test_a_sweep_ends_only_expired_sessions(store: Store) -> None:
    """The end of a session is its expiry time and not the time of the sweep, and a step postpones it."""
    store.commit_many(
        [Change(key("idle"), None, session(1, ttl_s=10)), Change(key("busy"), None, session(1, ttl_s=10))]
    )
    stepped = session(2, step=1, ttl_s=10).replace(expires_at=NOW + 25)
    store.commit_many([Change(key("busy"), 1, stepped, advances=True)])
    assert store.sweep(NOW + 9) == 0
    assert store.sweep(NOW + 20) == 2  # both were due before the step
    idle, busy = store.load_many([key("idle"), key("busy")])
    assert isinstance(idle, Tombstone)
    assert idle[1:] == ("expired", NOW + 10)
    assert busy == stepped
    assert store.sweep(NOW + 20) == 0
    assert store.sweep(NOW + 26) == 1


def test_a_tombstone_is_stored_for_a_day(store: Store) -> None:
    """After a day the id is unused again. The test uses the time of the machine, by which a server expires keys."""
    now = time.time()
    times = {"old": now - TOMBSTONE_S - 1, "late": now - TOMBSTONE_S + 600, "new": now}
    store.commit_many([Change(key(name), None, session().replace(expires_at=now + 60)) for name in times])
    ended = {name: session().tombstone("deleted", at) for name, at in times.items()}
    assert store.commit_many([Change(key(name), 1, tombstone) for name, tombstone in ended.items()]) == [True] * 3
    store.sweep(now)
    assert store.load_many([key(name) for name in times]) == [None, ended["late"], ended["new"]]
    assert store.commit_many([Change(key("old"), None, session(2))]) == [True]
    assert store.count() == {("m", 1): 1}


def test_a_sweep_is_bounded(store: Store) -> None:
    """Many sessions that expire together are ended in parts, so that steps run between the parts."""
    store.commit_many([Change(key(f"s{number}"), None, session(ttl_s=10)) for number in range(25)])
    assert [store.sweep(NOW + 20, limit=10) for _ in range(4)] == [10, 10, 5, 0]


def test_a_reused_id_is_not_ended_at_the_time_of_its_old_session(store: Store) -> None:
    """Neither the expiry time of the old session nor that of its tombstone ends the new session."""
    store.commit_many([Change(key("a"), None, session(1, ttl_s=10))])
    ended = session(1).tombstone("deleted", NOW + 5)
    store.commit_many([Change(key("a"), 1, ended)])
    anew = session(7, ttl_s=10 * TOMBSTONE_S).replace(created_at=NOW + 6)
    store.commit_many([Change(key("a"), ended.revision, anew)])
    store.sweep(NOW + 2 * TOMBSTONE_S)
    assert store.load_many([key("a")]) == [anew]
    assert store.count() == {("m", 1): 1}


def test_records_survive_closing_the_store(uri: str) -> None:
    """A store that is closed and opened again has the same records."""
    first = open_store(uri)
    first.commit_many([Change(key("a"), None, session(3))])
    first.close()
    second = open_store(uri)
    assert second.load_many([key("a")]) == [session(3)]
    second.close()


def race(uri: str, attempts: int) -> int:
    """Tries to step a session, and returns how many of the attempts were committed by this process."""
    store, won = open_store(uri), 0
    for _ in range(attempts):
        before = store.load_many([key("race")])[0]
        assert isinstance(before, Record)
        after = before.replace(revision=records.new_revision(), step=before.step + 1)
        won += store.commit_many([Change(key("race"), before.revision, after)])[0]
    store.close()
    return won


def test_racing_processes_commit_each_revision_once(uri: str) -> None:
    """Four processes race, and the steps of the session are exactly the commits that succeeded."""
    store = open_store(uri)
    store.commit_many([Change(key("race"), None, session(0))])
    store.close()
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        won = pool.starmap(race, [(uri, 300)] * 4)
        pool.close()
        pool.join()
    store = open_store(uri)
    after = store.load_many([key("race")])[0]
    store.close()
    assert isinstance(after, Record)
    assert after.step == sum(won)
    assert min(won) > 0


def test_a_cached_record_is_current_or_its_change_is_refused(uri: str) -> None:
    """A load with fresh=False may return this process's last record, and a change of an outdated record is refused."""
    store = open_store(uri)
    second = in_another_process(store)
    store.commit_many([Change(key("a"), None, session(1)), Change(key("b"), None, session(1))])
    second.commit_many([Change(key("a"), 1, session(2, step=1), advances=True)])
    assert store.load_many([key("a"), key("x"), key("b")]) == [session(2, step=1), None, session(1)]
    cached, missing, unchanged = store.load_many([key("a"), key("x"), key("b")], fresh=False)
    assert cached in (session(1), session(2, step=1))
    assert (missing, unchanged) == (None, session(1))
    changes = [Change(key(name), 1, session(3, step=1), advances=True) for name in "ab"]
    assert store.commit_many(changes) == [False, True]
    assert store.load_many([key("a"), key("b")], fresh=False) == [session(2, step=1), session(3, step=1)]
    store.close()


def test_a_damaged_record_is_an_error_of_its_own_row(uri: str) -> None:
    """The damaged key gives an error, and the records of the remaining keys are loaded."""
    store = open_store(uri)
    store.commit_many([Change(key(name), None, session()) for name in "abc"])
    damage(store, key("b"))
    a, b, c = store.load_many([key("a"), key("b"), key("c")])
    assert isinstance(b, DamagedRecordError)
    assert (a, c) == (session(), session())
    assert [found for found, _ in store.page(b"t/", b"t/", 10, now=NOW).sessions] == [key("a"), key("c")]
    store.close()


def test_a_damaged_record_is_quarantined_on_demand(uri: str) -> None:
    """Quarantine frees the id of a damaged record, and leaves an intact record unchanged."""
    store = open_store(uri)
    store.commit_many([Change(key(name), None, session()) for name in "ab"])
    damage(store, key("b"))
    for name in "ab":
        store.quarantine(key(name))
    assert store.load_many([key("a"), key("b")]) == [session(), None]
    assert store.commit_many([Change(key("b"), None, session(9))]) == [True]
    store.close()


def test_a_quarantined_record_is_not_counted(uri: str) -> None:
    """A damaged record is counted until its quarantine, as its session may be alive, and its reused id once."""
    store = open_store(uri)
    store.commit_many([Change(key(name), None, session()) for name in "ab"])
    damage(store, key("b"))
    assert store.count() == {("m", 1): 2}
    for _ in range(2):
        store.quarantine(key("b"))
        assert store.count() == {("m", 1): 1}
    store.commit_many([Change(key("b"), None, session(9, model="n"))])
    store.commit_many([Change(key("b"), 9, session(9).tombstone("deleted", NOW))])
    store.sweep(NOW + 100)
    assert store.count() == {("m", 1): 0, ("n", 1): 0}
    store.close()


def another_format(data: bytes) -> bytes:
    """The record in an unknown format of another version: the header that all formats share, then unknown bytes."""
    return data[:3] + b"\x63" + data[4:16] + bytes(range(40))


def damaged(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


UNREADABLE = pytest.mark.parametrize(
    ("alter", "error"), [(another_format, ForeignRecordError), (damaged, DamagedRecordError)]
)


@UNREADABLE
def test_a_sweep_does_not_change_unreadable_records(
    uri: str, alter: Callable[[bytes], bytes], error: type[Exception]
) -> None:
    """The session stays in the store, and ends when a version that can read its record sweeps it."""
    store = open_store(uri)
    store.commit_many([Change(key(name), None, session(1, ttl_s=10)) for name in "abc"])
    good = stored_bytes(store, key("b"))
    set_bytes(store, key("b"), alter(good))
    assert store.sweep(NOW + 20) == 3
    assert isinstance(store.load_many([key("b")])[0], error)
    assert stored_bytes(store, key("b")) == alter(good)
    assert store.count() == {("m", 1): 1}
    assert store.page(b"t/", b"t/", 10, now=NOW).sessions == []
    for expected in (None, 2):
        assert store.commit_many([Change(key("b"), expected, session(3))]) == [False]
    set_bytes(store, key("b"), good)
    assert [found for found, _ in store.page(b"t/", b"t/", 10, now=NOW).sessions] == [key("b")]
    assert store.sweep(NOW + 20) == 1
    (ended,) = store.load_many([key("b")])
    assert isinstance(ended, Tombstone)
    assert ended[1:] == ("expired", NOW + 10)
    assert store.count() == {("m", 1): 0}
    store.close()


@UNREADABLE
def test_unreadable_records_do_not_hold_up_a_sweep(
    uri: str, alter: Callable[[bytes], bytes], error: type[Exception]
) -> None:
    """Later sessions are ended and the sweep completes with more unreadable records than a call examines."""
    store = open_store(uri)
    store.commit_many([Change(key(f"s{number:02}"), None, session(1, ttl_s=10)) for number in range(25)])
    good = {key(f"s{number:02}"): stored_bytes(store, key(f"s{number:02}")) for number in range(25)}
    for name, data in good.items():
        set_bytes(store, name, alter(data))
    store.commit_many([Change(key(name), None, session(1, ttl_s=11)) for name in "xyz"])
    assert [store.sweep(NOW + 20, limit=10) for _ in range(3)] == [10, 10, 8]
    assert all(isinstance(found, Tombstone) for found in store.load_many([key(name) for name in "xyz"]))
    store.commit_many([Change(key("w"), None, session(1, ttl_s=21))])
    assert store.sweep(NOW + 22, limit=10) < 10
    assert isinstance(store.load_many([key("w")])[0], Tombstone)
    assert all(isinstance(found, error) for found in store.load_many(list(good)))
    assert store.count() == {("m", 1): 25}
    for name, data in good.items():
        set_bytes(store, name, data)
    assert [store.sweep(NOW + 300, limit=10) for _ in range(3)] == [10, 10, 5]
    assert store.count() == {("m", 1): 0}
    store.close()


def test_a_record_of_another_version_is_never_quarantined(uri: str) -> None:
    """The version that wrote the record can continue its session, as the record is not damaged."""
    store = open_store(uri)
    store.commit_many([Change(key("a"), None, session(1))])
    good = stored_bytes(store, key("a"))
    set_bytes(store, key("a"), another_format(good))
    store.quarantine(key("a"))
    assert store.count() == {("m", 1): 1}
    set_bytes(store, key("a"), good)
    assert store.commit_many([Change(key("a"), 1, session(2, step=1), advances=True)]) == [True]
    assert [found for found, _ in store.page(b"t/", b"t/", 10, now=NOW).sessions] == [key("a")]
    store.close()


def test_tombstones_of_the_previous_format_are_read(uri: str) -> None:
    """A tombstone of format 4 was a record without sections; its time and reason are read, and its id is free."""
    store = open_store(uri)
    revision = 0xFEDCBA9876543210
    for name in "ab":
        set_bytes(store, key(name), FORMAT_4_TOMBSTONE)
    ended = Tombstone(revision, "deleted", 1_700_000_100.0)
    assert store.load_many([key("a"), key("b")]) == [ended, ended]
    changes = [Change(key("a"), expected, session(5)) for expected in (None, revision)]
    assert store.commit_many(changes) == [False, True]
    assert store.count() == {("m", 1): 1}
    assert [found for found, _ in store.page(b"t/", b"t/", 10, now=NOW).sessions] == [key("a")]
    store.close()


FORMAT_4_TOMBSTONE = bytes.fromhex(
    "4f57520415e3f97d1032547698badcfe070000000000000000001040fc54d9410000204ffc54d941000000000020ac40000000b95055d941"
    "020700000000000000000000000000e03f000000000000d03f03000000000102030405060708090a0b0c0d0e0f101112131415161718191a"
    "1b1c1d1e1f06000500000000000000000000000000000000007075626c696370756c7365"
)


def in_another_process(store: Store) -> Store:
    """The store as another process has it, with its own record cache. LMDB opens a file only once in a process."""
    copied = copy(store)
    vars(copied)["_cache"] = RecordCache()
    return copied


def damage(store: Store, record_key: bytes) -> None:
    """Inverts the last bit of the stored record."""
    set_bytes(store, record_key, damaged(stored_bytes(store, record_key)))


def stored_bytes(store: Store, record_key: bytes) -> bytes:
    """The bytes of a record as the backend has them."""
    if isinstance(store, RedisStore):
        data: bytes | None = store._server.get(b"onward:session:{" + record_key + b"}")
    else:
        with vars(store)["_env"].begin(db=vars(store)["_sessions"]) as txn:
            data = txn.get(record_key)
    assert data is not None
    return data


def set_bytes(store: Store, record_key: bytes, data: bytes) -> None:
    """Sets the bytes of a record in the backend, and removes the record from the cache of this process."""
    vars(store)["_cache"].remove(record_key)
    if isinstance(store, RedisStore):
        store._server.set(b"onward:session:{" + record_key + b"}", data)
        return
    with vars(store)["_env"].begin(db=vars(store)["_sessions"], write=True) as txn:
        txn.put(record_key, data)
