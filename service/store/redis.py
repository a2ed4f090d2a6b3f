"""The store for many machines: sessions in Valkey or Redis, alone or as a cluster.

A session is one key, compared and set in Lua, so that every operation on it is atomic. A commit that is sent again
because its answer was lost is recognised by its revision, which is unique, and applied once. The durability of a commit
is the server's: see `appendfsync` and replication in docs/durability.md.

The indexes are sorted sets that are updated separately from the sessions and never trusted: `ids` (a tenant's session
ids) and `due` (per model/version: keys by expiry). An entry is added before its session, so that every living session
has one; an entry that a stopped process left is removed when it is due, and counts until then. A step writes to no
index, as in the LMDB store. A tombstone has its session's key and no index entry: the server deletes it by itself when
it is over, and a session one day after its expiry if no worker runs that could sweep.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import (
    ConnectionError,  # noqa: A004  (the library's own)
    LockError,
    OutOfMemoryError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)
from redis.retry import Retry

from onward.service.errors import DamagedRecordError, StoreFullError, StoreUnavailableError, UnreadableRecordError
from onward.service.store import record as records
from onward.service.store.contract import Change, Loaded, Page
from onward.service.store.record import TOMBSTONE_S, Record, Tombstone
from onward.service.store.record_cache import RecordCache
from onward.service.store.sweeping import SweepPass

CLUSTER = "+cluster"
ANSWER_S, CONNECT_S = 2.0, 1.0
RETRIES, FIRST_WAIT_S, LONGEST_WAIT_S = 3, 0.05, 0.5
SWEEP_S = 30
SCANNED_PER_PAGE, SLICE = 1000, 100
"""The number of ids that are examined for a page, and the number of records that are in memory at once."""

_LUA = Path(__file__).parent / "lua"
_GROUPS, _SWEEP = "onward:groups", "onward:sweep"
_ENDED = "onward:ended"
"""The index of tombstones by expiry that versions before record format 5 wrote."""

T = TypeVar("T")


class RedisStore:
    """An implementation of `Store`. It connects at its first use, and again whenever a connection is lost."""

    def __init__(self, uri: str) -> None:
        """uri: redis://, rediss:// (TLS), unix://, or redis+cluster:// and rediss+cluster:// with any of its nodes."""
        self._cache = RecordCache()
        self._pass: SweepPass[dict[bytes, int]] = SweepPass()  # how many entries at the start of each `due` are skipped
        self._commit_script, self._forget_script, self._quarantine_script = (
            (_LUA / name).read_text() for name in ("commit.lua", "forget.lua", "quarantine.lua")
        )
        self._backoff = ExponentialWithJitterBackoff(base=FIRST_WAIT_S, cap=LONGEST_WAIT_S)
        self._options: dict[str, Any] = {
            "socket_timeout": ANSWER_S, "socket_connect_timeout": CONNECT_S, "retry": Retry(self._backoff, RETRIES),
        }  # fmt: skip
        self._uri, self._is_cluster = uri.replace(CLUSTER, "", 1), CLUSTER in uri.partition("://")[0]
        self._connected: Any = None if self._is_cluster else Redis.from_url(self._uri, **self._options)
        self._unrepeated_commit: Any = (
            None  # the commit script for a single server, on a client that never retries by itself
        )
        if not self._is_cluster:
            unrepeated = Redis.from_url(self._uri, **self._options | {"retry": Retry(NoBackoff(), 0)})
            self._unrepeated_commit = unrepeated.register_script(self._commit_script)

    @property
    def _server(self) -> Any:
        """The client. That of a cluster is created at first use, as it asks for the nodes, which may not be up yet."""
        if self._connected is None:
            self._connected = RedisCluster.from_url(self._uri, **self._options)
        return self._connected

    def load_many(self, keys: Sequence[bytes], *, fresh: bool = True) -> list[Loaded]:
        return self._cache.load(keys, lambda missing: self._guarded(lambda: self._get(missing)), fresh=fresh)

    def commit_many(self, changes: Sequence[Change]) -> list[bool]:
        regrouped = [change for change in changes if not change.advances]
        try:
            before = self._add_entries_first(regrouped) if regrouped else {}
            try:
                committed = self._commit_with_retries(changes)
            except StoreFullError:
                if not all(isinstance(change.record, Tombstone) for change in changes):
                    raise
                return self._guarded(
                    lambda: self._end_without_tombstones(changes, before)
                )  # the end of a session must not need room
        except Exception:
            for change in changes:  # it may have been applied or not
                self._cache.remove(change.key)
            raise
        self._cache.update(changes, committed)
        if regrouped:
            done = {change.key for change, applied in zip(changes, committed, strict=True) if applied}
            self._update_indexes(regrouped, done, before)
        return committed

    def _commit_with_retries(self, changes: Sequence[Change]) -> list[bool]:
        """Commits, and commits again after a lost connection.

        If the first answer was lost and the session has advanced since, it is unknown whether the commit was applied.
        Then this raises StoreUnavailableError, as the step would be computed again if the commit were reported refused.
        """
        for attempt in range(RETRIES):
            with contextlib.suppress(ConnectionError, TimeoutError):
                return self._require_certain(
                    self._guarded_except_connection(lambda: self._commit(changes)), again=attempt > 0
                )
            time.sleep(self._backoff.compute(attempt + 1))
        return self._require_certain(self._guarded(lambda: self._commit(changes)), again=True)

    @staticmethod
    def _require_certain(committed: list[bool], *, again: bool) -> list[bool]:
        if again and not all(committed):
            raise StoreUnavailableError("the answer to a commit was lost; it may have been applied")
        return committed

    def _commit(self, changes: Sequence[Change]) -> list[bool]:
        packed = [
            (b"" if change.expected is None else records.revision_bytes(change.expected), change.record.to_bytes(),
             _deletion_ms(change.record)) for change in changes
        ]  # fmt: skip
        if not self._is_cluster:
            keys = [_session(change.key) for change in changes]
            arguments = [part for parts in packed for part in parts]
            return [bool(applied) for applied in self._unrepeated_commit(keys=keys, args=arguments)]
        pipe = self._server.pipeline(transaction=False)
        for change, parts in zip(changes, packed, strict=True):
            pipe.execute_command("EVAL", self._commit_script, 1, _session(change.key), *parts)
        return [bool(applied) for (applied,) in pipe.execute()]

    def _end_without_tombstones(self, changes: Sequence[Change], before: dict[bytes, Loaded]) -> list[bool]:
        """Ends sessions without tombstones, for which a full server has no room: their ids are unknown afterwards."""
        dropped = []
        for change in changes:
            assert change.expected is not None
            dropped.append(bool(self._delete_if_unchanged(change.key, change.expected)))
            self._cache.remove(change.key)
        self._remove_entries(
            [(_due(old), change.key) for change in changes if isinstance(old := before[change.key], Record)]
        )
        return dropped

    def _delete_if_unchanged(self, key: bytes, revision: int) -> Any:
        return self._run(self._forget_script, [_session(key)], [records.revision_bytes(revision)])

    def _add_entries_first(self, changes: Sequence[Change]) -> dict[bytes, Loaded]:
        """Adds index entries of the sessions that will be created; returns what the store has under the keys before."""

        def add() -> dict[bytes, Loaded]:
            pipe = self._server.pipeline(transaction=False)
            for change in changes:
                if isinstance(change.record, Record):
                    self._add_entries(pipe, change.key, change.record)
            if len(pipe):
                pipe.execute()
            keys = [change.key for change in changes]
            found = self._get(keys)
            return {key: records.decode(data) for key, data in zip(keys, found, strict=True)}

        return self._guarded(add)

    def _update_indexes(self, changes: Sequence[Change], committed: set[bytes], before: dict[bytes, Loaded]) -> None:
        """Updates the indexes after changes were committed or refused."""

        def update() -> None:
            pipe = self._server.pipeline(transaction=False)
            removed: list[tuple[bytes, bytes]] = []
            for change in changes:
                old, new = before.get(change.key), change.record
                if change.key not in committed:
                    removed += [(_due(new), change.key)] if isinstance(new, Record) else []
                elif isinstance(new, Record):
                    self._add_entries(pipe, change.key, new)
                    if isinstance(old, Record) and _due(old) != _due(new):
                        pipe.zrem(_due(old), change.key)
                elif isinstance(old, Record):
                    removed.append((_due(old), change.key))
            if len(pipe):
                pipe.execute()
            self._remove_entries(removed)

        self._guarded(update)

    def _remove_entries(self, removed: Sequence[tuple[bytes, bytes]]) -> None:
        """Removes keys from `due` and `ids`, and adds the entries again of sessions that turn out to be alive.

        A concurrent creation adds its entries again after its commit, so that they remain whichever comes first. A
        session whose record cannot be read becomes due at once: a sweep of a version that reads it corrects the time.
        """
        if not removed:
            return
        pipe = self._server.pipeline(transaction=False)
        for due, key in removed:
            pipe.zrem(due, key)
            pipe.zrem(_ids(key), records.session_id(key))
        pipe.execute()
        keys = [key for _, key in removed]
        for (due, key), data in zip(removed, self._get(keys), strict=True):
            record = records.decode(data)
            if isinstance(record, Record):
                self._add_entries(pipe, key, record)
            elif isinstance(record, UnreadableRecordError):
                pipe.zadd(due, {key: 0})
                pipe.zadd(_ids(key), {records.session_id(key): 0})
        if len(pipe):
            pipe.execute()

    def _add_entries(self, pipe: Any, key: bytes, record: Record) -> None:
        pipe.sadd(_GROUPS, _group(record))
        pipe.zadd(_due(record), {key: record.expires_at})
        pipe.zadd(_ids(key), {records.session_id(key): 0})

    def page(self, prefix: bytes, after: bytes, limit: int, *, now: float, model: str | None = None) -> Page:
        def scan() -> Page:
            found: list[tuple[bytes, Record]] = []
            last, tenant = after, prefix.partition(b"/")[0] + b"/"
            first = b"(" + after[len(tenant) :] if after >= prefix else b"[" + prefix[len(tenant) :]
            ids = self._server.zrangebylex(_ids(prefix), first, b"+", start=0, num=SCANNED_PER_PAGE)
            for keys in _slices([tenant + session_id for session_id in ids], min(SLICE, limit)):
                for key, data in zip(keys, self._get(keys), strict=True):
                    if not key.startswith(prefix):
                        return Page(found, None)
                    if len(found) == limit:
                        return Page(found, last)
                    record = records.decode(data)
                    if isinstance(record, Record) and record.alive(now) and model in (None, record.ref.model):
                        found.append((key, record))
                    last = key
            return Page(found, last if len(ids) == SCANNED_PER_PAGE else None)

        return self._guarded(scan)

    def count(self) -> dict[tuple[str, int], int]:
        def counts() -> dict[tuple[str, int], int]:
            groups = sorted(self._server.smembers(_GROUPS))
            pipe = self._server.pipeline(transaction=False)
            for group in groups:
                pipe.zcard(_due_of(group))
            numbers = pipe.execute() if groups else []
            names = [group.decode().rpartition("/") for group in groups]
            return {(name, int(version)): number for (name, _, version), number in zip(names, numbers, strict=True)}

        return self._guarded(counts)

    def sweep(self, now: float, limit: int = 1000) -> int:
        lock = self._server.lock(_SWEEP, timeout=SWEEP_S, blocking=False)
        if not self._guarded(lock.acquire):
            return 0
        try:
            return self._guarded(lambda: self._sweep(now, limit))
        finally:
            with contextlib.suppress(LockError):  # the sweep took so long that the lock has passed on
                self._guarded(lock.release)

    def _sweep(self, now: float, limit: int) -> int:
        self._server.zremrangebyscore(_ENDED, "-inf", now)
        skipped, examined = dict(self._pass.begin(now) or {}), 0
        for group in sorted(self._server.smembers(_GROUPS)):
            start = skipped.get(group, 0)
            due = self._server.zrangebyscore(_due_of(group), "-inf", now, start=start, num=limit - examined)
            skipped[group] = start + sum(self._expire(group, keys, now) for keys in _slices(due))
            examined += len(due)
        self._pass.end(skipped, is_over=examined < limit)
        return examined

    def _expire(self, group: bytes, keys: Sequence[bytes], now: float) -> int:
        """Ends due sessions and corrects the entries of the others; returns how many entries it skipped."""
        gone, expired, unreadable, pipe = [], [], 0, self._server.pipeline(transaction=False)
        due = _due_of(group)
        for key, record in zip(keys, self.load_many(keys), strict=True):
            if isinstance(record, UnreadableRecordError):
                unreadable += 1
            elif not isinstance(record, Record):
                gone.append((due, key))
            elif _due(record) != due:
                pipe.zrem(due, key)
            elif record.alive(now):
                self._add_entries(pipe, key, record)
            else:
                expired.append(Change(key, record.revision, record.tombstone("expired", record.expires_at)))
        self._remove_entries(gone)
        if len(pipe):
            pipe.execute()
        if expired:
            self.commit_many(expired)
        return unreadable

    def quarantine(self, key: bytes) -> None:
        def move() -> None:
            (data,) = self._get([key])
            if data is not None and isinstance(records.decode(data), DamagedRecordError):
                names = [_session(key), b"onward:damaged:{" + key + b"}"]
                self._run(self._quarantine_script, names, [data[records.REVISION]])
                self._remove_entries([(_due_of(group), key) for group in self._server.smembers(_GROUPS)])

        self._cache.remove(key)
        self._guarded(move)

    def flush(self) -> None:
        """Does nothing: the server writes to disk according to its own settings."""

    def close(self) -> None:
        for client in (self._connected, self._unrepeated_commit and self._unrepeated_commit.registered_client):
            if client is not None:
                client.close()

    def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns the bytes of these sessions' records; None if nothing is stored."""
        if not keys:
            return []
        names, server = [_session(key) for key in keys], self._server
        found: list[bytes | None] = server.mget_nonatomic(names) if self._is_cluster else server.mget(names)
        return found

    def _run(self, script: str, keys: Sequence[bytes], arguments: Iterable[bytes | int]) -> Any:
        if self._is_cluster:
            return self._server.eval(script, len(keys), *keys, *arguments)
        return self._server.register_script(script)(keys=keys, args=list(arguments))

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return self._guarded_except_connection(work)
        except (ConnectionError, TimeoutError) as error:
            raise StoreUnavailableError(str(error)) from error

    def _guarded_except_connection(self, work: Callable[[], T]) -> T:
        """Runs `work` with the server's errors wrapped; errors of the lock and of the connection pass through."""
        try:
            return work()
        except (LockError, ConnectionError, TimeoutError):
            raise
        except OutOfMemoryError as error:
            raise StoreFullError(str(error)) from error
        except ResponseError as error:
            if "MISCONF" in str(error):  # in a pipeline's error, its command comes first
                raise StoreFullError("it cannot write its files, most often because its disk is full") from error
            raise StoreUnavailableError(str(error)) from error
        except (RedisError, RedisClusterException, OSError) as error:
            raise StoreUnavailableError(str(error)) from error


def _slices(keys: Sequence[bytes], size: int = SLICE) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _session(key: bytes) -> bytes:
    return b"onward:session:{" + key + b"}"


def _ids(key: bytes) -> bytes:
    return b"onward:ids:" + key.partition(b"/")[0]


def _group(record: Record) -> str:
    return f"{record.ref.model}/{record.ref.version}"


def _due(record: Record) -> bytes:
    return _due_of(_group(record).encode())


def _due_of(group: bytes) -> bytes:
    return b"onward:due:" + group


def _deletion_ms(record: Record | Tombstone) -> int:
    """Returns the time at which the server may delete the key by itself, in milliseconds since 1970."""
    at = record.forgotten_at if isinstance(record, Tombstone) else record.expires_at + TOMBSTONE_S
    return math.ceil(1000 * at)
