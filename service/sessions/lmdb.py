"""The LMDB store: sessions in one memory-mapped file, shared by all worker processes of a machine.

Committed means written to the file's pages: a killed process, or all of them killed, loses nothing. The pages reach the
disk at the next `flush`, or with `fsync` at once: a crash of the operating system may lose what came after it.

Tables of living sessions: `sessions` and `damaged` (key -> record), `expiry` (time, key -> nothing), `index` (key ->
the time of its entry in `expiry`, model/version) and `counts` (model/version -> number). A step touches `sessions`
alone: the sweep finds a session at the time it was due at first, sees that it lives on, and moves its entry. So a
session costs one entry's move per ttl, not one per step. `index` tells where a session is entered and what it counts
as, also where its record cannot be read.

Tables of ended ones: `ended` (digest of the key -> tombstone) and `forgetting` (second -> digests, in order, without
what LMDB keeps of an entry otherwise). Small entries of their own let the pages of `sessions` be used again: a
tombstone in a record's place would keep most of a page empty.
Versions of Onward before record format 5 wrote tombstones to `sessions`, and nothing to `index`.
"""

import fcntl
import math
import os
import struct
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from service.errors import DamagedRecordError, StoreFullError, StoreUnavailableError, UnreadableRecordError
from service.sessions import record as records
from service.sessions.known import Known
from service.sessions.record import Record, Tombstone
from service.sessions.store import Change, Loaded, Page
from service.sessions.sweeping import Pass

FIRST_MAP_BYTES = 2**30
SCANNED_PER_PAGE = 10_000

