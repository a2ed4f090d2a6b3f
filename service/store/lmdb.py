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
from onward.service.store.record import Record, Tombstone
from onward.service.store.record_cache import RecordCache
from onward.service.store.sweeping import SweepPass
from onward.service.store.write_lock import WriteLock

OPENING_S = 60.0
"""How long an opening waits for a write that is under way: longer than gunicorn lets a worker be silent."""
PAGES_BESIDE = 16
"""LMDB's own pages that no table counts: its meta pages, and a part of its list of free ones."""
SCANNED_PER_PAGE = 10_000

_NO_ROOM, _ROOM_OF_STEPS, _ROOM_OF_OTHERS = 0.0, 0.5, 1.0
_PAGE_KINDS = ("branch_pages", "leaf_pages", "overflow_pages")
_TIME = struct.Struct(">Q")  # milliseconds, or seconds in `forgetting`; big-endian, so that keys sort by time
_COUNT = struct.Struct("<q")

T = TypeVar("T")

log = logging.getLogger(__name__)


class LmdbStore:
    """Satisfies `Store`. Open one a process, after the fork, and close it."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        """Makes the folder if need be. fsync: a commit returns once it is on disk.

        Raises StoreUnavailableError, also where the file is damaged or cut short.
        """
        self._folder = folder
        with ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                _claim(self._opened(opened, "place.lock"))
                self._sweep_lock = self._opened(opened, "sweep.lock")
                self._write_lock = WriteLock(self._opened(opened, "write.lock"))
                self._write_lock.wait(OPENING_S)
                with self._write_lock:
                    self._open(opened, fsync=fsync)
            except (OSError, lmdb.Error) as error:
                raise StoreUnavailableError(f"{folder}: {error}") from error
            self._closing = opened.pop_all()
        self._known = RecordCache()
        self._pass: SweepPass[bytes] = SweepPass()
        self._dirty = True  # a process that was killed may have left commits that no one has flushed

    def _opened(self, opened: ExitStack, name: str) -> int:
        file = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, file)
        return file

    def _open(self, opened: ExitStack, *, fsync: bool) -> None:
        if not (self._folder / lmdb_file.DATA).exists():
            lmdb_file.make(self._folder)
        lmdb_file.examine(self._folder)
        self._file = self._opened(opened, lmdb_file.DATA)
        self._env: Any = lmdb.open(
            str(self._folder), map_size=1, max_dbs=7, max_readers=1024, sync=fsync, metasync=fsync, mode=0o600
        )  # mapped as far as it is used, until it is known how long the file is
        opened.callback(self._env.close)
        self._env.reader_check()
        self._full = False
        """Whether the file could not grow when it had to: then all of it is mapped, and `_hold_room` keeps room."""
        self._grow()
        self._sessions = self._env.open_db(b"sessions")
        self._expiry = self._env.open_db(b"expiry")
        self._counts = self._env.open_db(b"counts")
        self._damaged = self._env.open_db(b"damaged")
        self._index = self._env.open_db(b"index")
        self._ended = self._env.open_db(b"ended")
        self._forgetting = self._env.open_db(b"forgetting", dupsort=True, dupfixed=True)

    def load_many(self, keys: Sequence[bytes], *, fresh: bool = True) -> list[Loaded]:
        return self._known.filled(
            keys, lambda unknown: self._read(lambda txn: [self._get(txn, key) for key in unknown]), fresh=fresh
        )

    def commit_many(self, changes: Sequence[Change]) -> list[bool]:
        packed = [change.record.to_bytes() for change in changes]

        def commit(txn: Any) -> list[bool]:
            return [self._commit(txn, change, data) for change, data in zip(changes, packed, strict=True)]

        room = max(map(_room, changes), default=_NO_ROOM)
        try:
            committed = self._write(commit, room)
        except StoreFullError:
            if room > _NO_ROOM or len(changes) == 1:
                raise
            half = len(changes) // 2  # what one half frees, the other may use
            return self.commit_many(changes[:half]) + self.commit_many(changes[half:])
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
            self._replace(txn, change.key, records.decode(stored), change.record, data)
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
        tombstone = records.decode(txn.get(digest, db=self._ended))
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
            self._guarded(self._env.reader_check)  # a killed process's reader would keep pages from being used again
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
        due, over = self._read(lambda txn: self._due_before(txn, now, limit, position))
        if due or over:
            left_alone = self._write(lambda txn: self._end(txn, due, over, now), _NO_ROOM)
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
        found = records.decode(txn.get(key))
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

    def quarantine(self, key: bytes) -> None:
        def move(txn: Any) -> None:
            stored = txn.get(key)
            found = records.decode(stored)
            if isinstance(found, DamagedRecordError):
                txn.put(key, stored, db=self._damaged)
                txn.delete(key)
                self._remove_entries(txn, key, found)

        self._known.forget(key)
        self._write(move, _NO_ROOM)

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
        self._closing.close()

    def _read(self, work: Callable[[Any], T]) -> T:
        def transaction() -> T:
            with self._env.begin(db=self._sessions) as txn:
                return work(txn)

        return self._guarded(transaction)

    def _write(self, work: Callable[[Any], T], room: float) -> T:
        """room: how much of the reserve must be left once the file cannot grow, as a share of it."""

        def transaction() -> T:
            with self._env.begin(db=self._sessions, write=True) as txn:
                return work(txn)

        self._dirty = True
        with self._write_lock:
            while True:
                try:
                    if self._full:
                        self._hold_room(room)
                    return self._guarded(transaction)
                except lmdb.MapFullError as error:
                    was_full = self._full
                    if not self._grow() and was_full:
                        raise StoreFullError(_full(self._size())) from error

    def _guarded(self, work: Callable[[], T]) -> T:
        """Runs `work`, which is atomic and so may run again where another process has made the file longer."""
        while True:
            try:
                return work()
            except lmdb.MapFullError:
                raise
            except lmdb.MapResizedError:
                self._fit()
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

    def _hold_room(self, room: float) -> None:
        """Raises StoreFullError where so much of the reserve is not left, and the file cannot grow."""
        size = self._size()
        if self._free_bytes(size) < room * lmdb_file.reserve_bytes(size) and not self._grow():
            raise StoreFullError(_full(size))

    def _free_bytes(self, size: int) -> int:
        """What no table uses of the file, so that it can be written to on a full disk too."""
        ours = (
            self._sessions, self._expiry, self._counts, self._damaged, self._index, self._ended, self._forgetting,
        )  # fmt: skip
        tables, main = self._read(lambda txn: [txn.stat(table) for table in ours]), self._env.stat()
        pages = sum(table[kind] for table in (main, *tables) for kind in _PAGE_KINDS)
        free: int = size - (pages + PAGES_BESIDE) * main["psize"]
        return free

    def _grow(self) -> bool:
        """Makes the file longer, or follows another process that did; whether there is more room now.

        Its caller has the write lock.
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
            mmap.mmap(-1, size).close()  # where it could not be mapped, LMDB would be left without a map
            lmdb_file.extend(self._file, size)
        except OSError as error:
            log.debug("the file cannot have %d bytes: %s", size, error)
            return False
        return True

    def _fit(self) -> None:
        """Maps the file, all of it or without the reserve. LMDB maps what is used in any case."""
        info, size = self._env.info(), self._size()
        usable = size - lmdb_file.reserve_bytes(size)
        self._full = self._full or usable < (info["last_pgno"] + 1) * self._env.stat()["psize"]
        wanted = size if self._full else usable
        if wanted != info["map_size"]:
            self._env.set_mapsize(wanted)

    def _size(self) -> int:
        return os.fstat(self._file).st_size // lmdb_file.UNIT * lmdb_file.UNIT


