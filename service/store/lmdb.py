"""The LMDB store: sessions in one memory-mapped file, shared by all worker processes of a machine.

A commit writes to the file's pages, so that it survives killed processes. The pages reach the disk at the next `flush`,
or at once with `fsync`: a crash of the operating system may lose the commits since the last flush.

Tables of living sessions: `sessions` and `damaged` (key -> record), `expiry` (time, key -> nothing), `index` (key ->
the time of its entry in `expiry`, model/version) and `counts` (model/version -> number). A step writes to `sessions`
only: the sweep finds a session at the time at which it was due first, and moves its entry if the session is alive. So a
session costs one move of an entry per ttl, not one per step. `index` locates a session's entry in `expiry` and its
count, even if its record cannot be read.

Tables of ended sessions: `ended` (digest of the key -> tombstone) and `forgetting` (second -> digests, sorted
duplicates of a fixed size, which LMDB stores without an overhead per entry). Tombstones have small entries of their own
so that the pages of `sessions` are reused: in a record's entry, a tombstone would leave most of a page empty. Versions
of Onward before record format 5 wrote tombstones to `sessions`, and nothing to `index`.
"""

import fcntl
import logging
import math
import mmap
import os
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from hashlib import blake2b
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from onward.service.errors import DamagedRecordError, StoreFullError, StoreUnavailableError, UnreadableRecordError
from onward.service.store import lmdb_file
from onward.service.store import record as records
from onward.service.store.contract import Change, Loaded, Page
from onward.service.store.record import REVISION, Record, Tombstone
from onward.service.store.record_cache import RecordCache
from onward.service.store.sweeping import SweepPass
from onward.service.store.write_lock import WriteLock

OPENING_S = 60.0
"""The seconds for which opening waits for a running write: more than gunicorn's timeout of a worker."""
PAGES_BESIDE = 16
"""LMDB's own pages, which no table counts: its meta pages, and a part of its list of free pages."""
SCANNED_PER_PAGE = 10_000

_NO_ROOM, _ROOM_OF_STEPS, _ROOM_OF_CREATION = 0.0, 0.5, 1.0
_PAGE_KINDS = ("branch_pages", "leaf_pages", "overflow_pages")
_TIME = struct.Struct(">Q")  # milliseconds, or seconds in `forgetting`; big-endian, so that keys sort by time
_COUNT = struct.Struct("<q")

T = TypeVar("T")

log = logging.getLogger(__name__)


