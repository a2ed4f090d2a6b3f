"""A data file that LMDB must not map is refused, and one on a full disk can be emptied."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import lmdb
import pytest

from onward.service.errors import StoreFullError, StoreUnavailableError
from onward.service.store import record as records
from onward.service.store.contract import Change
from onward.service.store.lmdb import LmdbStore
from onward.service.store.record import Record
from tests.contracts.test_stores import NOW, key, session
from tests.e2e.faults.campaign import small_disk
from tests.helpers.reference_loop import ROOT

SESSIONS = 300
PAGE = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a closed store that contains sessions."""
    store = LmdbStore(tmp_path / "store")
    for number in range(SESSIONS):
        store.commit_many([Change(key(f"s{number:03}"), None, session(1))])
    store.close()
    return tmp_path / "store"


def used_bytes(folder: Path) -> int:
    environment = lmdb.open(str(folder), max_dbs=4, readonly=True)
    last: int = environment.info()["last_pgno"]
    environment.close()
    return (last + 1) * PAGE


def test_a_truncated_file_is_refused_wherever_it_is_cut(folder: Path) -> None:
    """Cuts at every page boundary and beside it are refused; a cut behind the last page in use loses no session."""
    path, used = folder / "data.mdb", used_bytes(folder)
    whole = path.read_bytes()
    assert len(whole) > used > 10 * PAGE
    for size in {boundary + shift for boundary in range(0, used + 1, PAGE) for shift in (-1, 0, 1)}:
        if not 0 <= size < used:
            continue
        path.write_bytes(whole[:size])
        with pytest.raises(StoreUnavailableError, match=rf"{folder}: data.mdb is cut short.* {size} bytes.*backup"):
            LmdbStore(folder)
        assert path.stat().st_size == size
    for size in (used, used + 1, len(whole)):
        path.write_bytes(whole[:size])
        store = LmdbStore(folder)
        assert path.stat().st_size >= len(whole)
        assert store.load_many([key(f"s{number:03}") for number in range(SESSIONS)]) == [session(1)] * SESSIONS
        store.close()


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def overwriting(offset: int, data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return write


def replace_with_lmdb_1(path: Path) -> None:
    path.unlink()
    lmdb.open(str(path), subdir=False, lib_version=1).close()


def replace_with_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def claim_too_many_pages(path: Path) -> None:
    for meta in range(2):
        overwriting(meta * PAGE + 136, struct.pack("=Q", 2**40))(path)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "zeros": (fill_with_zeros, "no data file of LMDB's"),
    "garbage in the first meta page": (overwriting(0, b"garbage!" * 19), "no data file of LMDB's"),
    "garbage in the second meta page": (overwriting(PAGE, b"garbage!" * 19), "no data file of LMDB's"),
    "a page size of zero": (overwriting(40, bytes(4)), "no data file of LMDB's"),
    "two page sizes": (overwriting(40, struct.pack("=I", 2 * PAGE)), "no data file of LMDB's"),
    "another version": (overwriting(20, struct.pack("=I", 7)), "LMDB's format 7"),
    "LMDB 1.0": (replace_with_lmdb_1, "LMDB 1.0"),
    "a folder": (replace_with_folder, "Is a directory"),
    "too many pages": (claim_too_many_pages, "cut short"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_lmdb_cannot_read_is_refused(folder: Path, damage: str) -> None:
    """The error names the folder and the damage, and the process does not crash."""
    inflict, reason = DAMAGE[damage]
    inflict(folder / "data.mdb")
    with pytest.raises(StoreUnavailableError, match=rf"{folder}.*{reason}"):
        LmdbStore(folder)


def test_a_damaged_lock_file_is_recreated(folder: Path) -> None:
    """No process has the store open, so no session is lost."""
    (folder / "lock.mdb").write_bytes(b"garbage!" * 1000)
    store = LmdbStore(folder)
    assert store.load_many([key("s000")]) == [session(1)]
    store.close()


def test_a_first_start_without_room_leaves_nothing_behind(tmp_path: Path) -> None:
    """The next start, with enough room, creates the store."""
    with small_disk(tmp_path / "disk", 2**20):
        folder = tmp_path / "disk" / "store"
        ballast = tmp_path / "disk" / "ballast"
        fill(ballast)
        with pytest.raises(StoreUnavailableError, match="No space left"):
            LmdbStore(folder)
        ballast.unlink()
        LmdbStore(folder).close()


def fill(ballast: Path) -> None:
    """Fills the disk to its last byte with one file."""
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass


class FullStore:
    """A store whose disk or file size limit leaves no room, with the operations that the tests apply to it."""

    def __init__(self, store: LmdbStore, state_bytes: int) -> None:
        self.store, self.state_bytes = store, state_bytes
        self.alive: dict[bytes, Record] = {}
        self._numbers = count()

    def create_until_full(self) -> int:
        created = 0
        while True:
            name = key(f"{hash(str(next(self._numbers))):x}")  # at a random position among the other keys
            record = session(records.new_revision(), ttl_s=10_000_000).replace(state=bytes(self.state_bytes))
            try:
                assert self.store.commit_many([Change(name, None, record)]) == [True]
            except StoreFullError:
                return created
            self.alive[name], created = record, created + 1

    def step(self, number: int) -> None:
        for name in list(self.alive)[:number]:
            before = self.alive[name]
            after = before.replace(revision=records.new_revision(), step=before.step + 1)
            assert self.store.commit_many([Change(name, before.revision, after, advances=True)]) == [True]
            self.alive[name] = after

    def delete(self, number: int, *, at_once: int = 1) -> None:
        names = sorted(self.alive)[:number]  # so that whole pages are freed
        for start in range(0, len(names), at_once):
            batch = names[start : start + at_once]
            changes = [
                Change(name, self.alive[name].revision, self.alive.pop(name).tombstone("deleted", NOW))
                for name in batch
            ]
            assert all(self.store.commit_many(changes))

    def expire(self) -> int:
        now, ended = NOW + 20_000_000, 0
        while swept := self.store.sweep(now):
            ended += swept
        self.alive.clear()
        return ended


@pytest.fixture(params=[500, 3000, 20_000])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FullStore]:
    """A store that has filled its disk with sessions; the parameter is the size of a state in bytes."""
    with small_disk(tmp_path / "disk", 24 * 2**20):
        store = LmdbStore(tmp_path / "disk" / "store")
        full = FullStore(store, request.param)
        assert full.create_until_full() > 100
        yield full
        store.close()


def test_a_full_disk_is_emptied(full: FullStore) -> None:
    """Sessions on a full disk can be stepped, deleted, replaced by new sessions, and expired."""
    full.step(50)
    full.delete(20)
    full.delete(1000, at_once=500)
    full.create_until_full()
    assert full.expire() > 0
    assert full.store.count() == {("m", 1): 0}
    assert full.create_until_full() > 100


def test_a_full_disk_stays_usable(full: FullStore) -> None:
    """Deletions always succeed when the disk is filled and partly emptied repeatedly, and freed space is used again."""
    deleted = created = 0
    batch = 1_000_000 // full.state_bytes
    for _ in range(20):
        full.delete(20)
        full.delete(batch, at_once=500)
        deleted += 20 + batch
        full.step(10)
        created += full.create_until_full()
    assert created > deleted / 2


def test_new_room_on_a_full_disk_is_used(tmp_path: Path) -> None:
    """The process that found the disk full uses new room without a restart, and so does a store opened afterwards."""
    with small_disk(tmp_path / "disk", 24 * 2**20):
        ballast = tmp_path / "disk" / "ballast"
        ballast.write_bytes(bytes(12 * 2**20))
        store = LmdbStore(tmp_path / "disk" / "store")
        full = FullStore(store, 3000)
        full.create_until_full()
        ballast.unlink()
        assert full.create_until_full() > 1000
        store.close()
        full.store = LmdbStore(tmp_path / "disk" / "store")
        full.step(10)
        full.delete(100)
        full.store.close()


LIMITED = """
import resource, sys
from pathlib import Path
from onward.service.store.lmdb import LmdbStore
from tests.service.store.test_lmdb_file import FullStore
store = LmdbStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 2**20, 8 * 2**20))
full = FullStore(store, 3000)
assert full.create_until_full() > 100
full.step(50)
full.delete(20)
full.delete(500, at_once=500)
full.create_until_full()
assert full.expire() > 0
assert full.create_until_full() > 100
store.close()
"""


def test_a_limit_on_the_size_of_files_behaves_like_a_full_disk(tmp_path: Path) -> None:
    """Commits beyond the limit are refused as on a full disk, and the store can be emptied."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})
