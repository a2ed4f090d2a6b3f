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
    """Of a closed store with sessions."""
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


def test_a_file_that_is_cut_short_is_refused_wherever_it_is_cut(folder: Path) -> None:
    """At each page's boundary and in between; what is cut off behind the last page in use is made anew."""
    path, used = folder / "data.mdb", used_bytes(folder)
    whole = path.read_bytes()
    assert len(whole) > used > 10 * PAGE
    for size in {place for boundary in range(0, used + 1, PAGE) for place in (boundary - 1, boundary, boundary + 1)}:
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


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def written(offset: int, data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return write


def newer(path: Path) -> None:
    path.unlink()
    lmdb.open(str(path), subdir=False, lib_version=1).close()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def too_many(path: Path) -> None:
    for meta in range(2):
        written(meta * PAGE + 136, struct.pack("=Q", 2**40))(path)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "zeros": (zeros, "no data file of LMDB's"),
    "garbage in the first meta page": (written(0, b"garbage!" * 19), "no data file of LMDB's"),
    "garbage in the second meta page": (written(PAGE, b"garbage!" * 19), "no data file of LMDB's"),
    "a page size of zero": (written(40, bytes(4)), "no data file of LMDB's"),
    "two page sizes": (written(40, struct.pack("=I", 2 * PAGE)), "no data file of LMDB's"),
    "another version": (written(20, struct.pack("=I", 7)), "LMDB's format 7"),
    "LMDB 1.0": (newer, "LMDB 1.0"),
    "a folder": (a_folder, "Is a directory"),
    "pages too many": (too_many, "cut short"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_lmdbs_is_refused(folder: Path, damage: str) -> None:
    """Whatever it is, it is named, and no process dies of it."""
    hurt, why = DAMAGE[damage]
    hurt(folder / "data.mdb")
    with pytest.raises(StoreUnavailableError, match=rf"{folder}.*{why}"):
        LmdbStore(folder)


def test_a_lock_file_of_garbage_is_made_anew(folder: Path) -> None:
    """Nobody has it open, so nothing is lost."""
    (folder / "lock.mdb").write_bytes(b"garbage!" * 1000)
    store = LmdbStore(folder)
    assert store.load_many([key("s000")]) == [session(1)]
    store.close()


def test_a_first_start_without_room_leaves_nothing_behind(tmp_path: Path) -> None:
    """The next start, with room, makes the store."""
    with small_disk(tmp_path / "disk", 2**20):
        folder = tmp_path / "disk" / "store"
        ballast = tmp_path / "disk" / "ballast"
        fill(ballast)
        with pytest.raises(StoreUnavailableError, match="No space left"):
            LmdbStore(folder)
        ballast.unlink()
        LmdbStore(folder).close()


def fill(ballast: Path) -> None:
    """The disk, to its last byte."""
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass


class Full:
    """A store whose disk or limit has no room, and what may be done to it."""

    def __init__(self, store: LmdbStore, state_bytes: int) -> None:
        self.store, self.state_bytes = store, state_bytes
        self.alive: dict[bytes, Record] = {}
        self._numbers = count()

    def create_until_full(self) -> int:
        created = 0
        while True:
            name = key(f"{hash(str(next(self._numbers))):x}")  # anywhere among the others
            record = session(records.new_revision(), ttl_s=10_000_000)._replace(state=bytes(self.state_bytes))
            try:
                assert self.store.commit_many([Change(name, None, record)]) == [True]
            except StoreFullError:
                return created
            self.alive[name], created = record, created + 1

    def step(self, many: int) -> None:
        for name in list(self.alive)[:many]:
            before = self.alive[name]
            after = before._replace(revision=records.new_revision(), step=before.step + 1)
            assert self.store.commit_many([Change(name, before.revision, after, advances=True)]) == [True]
            self.alive[name] = after

    def delete(self, many: int, *, at_once: int = 1) -> None:
        names = sorted(self.alive)[:many]  # so that whole pages are freed
        for start in range(0, len(names), at_once):
            part = names[start : start + at_once]
            changes = [
                Change(name, self.alive[name].revision, self.alive.pop(name).tombstone("deleted", NOW)) for name in part
            ]
            assert all(self.store.commit_many(changes))

    def expire(self) -> int:
        now, ended = NOW + 20_000_000, 0
        while done := self.store.sweep(now):
            ended += done
        self.alive.clear()
        return ended


@pytest.fixture(params=[500, 3000, 20_000])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Full]:
    """A store that has filled its disk with sessions of so many bytes."""
    with small_disk(tmp_path / "disk", 24 * 2**20):
        store = LmdbStore(tmp_path / "disk" / "store")
        full = Full(store, request.param)
        assert full.create_until_full() > 100
        yield full
        store.close()


def test_a_full_disk_is_emptied(full: Full) -> None:
    """Steps go on, one and many sessions are deleted, others created in their place, and all of them expire."""
    full.step(50)
    full.delete(20)
    full.delete(1000, at_once=500)
    full.create_until_full()
    assert full.expire() > 0
    assert full.store.count() == {("m", 1): 0}
    assert full.create_until_full() > 100


def test_a_full_disk_stays_usable(full: Full) -> None:
    """Filled and emptied in part again and again: deletion never comes to its end, and what it frees is used."""
    deleted = created = 0
    many = 1_000_000 // full.state_bytes
    for _ in range(20):
        full.delete(20)
        full.delete(many, at_once=500)
        deleted += 20 + many
        full.step(10)
        created += full.create_until_full()
    assert created > deleted / 2


def test_a_full_disk_that_gets_room_is_used(tmp_path: Path) -> None:
    """Without a restart, in the process that found it full and in one that opens it while it is."""
    with small_disk(tmp_path / "disk", 24 * 2**20):
        ballast = tmp_path / "disk" / "ballast"
        ballast.write_bytes(bytes(12 * 2**20))
        store = LmdbStore(tmp_path / "disk" / "store")
        full = Full(store, 3000)
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
from tests.service.store.test_lmdb_file import Full
store = LmdbStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 2**20, 8 * 2**20))
full = Full(store, 3000)
assert full.create_until_full() > 100
full.step(50)
full.delete(20)
full.delete(500, at_once=500)
full.create_until_full()
assert full.expire() > 0
assert full.create_until_full() > 100
store.close()
"""


def test_a_limit_on_the_size_of_files_is_as_a_full_disk(tmp_path: Path) -> None:
    """Refused as on a full disk, and emptied."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})