def _room(change: Change) -> float:
    """How much of the reserve a change leaves: most of it is for what frees room, and some for steps."""
    if isinstance(change.record, Tombstone):
        return _NO_ROOM
    return _ROOM_OF_STEPS if change.advances else _ROOM_OF_OTHERS


def _full(size: int) -> str:
    return f"its file has {size} bytes, there is no room for more, and what is left of them is for deletion and expiry"


def _claim(claim: int) -> None:
    """Shares the folder with processes of the same machine and container only; `claim` is the file that says whose.

    LMDB tells its readers apart by process ids. Two containers number their processes alike, and one would take the
    other's readers for dead.
    """
    here = Path("/proc/self/ns/pid").readlink().name if sys.platform == "linux" else "here"
    with suppress(BlockingIOError):
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else has it open
        if os.pread(claim, 100, 0) != here.encode():  # else nothing is written: the disk may be full
            os.pwrite(claim, here.encode(), 0)
            os.ftruncate(claim, len(here))
    fcntl.flock(claim, fcntl.LOCK_SH)
    if (there := os.pread(claim, 100, 0).decode()) != here:
        raise OSError(
            f"another container has it open ({there}, this is {here}); give each container a store of its own"
        )


def _time(seconds: float) -> bytes:
    return _TIME.pack(max(0, int(seconds * 1000)))


def _second(seconds: float) -> bytes:
    """The first one that is over then."""
    return _TIME.pack(max(0, math.ceil(seconds)))


def _group(record: Record) -> bytes:
    return f"{record.ref.model}/{record.ref.version}".encode()


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()
