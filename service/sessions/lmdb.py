"""The LMDB store: sessions in one memory-mapped file, shared by all worker processes of a machine.

Committed means written to the file's pages: a killed process, or all of them killed, loses nothing. The pages reach the
disk at the next `flush`, or with `fsync` at once: a crash of the operating system may lose what came after it.

Tables: `sessions` and `damaged` (key -> record), `expiry` (time, key -> nothing), `counts` (model/version -> number).
A step does not touch `expiry`: the sweep finds a session at the time it was due at first, sees that it lives on, and
moves its entry. So a session costs one entry's move per ttl, not one per step.
"""

import fcntl
import os
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from service.errors import DamagedRecordError, StoreFullError, StoreUnavailableError
from service.sessions import record as records
from service.sessions.known import Known
from service.sessions.record import Record
from service.sessions.store import Change, Loaded, Page

FIRST_MAP_BYTES = 2**30
SCANNED_PER_PAGE = 10_000

_TIME = struct.Struct(">Q")  # milliseconds, so that keys sort by time
_COUNT = struct.Struct("<q")

T = TypeVar("T")


class LmdbStore:
    """Satisfies `Store`. Open one a process, after the fork, and close it."""

    def __init__(self, folder: Path, *, map_bytes: int = FIRST_MAP_BYTES, fsync: bool = False) -> None:
        """Makes the folder if need be. fsync: a commit returns once it is on disk. Raises StoreUnavailableError."""
        try:
            self._folder = folder
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._place = _claim(folder)
            self._sweep_lock = os.open(folder / "sweep.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._env: Any = lmdb.open(
                str(folder), map_size=map_bytes, max_dbs=4, max_readers=1024, sync=fsync, metasync=fsync, mode=0o600
            )
            self._env.reader_check()
            self._sessions = self._env.open_db(b"sessions")
            self._expiry = self._env.open_db(b"expiry")
            self._counts = self._env.open_db(b"counts")
            self._damaged = self._env.open_db(b"damaged")
        except (OSError, lmdb.Error) as error:
            raise StoreUnavailableError(f"{folder}: {error}") from error
        self._known = Known()
        self._dirty = True  # a process that was killed may have left commits that no one has flushed

    def load_many(self, keys: Sequence[bytes], *, fresh: bool = True) -> list[Loaded]:
        return self._known.filled(
            keys, lambda unknown: self._read(lambda txn: [txn.get(key) for key in unknown]), fresh=fresh
        )

    def commit_many(self, changes: Sequence[Change]) -> list[bool]:
        packed = [change.record.to_bytes() for change in changes]

        def commit(txn: Any) -> list[bool]:
            return [self._commit(txn, change, data) for change, data in zip(changes, packed, strict=True)]

        committed = self._write(commit)
        self._known.committed(changes, committed)
        return committed

    def _commit(self, txn: Any, change: Change, data: bytes) -> bool:
        stored = txn.get(change.key)
        if (None if stored is None else records.revision_of(stored)) != change.expected:
            return False
        if change.advances:
            txn.put(change.key, data)
        else:
            self._put(txn, change.key, stored, change.record, data)
        return True

    def _put(self, txn: Any, key: bytes, stored: bytes | None, record: Record, data: bytes) -> None:
        before, after = None if stored is None else records.counted_as(stored), records.counted_as(data)
        txn.put(key, data, db=self._sessions)
        txn.put(_due(record, key), b"", db=self._expiry)
        for group, by in ((before, -1), (after, 1)):
            if group is not None:
                count = txn.get(group.encode(), db=self._counts)
                txn.put(group.encode(), _COUNT.pack((_COUNT.unpack(count)[0] if count else 0) + by), db=self._counts)

    def page(self, prefix: bytes, after: bytes, limit: int, *, now: float, model: str | None = None) -> Page:
        def scan(txn: Any) -> Page:
            found: list[tuple[bytes, Record]] = []
            cursor = txn.cursor(db=self._sessions)
            more, scanned, last = cursor.set_range(max(prefix, after + b"\0")), 0, after
            while more and (key := cursor.key()).startswith(prefix):
                if len(found) == limit or scanned == SCANNED_PER_PAGE:
                    return Page(found, last)
                record = records.decoded(cursor.value())
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
            self._guarded(self._env.reader_check)  # a killed process's reader would keep pages from being used again
            due = self._read(lambda txn: self._due_before(txn, now, limit))
            if due:
                self._write(lambda txn: self._expire(txn, due, now))
            return len(due)
        finally:
            fcntl.flock(self._sweep_lock, fcntl.LOCK_UN)

    def _due_before(self, txn: Any, now: float, limit: int) -> list[bytes]:
        entries: list[bytes] = []
        for entry in txn.cursor(db=self._expiry).iternext(keys=True, values=False):
            if len(entries) == limit or _TIME.unpack_from(entry)[0] > now * 1000:
                break
            entries.append(entry)
        return entries

    def _expire(self, txn: Any, due: Sequence[bytes], now: float) -> None:
        for entry in due:
            self._expire_one(txn, entry, now)

    def _expire_one(self, txn: Any, entry: bytes, now: float) -> None:
        txn.delete(entry, db=self._expiry)
        key = entry[_TIME.size :]
        stored = txn.get(key)
        record = None if stored is None else records.decoded(stored)
        if not isinstance(record, Record):  # forgotten already, or damaged: left where it is, for inspection
            return
        if record.expires_at > now:
            txn.put(_due(record, key), b"", db=self._expiry)
        elif record.ended is None:
            ended = record.tombstone("expired", record.expires_at)
            self._put(txn, key, stored, ended, ended.to_bytes())
        else:
            txn.delete(key, db=self._sessions)

    def set_aside(self, key: bytes) -> None:
        def move(txn: Any) -> None:
            if (stored := txn.get(key)) is not None and isinstance(records.decoded(stored), DamagedRecordError):
                txn.put(key, stored, db=self._damaged)
                txn.delete(key, db=self._sessions)

        self._write(move)

    def flush(self) -> None:
        if self._dirty:
            self._dirty = False  # before, as commits go on while it runs
            try:
                self._guarded(lambda: self._env.sync(True))
            except BaseException:
                self._dirty = True
                raise

    def close(self) -> None:
        self.flush()
        self._env.close()
        os.close(self._sweep_lock)
        os.close(self._place)

    def _read(self, work: Callable[[Any], T]) -> T:
        def transaction() -> T:
            with self._env.begin(db=self._sessions) as txn:
                return work(txn)

        return self._guarded(transaction)

    def _write(self, work: Callable[[Any], T]) -> T:
        def transaction() -> T:
            with self._env.begin(db=self._sessions, write=True) as txn:
                return work(txn)

        self._dirty = True
        return self._guarded(transaction)

    def _guarded(self, work: Callable[[], T]) -> T:
        """Runs `work`, which is atomic and so may run again: after the map grew here, or in another process."""
        while True:
            try:
                return work()
            except lmdb.MapFullError:
                self._grow()
            except lmdb.MapResizedError:
                self._env.set_mapsize(0)  # take over the size that another process has set
            except lmdb.DiskError as error:
                raise StoreFullError(str(error)) from error
            except lmdb.Error as error:
                if self._is_full():  # a write that found room for its beginning only is an I/O error to LMDB
                    raise StoreFullError(str(error)) from error
                raise StoreUnavailableError(str(error)) from error

    def _is_full(self) -> bool:
        disk = os.statvfs(self._folder)
        page: int = self._env.stat()["psize"]
        return disk.f_bavail * disk.f_frsize < page

    def _grow(self) -> None:
        size = self._env.info()["map_size"]
        try:
            self._env.set_mapsize(2 * size)
        except (lmdb.Error, MemoryError, OverflowError) as error:
            raise StoreFullError(f"it has {size} bytes and cannot have more: {error}") from error


def _claim(folder: Path) -> int:
    """Shares the folder with processes of the same machine and container only; returns the file that holds the claim.

    LMDB tells its readers apart by process ids. Two containers number their processes alike, and one would take the
    other's readers for dead.
    """
    here = Path("/proc/self/ns/pid").readlink().name if sys.platform == "linux" else "here"
    claim = os.open(folder / "place.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else has it open
        os.ftruncate(claim, 0)
        os.pwrite(claim, here.encode(), 0)
    except BlockingIOError:
        pass
    fcntl.flock(claim, fcntl.LOCK_SH)
    if (there := os.pread(claim, 100, 0).decode()) != here:
        os.close(claim)
        raise OSError(
            f"another container has it open ({there}, this is {here}); give each container a store of its own"
        )
    return claim


def _due(record: Record, key: bytes) -> bytes:
    return _TIME.pack(max(0, int(record.expires_at * 1000))) + key