class LmdbStore:
    """An implementation of `Store`. Open one per process, after the fork, and close it."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        """Opens the store, and creates the folder if it does not exist. fsync: a commit returns once it is on disk.

        Raises StoreUnavailableError, also if the file is damaged or cut short.
        """
        self._folder = folder
        with ExitStack() as resources:
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                _lock_namespace(self._open_file(resources, "place.lock"))
                self._sweep_lock = self._open_file(resources, "sweep.lock")
                self._write_lock = WriteLock(self._open_file(resources, "write.lock"))
                self._write_lock.wait(OPENING_S)
                with self._write_lock:
                    self._open(resources, fsync=fsync)
            except (OSError, lmdb.Error) as error:
                raise StoreUnavailableError(f"{folder}: {error}") from error
            self._closing = resources.pop_all()
        self._cache = RecordCache()
        self._pass: SweepPass[bytes] = SweepPass()
        self._dirty = True  # a killed process may have left commits that are not flushed

    def _open_file(self, resources: ExitStack, name: str) -> int:
        file = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        resources.callback(os.close, file)
        return file

    def _open(self, resources: ExitStack, *, fsync: bool) -> None:
        if not (self._folder / lmdb_file.DATA).exists():
            lmdb_file.create(self._folder)
        lmdb_file.validate(self._folder)
        self._file = self._open_file(resources, lmdb_file.DATA)
        self._env: Any = lmdb.open(
            str(self._folder), map_size=1, max_dbs=7, max_readers=1024, sync=fsync, metasync=fsync, mode=0o600
        )  # LMDB maps the used part, until `_fit` maps the file's length
        resources.callback(self._env.close)
        self._env.reader_check()
        self._full = False
        """True if the file could not grow: then all of it is mapped, and `_require_room` guards the reserve."""
        self._grow()
        self._sessions = self._env.open_db(b"sessions")
        self._expiry = self._env.open_db(b"expiry")
        self._counts = self._env.open_db(b"counts")
        self._damaged = self._env.open_db(b"damaged")
        self._index = self._env.open_db(b"index")
        self._ended = self._env.open_db(b"ended")
        self._forgetting = self._env.open_db(b"forgetting", dupsort=True, dupfixed=True)

    def load_many(self, keys: Sequence[bytes], *, fresh: bool = True) -> list[Loaded]:
        return self._cache.load(
            keys, lambda missing: self._read(lambda txn: [self._get(txn, key) for key in missing]), fresh=fresh
        )

    def commit_many(self, changes: Sequence[Change]) -> list[bool]:
        def commit(txn: Any) -> list[bool]:
            committed, cursor = [], txn.cursor()
            for change in changes:
                key, expected, record, advances = change
                if not advances:
                    committed.append(self._commit(txn, change))
                    continue
                is_unchanged = cursor.set_key(key) and int.from_bytes(cursor.value()[REVISION], "little") == expected
                if is_unchanged:
                    cursor.put(key, record.data)  # type: ignore[union-attr]  # a session advances to a record
                committed.append(is_unchanged)
            return committed

        try:
            committed = self._write(commit, changes)
        except StoreFullError:
            if _room(changes) > _NO_ROOM or len(changes) == 1:
                raise
            half = len(changes) // 2  # the second half may use the room that the first one frees
            return self.commit_many(changes[:half]) + self.commit_many(changes[half:])
        self._cache.update(changes, committed)
        return committed

    def _get(self, txn: Any, key: bytes) -> bytes | None:
        """Returns the bytes of the session's record or tombstone."""
        stored: bytes | None = txn.get(key)
        return txn.get(_digest(key), db=self._ended) if stored is None else stored

    def _commit(self, txn: Any, change: Change) -> bool:
        """Applies a change that may move the session's entries in the indexes; returns whether it was applied."""
        stored = self._get(txn, change.key)
        if (None if stored is None else records.revision_of(stored)) != change.expected:
            return False
        self._replace(txn, change.key, records.decode(stored), change.record)
        return True

    def _replace(self, txn: Any, key: bytes, before: Loaded, after: Record | Tombstone) -> None:
        self._remove_entries(txn, key, before)
        if isinstance(after, Record):
            txn.put(key, after.data)
            self._set_due(txn, key, after)
            self._add_to_count(txn, _group(after), 1)
            return
        txn.delete(key)
        self._remove_tombstone(txn, key)  # an earlier session's, if a version without `ended` created this one
        txn.put(_digest(key), after.to_bytes(), db=self._ended)
        txn.put(_second(after.forgotten_at), _digest(key), db=self._forgetting)

    def _remove_tombstone(self, txn: Any, key: bytes) -> None:
        digest = _digest(key)
        tombstone = records.decode(txn.get(digest, db=self._ended))
        if isinstance(tombstone, Tombstone):
            txn.delete(digest, db=self._ended)
            txn.delete(_second(tombstone.forgotten_at), digest, db=self._forgetting)

    def _remove_entries(self, txn: Any, key: bytes, found: Loaded) -> None:
        """Removes a session's entries from the other tables before it is replaced or removed."""
        if found is None:
            return
        row = txn.get(key, db=self._index)
        if row is not None:
            txn.delete(key, db=self._index)
            txn.delete(row[: _TIME.size] + key, db=self._expiry)
        if isinstance(found, Tombstone):
            self._remove_tombstone(txn, key)
        elif isinstance(found, Record):
            self._add_to_count(txn, _group(found), -1)
        elif row is not None:
            self._add_to_count(txn, row[_TIME.size :], -1)

    def _set_due(self, txn: Any, key: bytes, record: Record) -> None:
        due = _time(record.expires_at)
        txn.put(due + key, b"", db=self._expiry)
        txn.put(key, due + _group(record), db=self._index)

    def _add_to_count(self, txn: Any, group: bytes, number: int) -> None:
        count = txn.get(group, db=self._counts)
        txn.put(group, _COUNT.pack((_COUNT.unpack(count)[0] if count else 0) + number), db=self._counts)

    def page(self, prefix: bytes, after: bytes, limit: int, *, now: float, model: str | None = None) -> Page:
        def scan(txn: Any) -> Page:
            found: list[tuple[bytes, Record]] = []
            cursor = txn.cursor(db=self._sessions)
            more, scanned, last = cursor.set_range(max(prefix, after + b"\0")), 0, after
            while more and (key := cursor.key()).startswith(prefix):
                if len(found) == limit or scanned == SCANNED_PER_PAGE:
                    return Page(found, last)
                record = records.decode(cursor.value())
                if isinstance(record, Record) and record.alive(now) and model in (None, record.ref.model):
                    found.append((key, record))
                last, scanned, more = key, scanned + 1, cursor.next()
            return Page(found, None)

        return self._read(scan)

    def count(self) -> dict[tuple[str, int], int]:
        def counts(txn: Any) -> dict[tuple[str, int], int]:
            groups = {}
            for group, number in txn.cursor(db=self._counts):
                name, _, version = group.decode().rpartition("/")
                groups[name, int(version)] = _COUNT.unpack(number)[0]
            return groups

        return self._read(counts)

    def sweep(self, now: float, limit: int = 1000) -> int:
        try:
            fcntl.flock(self._sweep_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
        try:
            self._guarded(self._env.reader_check)  # a killed process's reader would block the reuse of pages
            return self._sweep_what_fits(now, limit)
        finally:
            fcntl.flock(self._sweep_lock, fcntl.LOCK_UN)

    def _sweep_what_fits(self, now: float, limit: int) -> int:
        try:
            return self._sweep(now, limit)
        except StoreFullError:
            if limit == 1:
                raise
            return self._sweep_what_fits(now, limit // 2)

    def _sweep(self, now: float, limit: int) -> int:
        position = self._pass.begin(now)
        due, forgotten = self._read(lambda txn: self._due_before(txn, now, limit, position))
        if due or forgotten:
            skipped = self._write(lambda txn: self._end(txn, due, forgotten, now))
            position = skipped[-1] if skipped else position
        looked_at = len(due) + len(forgotten)
        self._pass.end(position, is_over=looked_at < limit)
        return looked_at

    def _due_before(
        self, txn: Any, now: float, limit: int, after: bytes | None
    ) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
        """Returns at most `limit` due entries: of `expiry` behind `after` first, then of `forgetting`."""
        cursor = txn.cursor(db=self._expiry)
        found = cursor.first() if after is None else cursor.set_range(after + b"\0")
        entries = cursor.iternext(keys=True, values=False) if found else ()
        due = list(islice(takewhile(lambda entry: _TIME.unpack_from(entry)[0] <= now * 1000, entries), limit))
        entries = txn.cursor(db=self._forgetting).iternext()
        forgotten = takewhile(lambda entry: _TIME.unpack(entry[0])[0] <= now, entries)
        return due, list(islice(forgotten, limit - len(due)))

    def _end(self, txn: Any, due: Sequence[bytes], forgotten: Sequence[tuple[bytes, bytes]], now: float) -> list[bytes]:
        """Ends due sessions and deletes tombstones that are over; returns the entries of `expiry` that it skipped."""
        for second, digest in forgotten:
            txn.delete(second, digest, db=self._forgetting)
            txn.delete(digest, db=self._ended)
        return [entry for entry in due if not self._expire(txn, entry, now)]

    def _expire(self, txn: Any, entry: bytes, now: float) -> bool:
        """Removes or moves an entry of `expiry`; returns False if its record cannot be read, so that it must stay."""
        key = entry[_TIME.size :]
        found = records.decode(txn.get(key))
        if isinstance(found, UnreadableRecordError):
            return False
        txn.delete(entry, db=self._expiry)
        if isinstance(found, Record):
            if not found.alive(now):
                ended = found.tombstone("expired", found.expires_at)
                self._replace(txn, key, found, ended)
            elif not self._has_other_entry(txn, entry, found):
                self._set_due(txn, key, found)
        elif isinstance(found, Tombstone):  # written by a version before `ended`
            if found.forgotten_at > now:
                txn.put(_time(found.forgotten_at) + key, b"", db=self._expiry)
            else:
                txn.delete(key)
        return True

    def _has_other_entry(self, txn: Any, entry: bytes, record: Record) -> bool:
        """True if an earlier session of the same id left `entry`: versions without `index` did not remove it."""
        key = entry[_TIME.size :]
        row = txn.get(key, db=self._index)
        if row is None or row[: _TIME.size] == entry[: _TIME.size]:
            return False
        entered_due = row[: _TIME.size]
        return entered_due <= _time(record.expires_at) and txn.get(entered_due + key, db=self._expiry) is not None

    def quarantine(self, key: bytes) -> None:
        def move(txn: Any) -> None:
            stored = txn.get(key)
            found = records.decode(stored)
            if isinstance(found, DamagedRecordError):
                txn.put(key, stored, db=self._damaged)
                txn.delete(key)
                self._remove_entries(txn, key, found)

        self._cache.remove(key)
        self._write(move)

    def flush(self) -> None:
        if self._dirty:
            self._dirty = False  # before the flush, as commits continue while it runs
            try:
                self._guarded(lambda: self._env.sync(True))
            except BaseException:
                self._dirty = True
                raise

    def close(self) -> None:
        self.flush()
        self._closing.close()

    def _read(self, work: Callable[[Any], T]) -> T:
        while True:
            try:
                with self._env.begin(db=self._sessions) as txn:
                    return work(txn)
            except lmdb.Error as error:
                self._recover(error)

    def _write(self, work: Callable[[Any], T], changes: Sequence[Change] = ()) -> T:
        """Runs `work` in a write transaction. changes: those that need room in a full file."""
        self._dirty = True
        with self._write_lock:
            while True:
                try:
                    if self._full:
                        self._require_room(_room(changes))
                    with self._env.begin(db=self._sessions, write=True) as txn:
                        return work(txn)
                except lmdb.MapFullError as error:
                    was_full = self._full
                    if not self._grow() and was_full:
                        raise StoreFullError(_full(self._size())) from error
                except lmdb.Error as error:
                    self._recover(error)

    def _guarded(self, work: Callable[[], T]) -> T:
        while True:
            try:
                return work()
            except lmdb.Error as error:
                self._recover(error)

    def _recover(self, error: lmdb.Error) -> None:
        """Returns if what has failed can be run again, since it is atomic: another process has extended the file.

        Raises the store's error otherwise.
        """
        if isinstance(error, lmdb.MapResizedError):
            self._fit()
        elif isinstance(error, lmdb.DiskError) or self._is_disk_full():
            raise StoreFullError(str(error)) from error
        else:
            raise StoreUnavailableError(str(error)) from error

    def _is_disk_full(self) -> bool:
        disk = os.statvfs(self._folder)
        page: int = self._env.stat()["psize"]
        return disk.f_bavail * disk.f_frsize < page

    def _require_room(self, room: float) -> None:
        """Raises StoreFullError if less than this share of the reserve remains, and the file cannot grow."""
        size = self._size()
        if self._free_bytes(size) < room * lmdb_file.reserve_bytes(size) and not self._grow():
            raise StoreFullError(_full(size))

    def _free_bytes(self, size: int) -> int:
        """Returns the bytes of the file that no table uses, which can be written to even on a full disk."""
        own_tables = (
            self._sessions, self._expiry, self._counts, self._damaged, self._index, self._ended, self._forgetting,
        )  # fmt: skip
        tables, main = self._read(lambda txn: [txn.stat(table) for table in own_tables]), self._env.stat()
        pages = sum(table[kind] for table in (main, *tables) for kind in _PAGE_KINDS)
        free: int = size - (pages + PAGES_BESIDE) * main["psize"]
        return free

    def _grow(self) -> bool:
        """Extends the file, or maps what another process has added; returns True if there is more room now.

        The caller has the write lock.
        """
        size = self._size()
        if self._full or size - lmdb_file.reserve_bytes(size) <= self._env.info()["map_size"]:
            self._full = not any(self._extend(size, more) for more in (size // 4, lmdb_file.LEAST_RESERVE))
            if self._full:
                self._fit()
                return False
        self._fit()
        return True

    def _extend(self, size: int, more: int) -> bool:
        size = max(size + more, lmdb_file.FIRST_BYTES)
        try:
            mmap.mmap(-1, size).close()  # if mapping failed in LMDB, it would be left without a map
            lmdb_file.extend(self._file, size)
        except OSError as error:
            log.debug("the file cannot have %d bytes: %s", size, error)
            return False
        return True

    def _fit(self) -> None:
        """Maps the file with or without the reserve. LMDB maps at least the used part."""
        info, size = self._env.info(), self._size()
        usable = size - lmdb_file.reserve_bytes(size)
        self._full = self._full or usable < (info["last_pgno"] + 1) * self._env.stat()["psize"]
        map_size = size if self._full else usable
        if map_size != info["map_size"]:
            self._env.set_mapsize(map_size)

    def _size(self) -> int:
        return os.fstat(self._file).st_size // lmdb_file.UNIT * lmdb_file.UNIT


def _room(changes: Sequence[Change]) -> float:
    """Returns the share of the reserve that the changes must leave: ends none, a step half, a creation all."""
    rooms = [
        _NO_ROOM if isinstance(change.record, Tombstone) else _ROOM_OF_STEPS if change.advances else _ROOM_OF_CREATION
        for change in changes
    ]
    return max(rooms, default=_NO_ROOM)


def _full(size: int) -> str:
    return f"its file of {size} bytes cannot grow, and its remaining room is reserved for deletion and expiry"


def _lock_namespace(lock: int) -> None:
    """Raises OSError if a process of another PID namespace has the store open; `lock` is the open lock file.

    LMDB identifies its readers by process ids. Two containers number their processes alike, so that each would take the
    other's readers for dead. The file contains the namespace that shares the lock.
    """
    namespace = Path("/proc/self/ns/pid").readlink().name if sys.platform == "linux" else "here"
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no other process has it open
        if os.pread(lock, 100, 0) != namespace.encode():  # write only if necessary: the disk may be full
            os.pwrite(lock, namespace.encode(), 0)
            os.ftruncate(lock, len(namespace))
    fcntl.flock(lock, fcntl.LOCK_SH)
    if (owner := os.pread(lock, 100, 0).decode()) != namespace:
        raise OSError(
            f"another container has it open ({owner}, this is {namespace}); give each container a store of its own"
        )


def _time(seconds: float) -> bytes:
    return _TIME.pack(max(0, int(seconds * 1000)))


def _second(seconds: float) -> bytes:
    """Returns the key in `forgetting` of the first full second after the time."""
    return _TIME.pack(max(0, math.ceil(seconds)))


def _group(record: Record) -> bytes:
    return f"{record.ref.model}/{record.ref.version}".encode()


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()
