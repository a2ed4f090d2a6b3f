"""Tests that only the LMDB store needs: growth of the map, permissions, the sweep lock, space, flushes."""

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

LARGE_STATE = bytes(4000)
OPEN = (
    "import pathlib, sys; from onward.service.store.lmdb import LmdbStore; LmdbStore(pathlib.Path(sys.argv[1])).close()"
)


def large_session(revision: int) -> Record:
    return session(revision).replace(state=LARGE_STATE)


def test_the_map_grows_without_a_restart(tmp_path: Path) -> None:
    """A store that has filled its map doubles the map and goes on."""
    store = LmdbStore(tmp_path)
    for number in range(500):
        assert store.commit_many([Change(key(f"s{number:03}"), None, large_session(1))]) == [True]
    assert len(store.page(b"t/", b"t/", 1000, now=NOW).sessions) == 500
    store.close()


def fill(folder: Path) -> None:
    store = LmdbStore(folder)
    for number in range(500):
        store.commit_many([Change(key(f"s{number:03}"), None, large_session(1))])
    store.close()


def test_a_map_grown_by_another_process_is_followed(tmp_path: Path) -> None:
    """A record that another process wrote beyond this process's map is read, and can be replaced."""
    store = LmdbStore(tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=fill, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    process.close()
    assert store.load_many([key("s499")]) == [large_session(1)]
    assert store.commit_many([Change(key("s499"), 1, large_session(2))]) == [True]
    store.close()


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    """The error message names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match="file/store"):
        LmdbStore(tmp_path / "file" / "store")


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    """Sessions are private: no other user may read the files."""
    store = LmdbStore(tmp_path / "store")
    store.close()
    for path in (tmp_path / "store", *(tmp_path / "store").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_one_process_sweeps_at_a_time(tmp_path: Path) -> None:
    """A sweep does nothing while another process holds the sweep lock, and ends sessions afterwards."""
    store = LmdbStore(tmp_path)
    store.commit_many([Change(key("a"), None, session(ttl_s=1))])
    lock = os.open(tmp_path / "sweep.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert store.sweep(NOW + 9) == 0
    os.close(lock)
    assert store.sweep(NOW + 9) == 1
    store.close()


def test_another_container_is_refused(tmp_path: Path) -> None:
    """Two process namespaces may not have the store open at once: LMDB would confuse their process ids."""
    store = LmdbStore(tmp_path)
    in_container = [
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
    refused = subprocess.run(in_container, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "another container has it open" in refused.stderr
    store.close()
    subprocess.run(in_container, check=True, cwd=ROOT)
    LmdbStore(tmp_path).close()


def entries(store: LmdbStore, table: str) -> list[tuple[bytes, bytes]]:
    with vars(store)["_env"].begin() as txn:
        return list(txn.cursor(db=vars(store)[f"_{table}"]))


def pages(store: LmdbStore, *tables: str) -> int:
    """Returns the number of pages of these tables."""
    with vars(store)["_env"].begin() as txn:
        stats = [txn.stat(vars(store)[f"_{table}"]) for table in tables]
    return sum(stat[f"{kind}_pages"] for stat in stats for kind in ("branch", "leaf", "overflow"))


def churn(store: LmdbStore, keys: list[bytes], at: float) -> None:
    """Creates sessions of 1 KiB and deletes them in an unrelated order."""
    for start in range(0, len(keys), 100):
        created = session().replace(state=bytes(1024), expires_at=at + 3600 + start / 1000)
        assert all(store.commit_many([Change(name, None, created) for name in keys[start : start + 100]]))
    shuffled = random.Random(5).sample(keys, len(keys))
    for start in range(0, len(keys), 100):
        ended = session().tombstone("deleted", at + start / 1000)
        assert all(store.commit_many([Change(name, 1, ended) for name in shuffled[start : start + 100]]))


def test_a_deleted_session_occupies_100_bytes_beside_its_key(tmp_path: Path) -> None:
    """The limit counts all tables and partly filled pages, whatever size the record had."""
    store = LmdbStore(tmp_path)
    keys = [key(f"{random.Random(number).getrandbits(128):032x}") for number in range(5000)]
    churn(store, keys, NOW)
    assert pages(store, "sessions", "expiry", "index") == 0
    assert pages(store, "ended", "forgetting") * 4096 / len(keys) <= 100 + len(keys[0])
    store.close()


def test_the_space_of_deleted_sessions_is_reused(tmp_path: Path) -> None:
    """The file stops growing if the same number of sessions is created and deleted every day."""
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
    """The entry for a session's expiry is removed when the session ends, whatever its ttl was."""
    store = LmdbStore(tmp_path)
    revision = None
    for number in range(20):
        created = session(1, ttl_s=10.0 + number * 1000)
        ended = created.tombstone("deleted", NOW + number)
        assert store.commit_many([Change(key("a"), revision, created)]) == [True]
        assert [len(entries(store, table)) for table in ("expiry", "index", "ended", "forgetting")] == [1, 1, 0, 0]
        assert store.commit_many([Change(key("a"), 1, ended)]) == [True]
        assert [len(entries(store, table)) for table in ("expiry", "index", "ended", "forgetting")] == [0, 0, 1, 1]
        revision = ended.revision
    store.sweep(NOW + 20 + records.TOMBSTONE_S)
    assert [len(entries(store, table)) for table in ("ended", "forgetting")] == [0, 0]
    store.close()


def test_a_session_from_a_version_without_an_index_is_indexed(tmp_path: Path) -> None:
    """The session is counted, swept and ended like any other; entries of earlier sessions of its id are dropped."""
    store = LmdbStore(tmp_path)
    store.commit_many([Change(key(name), None, session(ttl_s=60)) for name in "abc"])
    with vars(store)["_env"].begin(write=True) as txn:
        txn.drop(vars(store)["_index"], delete=False)
        for earlier in range(1, 9):
            txn.put(int(1000 * (NOW + earlier)).to_bytes(8, "big") + key("a"), b"", db=vars(store)["_expiry"])
    assert store.count() == {("m", 1): 3}
    store.commit_many([Change(key("c"), 1, session().tombstone("deleted", NOW))])
    assert store.count() == {("m", 1): 2}
    for number in range(1, 9):  # a step between two sweeps moves the expiry, so each sweep could add an entry
        stepped = session(number + 1, step=number).replace(expires_at=NOW + 60 + number / 10)
        assert store.commit_many([Change(key("a"), number, stepped, advances=True)]) == [True]
        store.sweep(NOW + number)
    assert [name for name, _ in entries(store, "index")] == [key("a")]
    assert len(entries(store, "expiry")) == 4  # of a: the latest and the first; of b; of the deleted c
    store.sweep(NOW + 61)
    assert entries(store, "expiry") == entries(store, "index") == []
    assert store.count() == {("m", 1): 0}
    store.close()


class FailingDisk:
    """A proxy of the environment that counts flushes; the first flush fails as on a full disk."""

    def __init__(self, environment: Any) -> None:
        self._environment, self.flushes = environment, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def sync(self, force: bool) -> None:
        self.flushes += 1
        if self.flushes == 1:
            raise lmdb.DiskError("No space left on device")
        self._environment.sync(force)


def test_a_failed_flush_is_retried(tmp_path: Path) -> None:
    """A fresh process flushes once for a killed one, repeats a flush that failed, and flushes only after commits."""
    store = LmdbStore(tmp_path)
    disk = FailingDisk(vars(store)["_env"])
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


def test_the_reader_slot_of_a_killed_process_is_cleared(tmp_path: Path) -> None:
    """The next sweep clears the slot; otherwise the pages of its snapshot would stay in use and the file would grow."""
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
