"""What is LMDB's own: growth, permissions, the sweep lock."""

import fcntl
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest

from onward.service.errors import StoreFullError, StoreUnavailableError
from onward.service.store import record as records
from onward.service.store.contract import Change
from onward.service.store.lmdb import LmdbStore
from onward.service.store.record import Record
from tests.contracts.test_stores import NOW, key, session
from tests.helpers.reference_loop import ROOT

BIG = bytes(4000)
OPEN = (
    "import pathlib, sys; from onward.service.store.lmdb import LmdbStore; LmdbStore(pathlib.Path(sys.argv[1])).close()"
)


def big(revision: int) -> Record:
    return session(revision)._replace(state=BIG)


def test_the_map_grows_without_a_restart(tmp_path: Path) -> None:
    """A store that fills its map doubles it and goes on."""
    store = LmdbStore(tmp_path)
    for number in range(500):
        assert store.commit_many([Change(key(f"s{number:03}"), None, big(1))]) == [True]
    assert len(store.page(b"t/", b"t/", 1000, now=NOW).sessions) == 500
    store.close()


def fill(folder: Path) -> None:
    other = LmdbStore(folder)
    for number in range(500):
        other.commit_many([Change(key(f"s{number:03}"), None, big(1))])
    other.close()


def test_a_map_grown_by_another_process_is_followed(tmp_path: Path) -> None:
    """What another process wrote beyond this one's map is read, and written after."""
    store = LmdbStore(tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=fill, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    process.close()
    assert store.load_many([key("s499")]) == [big(1)]
    assert store.commit_many([Change(key("s499"), 1, big(2))]) == [True]
    store.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The message says which folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match="file/store"):
        LmdbStore(tmp_path / "file" / "store")


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    """Sessions are private: no other user may read the files."""
    store = LmdbStore(tmp_path / "store")
    store.close()
    for path in (tmp_path / "store", *(tmp_path / "store").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_one_sweeps_at_a_time(tmp_path: Path) -> None:
    """While another holds the sweep lock, a sweep does nothing; then it does its work."""
    store = LmdbStore(tmp_path)
    store.commit_many([Change(key("a"), None, session(ttl_s=1))])
    held = os.open(tmp_path / "sweep.lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert store.sweep(NOW + 9) == 0
    os.close(held)
    assert store.sweep(NOW + 9) == 1
    store.close()


def test_another_container_is_refused(tmp_path: Path) -> None:
    """While one process namespace has the store open, another may not: LMDB would confuse their processes."""
    store = LmdbStore(tmp_path)
    elsewhere = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
        sys.executable,
        "-c",
        OPEN,
        str(tmp_path),
    ]
    refused = subprocess.run(elsewhere, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "another container has it open" in refused.stderr
    store.close()
    subprocess.run(elsewhere, check=True, cwd=ROOT)
    LmdbStore(tmp_path).close()


def entries(store: LmdbStore, table: str) -> list[tuple[bytes, bytes]]:
    with vars(store)["_env"].begin() as txn:
        return list(txn.cursor(db=vars(store)[f"_{table}"]))


def pages(store: LmdbStore, *tables: str) -> int:
    """How many pages these tables have."""
    with vars(store)["_env"].begin() as txn:
        stats = [txn.stat(vars(store)[f"_{table}"]) for table in tables]
    return sum(stat[f"{kind}_pages"] for stat in stats for kind in ("branch", "leaf", "overflow"))


def churn(store: LmdbStore, keys: list[bytes], at: float) -> None:
    """Creates sessions of 1 KiB and deletes them, in two orders that have nothing to do with each other."""
    for start in range(0, len(keys), 100):
        born = session()._replace(state=bytes(1024), expires_at=at + 3600 + start / 1000)
        assert all(store.commit_many([Change(name, None, born) for name in keys[start : start + 100]]))
    shuffled = random.Random(5).sample(keys, len(keys))
    for start in range(0, len(keys), 100):
        ended = session().tombstone("deleted", at + start / 1000)
        assert all(store.commit_many([Change(name, 1, ended) for name in shuffled[start : start + 100]]))


def test_a_deleted_session_keeps_100_bytes_beside_its_key(tmp_path: Path) -> None:
    """In all tables together, pages that are not full included, and whatever its record had; the key is in it."""
    store = LmdbStore(tmp_path)
    keys = [key(f"{random.Random(number).getrandbits(128):032x}") for number in range(5000)]
    churn(store, keys, NOW)
    assert pages(store, "sessions", "expiry", "index") == 0
    assert pages(store, "ended", "forgetting") * 4096 / len(keys) <= 100 + len(keys[0])
    store.close()


def test_the_space_of_deleted_sessions_is_used_again(tmp_path: Path) -> None:
    """Day after day as many are created and deleted: the file has room for them and for tombstones, and stays so."""
    store = LmdbStore(tmp_path)
    keys = [[key(f"{random.Random(number).getrandbits(128):032x}") for number in range(n, n + 3000)] for n in (0, 3000)]
    sizes = []
    for day in range(6):
        churn(store, keys[day % 2], NOW + day * records.TOMBSTONE_S)
        sizes.append(vars(store)["_env"].info()["last_pgno"] * 4096)
        while store.sweep(NOW + (day + 0.5) * records.TOMBSTONE_S, limit=1000):
            pass
    assert sizes[-1] <= 1.15 * sizes[0]
    assert sizes[-1] <= 1.01 * sizes[2]
    store.close()


def test_an_id_has_one_entry_however_often_it_is_created(tmp_path: Path) -> None:
    """Each session with another ttl: when it ends, what would have been its time goes with it."""
    store = LmdbStore(tmp_path)
    revision = None
    for number in range(20):
        born = session(1, ttl_s=10.0 + number * 1000)
        ended = born.tombstone("deleted", NOW + number)
        assert store.commit_many([Change(key("a"), revision, born)]) == [True]
        assert [len(entries(store, table)) for table in ("expiry", "index", "ended", "forgetting")] == [1, 1, 0, 0]
        assert store.commit_many([Change(key("a"), 1, ended)]) == [True]
        assert [len(entries(store, table)) for table in ("expiry", "index", "ended", "forgetting")] == [0, 0, 1, 1]
        revision = ended.revision
    store.sweep(NOW + 20 + records.TOMBSTONE_S)
    assert [len(entries(store, table)) for table in ("ended", "forgetting")] == [0, 0]
    store.close()


def test_a_session_that_a_version_without_an_index_created(tmp_path: Path) -> None:
    """It is listed, counted, swept and ended as others are; entries that its id's earlier sessions left are dropped."""
    store = LmdbStore(tmp_path)
    store.commit_many([Change(key(name), None, session(ttl_s=60)) for name in "abc"])
    with vars(store)["_env"].begin(write=True) as txn:
        txn.drop(vars(store)["_index"], delete=False)
        for earlier in range(1, 9):
            txn.put(int(1000 * (NOW + earlier)).to_bytes(8, "big") + key("a"), b"", db=vars(store)["_expiry"])
    assert store.count() == {("m", 1): 3}
    store.commit_many([Change(key("c"), 1, session().tombstone("deleted", NOW))])
    assert store.count() == {("m", 1): 2}
    for number in range(1, 9):  # it is stepped between sweeps, so its entries would be moved to as many times
        stepped = session(number + 1, step=number)._replace(expires_at=NOW + 60 + number / 10)
        assert store.commit_many([Change(key("a"), number, stepped, advances=True)]) == [True]
        store.sweep(NOW + number)
    assert [name for name, _ in entries(store, "index")] == [key("a")]
    assert len(entries(store, "expiry")) == 4  # its own, its first one, the other session's, and the deleted one's
    store.sweep(NOW + 61)
    assert entries(store, "expiry") == entries(store, "index") == []
    assert store.count() == {("m", 1): 0}
    store.close()


class Disk:
    """Stands before the environment and counts flushes; the first one fails, as on a full disk."""

    def __init__(self, environment: Any) -> None:
        self._environment, self.flushes = environment, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def sync(self, force: bool) -> None:
        self.flushes += 1
        if self.flushes == 1:
            raise lmdb.DiskError("No space left on device")
        self._environment.sync(force)


def test_a_flush_that_failed_is_tried_again(tmp_path: Path) -> None:
    """A fresh process flushes what a killed one may have left; a failure is told and not forgotten; rest is rest."""
    store = LmdbStore(tmp_path)
    disk = Disk(vars(store)["_env"])
    vars(store)["_env"] = disk
    with pytest.raises(StoreFullError, match="No space left"):
        store.flush()
    store.flush()
    store.flush()
    assert disk.flushes == 2
    store.commit_many([Change(key("a"), None, session())])
    store.flush()
    assert disk.flushes == 3
    store.close()


READ = """
import sys, lmdb
txn = lmdb.open(sys.argv[1], max_dbs=4, max_readers=1024).begin()
print("reading", flush=True)
sys.stdin.read()
"""


def test_the_reader_of_a_killed_process_is_cleared(tmp_path: Path) -> None:
    """By the next sweep: else the pages that it reads would never be used again, and the file would grow."""
    store = LmdbStore(tmp_path)
    store.commit_many([Change(key("a"), None, session())])
    with subprocess.Popen(
        [sys.executable, "-c", READ, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"reading\n"
        assert str(child.pid) in vars(store)["_env"].readers()
        child.kill()
    store.sweep(NOW)
    assert str(child.pid) not in vars(store)["_env"].readers()
    store.close()
