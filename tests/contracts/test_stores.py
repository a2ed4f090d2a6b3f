"""What every store keeps, on the real thing: one suite over all of them."""

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
    return Record(
        revision=revision, tenant="t", ref=BundleRef(model, version, bytes(32)), step=step, created_at=NOW,
        last_step_at=NOW, ttl_s=ttl_s, expires_at=NOW + ttl_s, state=b"state",
    )  # fmt: skip


def key(name: str) -> bytes:
    return records.key("t", name)


@pytest.fixture(params=["lmdb", "redis", "unix", "redis+cluster"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store of each kind."""
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


def test_what_is_committed_is_loaded(store: Store) -> None:
    """A record comes back as it went in, in the order asked for; what is not there is None."""
    one, two = session(1), session(2, step=7)
    assert store.commit_many([Change(key("a"), None, one), Change(key("b"), None, two)]) == [True, True]
    assert store.load_many([key("b"), key("x"), key("a")]) == [two, None, one]


def test_compare_and_set(store: Store) -> None:
    """Only who knows the present revision changes a session; others are told, and change nothing."""
    first, second = session(5), session(6, step=1)
    assert store.commit_many([Change(key("a"), 5, first)]) == [False]
    assert store.commit_many([Change(key("a"), None, first)]) == [True]
    assert store.commit_many([Change(key("a"), None, second)]) == [False]
    assert store.commit_many([Change(key("a"), 4, second)]) == [False]
    assert store.load_many([key("a")]) == [first]
    assert store.commit_many([Change(key("a"), 5, second)]) == [True]
    assert store.load_many([key("a")]) == [second]


def test_one_refused_row_never_fails_its_neighbours(store: Store) -> None:
    """In one group, each row stands or falls alone."""
    changes = [Change(key("a"), None, session()), Change(key("b"), 9, session()), Change(key("c"), None, session())]
    assert store.commit_many(changes) == [True, False, True]
    assert store.load_many([key("b")]) == [None]


def test_a_session_is_ended_once(store: Store) -> None:
    """Of two that end it from the same record, one does, and what is kept is its reason."""
    store.commit_many([Change(key("a"), None, session(1))])
    ended = [Change(key("a"), 1, session(1).tombstone(reason, NOW)) for reason in ("deleted", "expired")]
    assert [store.commit_many([change]) for change in ended] == [[True], [False]]
    assert store.load_many([key("a")]) == [ended[0].record]


def test_a_late_commit_brings_no_ended_session_back(uri: str) -> None:
    """Of a worker that knows the session's last record: neither a step, nor what replaces or ends it, is applied."""
    store = open_store(uri)
    store.commit_many([Change(key("a"), None, session(1))])
    late = beside(store)
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
    """The second is compared with what the first has set."""
    assert store.commit_many([Change(key("a"), None, session(1)), Change(key("a"), 1, session(2))]) == [True, True]
    assert store.commit_many([Change(key("a"), 2, session(3)), Change(key("a"), 2, session(4))]) == [True, False]


def test_pages_hold_each_living_session_once_in_order(store: Store) -> None:
    """A prefix's sessions, and no other tenant's, page by page, without the ended ones."""
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


def test_a_page_leaves_out_what_has_expired(store: Store) -> None:
    """An expired session is not alive, swept or not."""
    store.commit_many([Change(key("a"), None, session(ttl_s=10)), Change(key("b"), None, session(ttl_s=99))])
    assert [found for found, _ in store.page(b"t/", b"t/", 10, now=NOW + 11).sessions] == [key("b")]


def test_counts_follow_births_and_ends(store: Store) -> None:
    """Live sessions by model and version, through creation, steps, deletion, creation anew, and expiry."""
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
    """A session created over an expired one that no sweep has ended yet: the one counts no more, the other does."""
    store.commit_many([Change(key("a"), None, session(1, model="m", ttl_s=10))])
    store.commit_many([Change(key("a"), 1, session(7, model="n"))])
    assert store.count() == {("m", 1): 0, ("n", 1): 1}
    assert [found for found, _ in store.page(b"t/", b"t/", 10, now=NOW).sessions] == [key("a")]
    store.commit_many([Change(key("a"), 7, session(7, model="n").tombstone("deleted", NOW))])
    store.sweep(NOW + 100)
    assert store.count() == {("m", 1): 0, ("n", 1): 0}


def test_a_sweep_ends_what_is_due_and_only_that(store: Store) -> None:
    """A session ends at its time, not at the sweep's; a stepped one lives on."""
    store.commit_many(
        [Change(key("idle"), None, session(1, ttl_s=10)), Change(key("busy"), None, session(1, ttl_s=10))]
    )
    stepped = session(2, step=1, ttl_s=10)._replace(expires_at=NOW + 25)
    store.commit_many([Change(key("busy"), 1, stepped, advances=True)])
    assert store.sweep(NOW + 9) == 0
    assert store.sweep(NOW + 20) == 2  # both were due at first
    idle, busy = store.load_many([key("idle"), key("busy")])
    assert isinstance(idle, Tombstone)
    assert idle[1:] == ("expired", NOW + 10)
    assert busy == stepped
    assert store.sweep(NOW + 20) == 0
    assert store.sweep(NOW + 26) == 1


def test_a_tombstone_is_kept_for_a_day(store: Store) -> None:
    """Then nothing of it is left, and its id was never used. The time is the machine's: a server forgets by its own."""
    now = time.time()
    times = {"old": now - TOMBSTONE_S - 1, "late": now - TOMBSTONE_S + 600, "new": now}
    store.commit_many([Change(key(name), None, session()._replace(expires_at=now + 60)) for name in times])
    ended = {name: session().tombstone("deleted", at) for name, at in times.items()}
    assert store.commit_many([Change(key(name), 1, tombstone) for name, tombstone in ended.items()]) == [True] * 3
    store.sweep(now)
    assert store.load_many([key(name) for name in times]) == [None, ended["late"], ended["new"]]
    assert store.commit_many([Change(key("old"), None, session(2))]) == [True]
    assert store.count() == {("m", 1): 1}


def test_a_sweep_is_bounded(store: Store) -> None:
    """A crowd that expires at once is ended in parts, so that steps come in between."""
    store.commit_many([Change(key(f"s{number}"), None, session(ttl_s=10)) for number in range(25)])
    assert [store.sweep(NOW + 20, limit=10) for _ in range(4)] == [10, 10, 5, 0]


def test_an_id_created_anew_is_not_ended_by_the_old_ones_time(store: Store) -> None:
    """The old session's and the tombstone's due times do not end the new session."""
    store.commit_many([Change(key("a"), None, session(1, ttl_s=10))])
    ended = session(1).tombstone("deleted", NOW + 5)
    store.commit_many([Change(key("a"), 1, ended)])
    anew = session(7, ttl_s=10 * TOMBSTONE_S)._replace(created_at=NOW + 6)
    store.commit_many([Change(key("a"), ended.revision, anew)])
    store.sweep(NOW + 2 * TOMBSTONE_S)
    assert store.load_many([key("a")]) == [anew]
    assert store.count() == {("m", 1): 1}


def test_it_is_kept_when_closed(uri: str) -> None:
    """Closing and opening changes nothing."""
    first = open_store(uri)
    first.commit_many([Change(key("a"), None, session(3))])
    first.close()
    second = open_store(uri)
    assert second.load_many([key("a")]) == [session(3)]
    second.close()


def race(uri: str, attempts: int) -> int:
    """Makes steps of one session as often as it can; how often this process won."""
    store, won = open_store(uri), 0
    for _ in range(attempts):
        before = store.load_many([key("race")])[0]
        assert isinstance(before, Record)
        after = before._replace(revision=records.new_revision(), step=before.step + 1)
        won += store.commit_many([Change(key("race"), before.revision, after)])[0]
    store.close()
    return won


def test_processes_that_race_win_each_revision_once(uri: str) -> None:
    """Four processes: every win is one step, none is shared, none is lost."""
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


def test_what_is_not_fresh_can_be_gone_on_from_or_is_refused(uri: str) -> None:
    """A process may be told what it committed last; what does not follow the store's own is refused."""
    mine = open_store(uri)
    other = beside(mine)
    mine.commit_many([Change(key("a"), None, session(1)), Change(key("b"), None, session(1))])
    other.commit_many([Change(key("a"), 1, session(2, step=1), advances=True)])
    assert mine.load_many([key("a"), key("x"), key("b")]) == [session(2, step=1), None, session(1)]
    behind, nothing, known = mine.load_many([key("a"), key("x"), key("b")], fresh=False)
    assert behind in (session(1), session(2, step=1))
    assert (nothing, known) == (None, session(1))
    changes = [Change(key(name), 1, session(3, step=1), advances=True) for name in "ab"]
    assert mine.commit_many(changes) == [False, True]
    assert mine.load_many([key("a"), key("b")], fresh=False) == [session(2, step=1), session(3, step=1)]
    mine.close()


def test_a_damaged_record_is_an_error_of_its_own_row(uri: str) -> None:
    """Damage is reported for the key that has it, and the neighbours load."""
    store = open_store(uri)
    store.commit_many([Change(key(name), None, session()) for name in "abc"])
    damage(store, key("b"))
    a, b, c = store.load_many([key("a"), key("b"), key("c")])
    assert isinstance(b, DamagedRecordError)
    assert (a, c) == (session(), session())
    assert [found for found, _ in store.page(b"t/", b"t/", 10, now=NOW).sessions] == [key("a"), key("c")]
    store.close()


def test_a_damaged_record_is_set_aside_on_demand(uri: str) -> None:
    """Its id is free again, its bytes are kept; a sound record is not touched."""
    store = open_store(uri)
    store.commit_many([Change(key(name), None, session()) for name in "ab"])
    damage(store, key("b"))
    for name in "ab":
        store.quarantine(key(name))
    assert store.load_many([key("a"), key("b")]) == [session(), None]
    assert store.commit_many([Change(key("b"), None, session(9))]) == [True]
    store.close()


def test_a_damaged_record_that_is_set_aside_counts_no_more(uri: str) -> None:
    """Until then it does: it may be the record of a session that lives. Created anew and ended, its id counts once."""
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
    """As another version of Onward would have it: the beginning that all formats share, then what nobody here knows."""
    return data[:3] + b"\x63" + data[4:16] + bytes(range(40))


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


UNREADABLE = pytest.mark.parametrize(
    ("spoilt", "error"), [(another_format, ForeignRecordError), (flipped, DamagedRecordError)]
)


@UNREADABLE
def test_a_sweep_leaves_alone_what_it_cannot_read(
    uri: str, spoilt: Callable[[bytes], bytes], error: type[Exception]
) -> None:
    """The session keeps its place in the store, and ends once it is swept by a version that reads its record."""
    store = open_store(uri)
    store.commit_many([Change(key(name), None, session(1, ttl_s=10)) for name in "abc"])
    good = stored_bytes(store, key("b"))
    set_bytes(store, key("b"), spoilt(good))
    assert store.sweep(NOW + 20) == 3
    assert isinstance(store.load_many([key("b")])[0], error)
    assert stored_bytes(store, key("b")) == spoilt(good)
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
def test_what_a_sweep_leaves_alone_holds_up_nothing(
    uri: str, spoilt: Callable[[bytes], bytes], error: type[Exception]
) -> None:
    """More of it than a call looks at: what is due behind it is ended, and the sweep comes to its end."""
    store = open_store(uri)
    store.commit_many([Change(key(f"s{number:02}"), None, session(1, ttl_s=10)) for number in range(25)])
    good = {key(f"s{number:02}"): stored_bytes(store, key(f"s{number:02}")) for number in range(25)}
    for name, data in good.items():
        set_bytes(store, name, spoilt(data))
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


def test_a_record_of_another_version_is_never_set_aside(uri: str) -> None:
    """It is not damaged: the version that wrote it goes on with it."""
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


def test_tombstones_of_the_format_before_are_understood(uri: str) -> None:
    """They were records without sections, under the session's key: they say when and why, and their ids are free."""
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


def beside(store: Store) -> Store:
    """The same store as another process has it: with a memory of its own. LMDB opens a file once a process."""
    other = copy(store)
    vars(other)["_cache"] = RecordCache()
    return other


def damage(store: Store, where: bytes) -> None:
    """Flips the last bit of the stored bytes."""
    set_bytes(store, where, flipped(stored_bytes(store, where)))


def stored_bytes(store: Store, where: bytes) -> bytes:
    """What lies under the store."""
    if isinstance(store, RedisStore):
        data: bytes | None = store._server.get(b"onward:session:{" + where + b"}")
    else:
        with vars(store)["_env"].begin(db=vars(store)["_sessions"]) as txn:
            data = txn.get(where)
    assert data is not None
    return data


def set_bytes(store: Store, where: bytes, data: bytes) -> None:
    """Changes what lies under the store, as a process finds it that did not write it."""
    vars(store)["_cache"].remove(where)
    if isinstance(store, RedisStore):
        store._server.set(b"onward:session:{" + where + b"}", data)
        return
    with vars(store)["_env"].begin(db=vars(store)["_sessions"], write=True) as txn:
        txn.put(where, data)