_TIME = struct.Struct(">Q")  # milliseconds, or seconds in `forgetting`; big-endian, so that keys sort by time
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
                str(folder), map_size=map_bytes, max_dbs=7, max_readers=1024, sync=fsync, metasync=fsync, mode=0o600
            )
            self._env.reader_check()
            self._sessions = self._env.open_db(b"sessions")
            self._expiry = self._env.open_db(b"expiry")
            self._counts = self._env.open_db(b"counts")
            self._damaged = self._env.open_db(b"damaged")
            self._index = self._env.open_db(b"index")
            self._ended = self._env.open_db(b"ended")
            self._forgetting = self._env.open_db(b"forgetting", dupsort=True, dupfixed=True)
        except (OSError, lmdb.Error) as error:
            raise StoreUnavailableError(f"{folder}: {error}") from error
        self._known = Known()
        self._pass: Pass[bytes] = Pass()
        self._dirty = True  # a process that was killed may have left commits that no one has flushed

    def load_many(self, keys: Sequence[bytes], *, fresh: bool = True) -> list[Loaded]:
        return self._known.filled(
            keys, lambda unknown: self._read(lambda txn: [self._get(txn, key) for key in unknown]), fresh=fresh
        )

    def commit_many(self, changes: Sequence[Change]) -> list[bool]:
        packed = [change.record.to_bytes() for change in changes]

        def commit(txn: Any) -> list[bool]:
            return [self._commit(txn, change, data) for change, data in zip(changes, packed, strict=True)]

        committed = self._write(commit)
        self._known.committed(changes, committed)
        return committed

    def _get(self, txn: Any, key: bytes) -> bytes | None:
        """The bytes of the session's record, or of its tombstone."""
        stored: bytes | None = txn.get(key)
        return txn.get(_digest(key), db=self._ended) if stored is None else stored

    def _commit(self, txn: Any, change: Change, data: bytes) -> bool:
        stored = txn.get(change.key) if change.advances else self._get(txn, change.key)
        if (None if stored is None else records.revision_of(stored)) != change.expected:
            return False
        if change.advances:
            txn.put(change.key, data)
        else:
            self._replace(txn, change.key, records.decoded(stored), change.record, data)
        return True

    def _replace(self, txn: Any, key: bytes, before: Loaded, after: Record | Tombstone, data: bytes) -> None:
        self._remove_entries(txn, key, before)
        if isinstance(after, Record):
            txn.put(key, data)
            self._set_due(txn, key, after)
            self._add_to_count(txn, _group(after), 1)
            return
        txn.delete(key)
        self._remove_tombstone(txn, key)  # of an earlier session, where a version without `ended` created this one
        txn.put(_digest(key), data, db=self._ended)
        txn.put(_second(after.forgotten_at), _digest(key), db=self._forgetting)

    def _remove_tombstone(self, txn: Any, key: bytes) -> None:
        digest = _digest(key)
        tombstone = records.decoded(txn.get(digest, db=self._ended))
        if isinstance(tombstone, Tombstone):
            txn.delete(digest, db=self._ended)
            txn.delete(_second(tombstone.forgotten_at), digest, db=self._forgetting)

    def _remove_entries(self, txn: Any, key: bytes, found: Loaded) -> None:
        """Removes what the other tables have of a session that is replaced by another one, or by nothing."""
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
            return self._sweep(now, limit)
        finally:
            fcntl.flock(self._sweep_lock, fcntl.LOCK_UN)

    def _sweep(self, now: float, limit: int) -> int:
        position = self._pass.begin(now)
        due, over = self._read(lambda txn: self._due_before(txn, now, limit, position))
        if due or over:
            left_alone = self._write(lambda txn: self._end(txn, due, over, now))
            position = left_alone[-1] if left_alone else position
        looked_at = len(due) + len(over)
        self._pass.end(position, is_over=looked_at < limit)
        return looked_at

    def _due_before(
        self, txn: Any, now: float, limit: int, after: bytes | None
    ) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
        """At most `limit` entries: of `expiry`, from the first one behind `after` on, and then of `forgetting`."""
        cursor = txn.cursor(db=self._expiry)
        found = cursor.first() if after is None else cursor.set_range(after + b"\0")
        entries = cursor.iternext(keys=True, values=False) if found else ()
        due = list(islice(takewhile(lambda entry: _TIME.unpack_from(entry)[0] <= now * 1000, entries), limit))
        entries = txn.cursor(db=self._forgetting).iternext()
        over = takewhile(lambda entry: _TIME.unpack(entry[0])[0] <= now, entries)
        return due, list(islice(over, limit - len(due)))

    def _end(self, txn: Any, due: Sequence[bytes], over: Sequence[tuple[bytes, bytes]], now: float) -> list[bytes]:
        """Ends the sessions that are due and forgets the tombstones whose time is over; returns what it left alone."""
        for second, digest in over:
            txn.delete(second, digest, db=self._forgetting)
            txn.delete(digest, db=self._ended)
        return [entry for entry in due if not self._expire(txn, entry, now)]

    def _expire(self, txn: Any, entry: bytes, now: float) -> bool:
        """Removes or moves an entry of `expiry`; False where its record cannot be read, so that it has to stay."""
        key = entry[_TIME.size :]
        found = records.decoded(txn.get(key))
        if isinstance(found, UnreadableRecordError):
            return False
        txn.delete(entry, db=self._expiry)
        if isinstance(found, Record):
            if not found.alive(now):
                ended = found.tombstone("expired", found.expires_at)
                self._replace(txn, key, found, ended, ended.to_bytes())
            elif not self._has_other_entry(txn, entry, found):
                self._set_due(txn, key, found)
        elif isinstance(found, Tombstone):  # of a version that wrote it to `sessions`
            if found.forgotten_at > now:
                txn.put(_time(found.forgotten_at) + key, b"", db=self._expiry)
            else:
                txn.delete(key)
        return True

    def _has_other_entry(self, txn: Any, entry: bytes, record: Record) -> bool:
        """Whether this one was left by an earlier session of the same id: versions that had no `index` left theirs."""
        key = entry[_TIME.size :]
        row = txn.get(key, db=self._index)
        if row is None or row[: _TIME.size] == entry[: _TIME.size]:
            return False
        its = row[: _TIME.size]
        return its <= _time(record.expires_at) and txn.get(its + key, db=self._expiry) is not None

    def set_aside(self, key: bytes) -> None:
        def move(txn: Any) -> None:
            stored = txn.get(key)
            found = records.decoded(stored)
            if isinstance(found, DamagedRecordError):
                txn.put(key, stored, db=self._damaged)
                txn.delete(key)
                self._remove_entries(txn, key, found)

        self._known.forget(key)
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


def _time(seconds: float) -> bytes:
    return _TIME.pack(max(0, int(seconds * 1000)))


def _second(seconds: float) -> bytes:
    """The first one that is over then."""
    return _TIME.pack(max(0, math.ceil(seconds)))


def _group(record: Record) -> bytes:
    return f"{record.ref.model}/{record.ref.version}".encode()


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()
