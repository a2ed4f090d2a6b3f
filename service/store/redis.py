"""The store for many machines: sessions in Valkey or Redis, alone or as a cluster.

A session is one key, compared and set in Lua, so every operation on it is atomic. A commit that is sent again because
its answer was lost is known by its revision, which no other commit has, and applied once. What is committed is as safe
as the server makes it: see `appendfsync` and replication in docs/durability.md.

Beside the sessions lie indexes, sorted sets that follow them and are never trusted: `ids` (a tenant's session ids) and
`due` (by model/version: keys by when they expire). An entry is added before its session is, so no living session lacks
one; what a stopped process left behind is cleared when it is due, and until then counts. A step touches no index, as in
the LMDB store. A tombstone lies under its session's key and in no index: the server forgets it by itself when its time
is over, and a session a day after it expired, should no worker be there to sweep.
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
"""How many ids are looked at for a page, and how many records are held at once."""

_LUA = Path(__file__).parent / "lua"
_GROUPS, _SWEEP = "onward:groups", "onward:sweep"
_ENDED = "onward:ended"
"""Versions before record format 5 entered tombstones here by when they are forgotten."""

T = TypeVar("T")


class RedisStore:
    """Satisfies `Store`. It connects when it is first used, and again whenever it has to."""

    def __init__(self, uri: str) -> None:
        """uri: redis://, rediss:// (TLS), unix://, or redis+cluster:// and rediss+cluster:// with any node of it."""
        self._known = RecordCache()
        self._pass: SweepPass[dict[bytes, int]] = (
            SweepPass()
        )  # how many entries of each `due` are left alone at its beginning
        self._commit_script, self._forget_script, self._quarantine_script = (
            (_LUA / name).read_text() for name in ("commit.lua", "forget.lua", "quarantine.lua")
        )
        self._waits = ExponentialWithJitterBackoff(base=FIRST_WAIT_S, cap=LONGEST_WAIT_S)
        self._options: dict[str, Any] = {
            "socket_timeout": ANSWER_S, "socket_connect_timeout": CONNECT_S, "retry": Retry(self._waits, RETRIES),
        }  # fmt: skip
        self._uri, self._is_cluster = uri.replace(CLUSTER, "", 1), CLUSTER in uri.partition("://")[0]
        self._connected: Any = None if self._is_cluster else Redis.from_url(self._uri, **self._options)
        self._once: Any = None  # the script on a server alone, by a client that sends nothing a second time by itself
        if not self._is_cluster:
            unrepeated = Redis.from_url(self._uri, **self._options | {"retry": Retry(NoBackoff(), 0)})
            self._once = unrepeated.register_script(self._commit_script)

    @property
    def _server(self) -> Any:
        """A cluster is asked for its nodes at once, and may not be there yet."""
        if self._connected is None:
            self._connected = RedisCluster.from_url(self._uri, **self._options)
        return self._connected

    def load_many(self, keys: Sequence[bytes], *, fresh: bool = True) -> list[Loaded]:
        return self._known.filled(keys, lambda unknown: self._guarded(lambda: self._get(unknown)), fresh=fresh)

    def commit_many(self, changes: Sequence[Change]) -> list[bool]:
        regrouped = [change for change in changes if not change.advances]
        try:
            before = self._announce(regrouped) if regrouped else {}
            try:
                committed = self._sent(changes)
            except StoreFullError:
                if not all(isinstance(change.record, Tombstone) for change in changes):
                    raise
                return self._guarded(lambda: self._drop(changes, before))  # what ends must not need room
        except Exception:
            for change in changes:  # whether it was applied is not known
                self._known.forget(change.key)
            raise
        self._known.committed(changes, committed)
        if regrouped:
            done = {change.key for change, applied in zip(changes, committed, strict=True) if applied}
            self._settle(regrouped, done, before)
        return committed

    def _sent(self, changes: Sequence[Change]) -> list[bool]:
        """Commits, again where the connection broke.

        Where the first one's answer was lost and the session has moved since, nobody knows whether it was applied: so
        it is not said to be refused, after which the step would be computed anew.
        """
        for attempt in range(RETRIES):
            with contextlib.suppress(ConnectionError, TimeoutError):
                return self._known_to_be(self._guarded_but_lost(lambda: self._commit(changes)), again=attempt > 0)
            time.sleep(self._waits.compute(attempt + 1))
        return self._known_to_be(self._guarded(lambda: self._commit(changes)), again=True)

    @staticmethod
    def _known_to_be(committed: list[bool], *, again: bool) -> list[bool]:
        if again and not all(committed):
            raise StoreUnavailableError("the answer to a commit was lost; it may have been applied")
        return committed

    def _commit(self, changes: Sequence[Change]) -> list[bool]:
        packed = [
            (b"" if change.expected is None else records.revision_bytes(change.expected), change.record.to_bytes(),
             _forgotten_ms(change.record)) for change in changes
        ]  # fmt: skip
        if not self._is_cluster:
            keys = [_session(change.key) for change in changes]
            return [bool(one) for one in self._once(keys=keys, args=[part for parts in packed for part in parts])]
        pipe = self._server.pipeline(transaction=False)
        for change, parts in zip(changes, packed, strict=True):
            pipe.execute_command("EVAL", self._commit_script, 1, _session(change.key), *parts)
        return [bool(one) for (one,) in pipe.execute()]

    def _drop(self, changes: Sequence[Change], before: dict[bytes, Loaded]) -> list[bool]:
        """Ends sessions without a tombstone, which a full server has no room for: they are unknown from then on."""
        dropped = []
        for change in changes:
            assert change.expected is not None
            dropped.append(bool(self._forget_one(change.key, change.expected)))
            self._known.forget(change.key)
        self._leave([(_due(old), change.key) for change in changes if isinstance(old := before[change.key], Record)])
        return dropped

    def _forget_one(self, key: bytes, revision: int) -> Any:
        return self._run(self._forget_script, [_session(key)], [records.revision_bytes(revision)])

    def _announce(self, changes: Sequence[Change]) -> dict[bytes, Loaded]:
        """Enters what is about to be born; returns what is there before."""

        def announce() -> dict[bytes, Loaded]:
            pipe = self._server.pipeline(transaction=False)
            for change in changes:
                if isinstance(change.record, Record):
                    self._enter(pipe, change.key, change.record)
            if len(pipe):
                pipe.execute()
            keys = [change.key for change in changes]
            found = self._get(keys)
            return {key: records.decode(data) for key, data in zip(keys, found, strict=True)}

        return self._guarded(announce)

    def _settle(self, changes: Sequence[Change], committed: set[bytes], before: dict[bytes, Loaded]) -> None:
        """Brings the indexes after what was committed, or refused."""

        def settle() -> None:
            pipe = self._server.pipeline(transaction=False)
            left: list[tuple[bytes, bytes]] = []
            for change in changes:
                old, new = before.get(change.key), change.record
                if change.key not in committed:
                    left += [(_due(new), change.key)] if isinstance(new, Record) else []
                elif isinstance(new, Record):
                    self._enter(pipe, change.key, new)
                    if isinstance(old, Record) and _due(old) != _due(new):
                        pipe.zrem(_due(old), change.key)
                elif isinstance(old, Record):
                    left.append((_due(old), change.key))
            if len(pipe):
                pipe.execute()
            self._leave(left)

        self._guarded(settle)

    def _leave(self, left: Sequence[tuple[bytes, bytes]]) -> None:
        """Takes keys out of these `due`, and out of `ids`; whichever lives after all is entered again.

        Whoever creates a session enters it after it is there: so whether that comes before or after, it stays entered.
        One whose record cannot be read is due at once: a sweep of the version that reads it finds out when.
        """
        if not left:
            return
        pipe = self._server.pipeline(transaction=False)
        for due, key in left:
            pipe.zrem(due, key)
            pipe.zrem(_ids(key), records.session_id(key))
        pipe.execute()
        keys = [key for _, key in left]
        for (due, key), data in zip(left, self._get(keys), strict=True):
            record = records.decode(data)
            if isinstance(record, Record):
                self._enter(pipe, key, record)
            elif isinstance(record, UnreadableRecordError):
                pipe.zadd(due, {key: 0})
                pipe.zadd(_ids(key), {records.session_id(key): 0})
        if len(pipe):
            pipe.execute()

    def _enter(self, pipe: Any, key: bytes, record: Record) -> None:
        pipe.sadd(_GROUPS, _group(record))
        pipe.zadd(_due(record), {key: record.expires_at})
        pipe.zadd(_ids(key), {records.session_id(key): 0})

    def page(self, prefix: bytes, after: bytes, limit: int, *, now: float, model: str | None = None) -> Page:
        def scan() -> Page:
            found: list[tuple[bytes, Record]] = []
            last, tenant = after, prefix.partition(b"/")[0] + b"/"
            first = b"(" + after[len(tenant) :] if after >= prefix else b"[" + prefix[len(tenant) :]
            ids = self._server.zrangebylex(_ids(prefix), first, b"+", start=0, num=SCANNED_PER_PAGE)
            for some in _slices([tenant + one for one in ids], min(SLICE, limit)):
                for key, data in zip(some, self._get(some), strict=True):
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
            with contextlib.suppress(LockError):  # it took so long that the lock is another's by now
                self._guarded(lock.release)

    def _sweep(self, now: float, limit: int) -> int:
        self._server.zremrangebyscore(_ENDED, "-inf", now)
        left_alone, looked_at = dict(self._pass.begin(now) or {}), 0
        for group in sorted(self._server.smembers(_GROUPS)):
            start = left_alone.get(group, 0)
            due = self._server.zrangebyscore(_due_of(group), "-inf", now, start=start, num=limit - looked_at)
            left_alone[group] = start + sum(self._expire(group, some, now) for some in _slices(due))
            looked_at += len(due)
        self._pass.end(left_alone, is_over=looked_at < limit)
        return looked_at

    def _expire(self, group: bytes, keys: Sequence[bytes], now: float) -> int:
        """Ends the sessions that are due, brings `due` after the others; returns how many entries it left alone."""
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
                self._enter(pipe, key, record)
            else:
                expired.append(Change(key, record.revision, record.tombstone("expired", record.expires_at)))
        self._leave(gone)
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
                self._leave([(_due_of(group), key) for group in self._server.smembers(_GROUPS)])

        self._known.forget(key)
        self._guarded(move)

    def flush(self) -> None:
        """The server brings what it has to disk, as its own settings say."""

    def close(self) -> None:
        for client in (self._connected, self._once and self._once.registered_client):
            if client is not None:
                client.close()

    def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The bytes of these sessions."""
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
            return self._guarded_but_lost(work)
        except (ConnectionError, TimeoutError) as error:
            raise StoreUnavailableError(str(error)) from error

    def _guarded_but_lost(self, work: Callable[[], T]) -> T:
        """Lets pass what broke on the way."""
        try:
            return work()
        except (LockError, ConnectionError, TimeoutError):
            raise
        except OutOfMemoryError as error:
            raise StoreFullError(str(error)) from error
        except ResponseError as error:
            if "MISCONF" in str(error):  # in a pipeline's error, its command comes first
                raise StoreFullError("it cannot write its files, most often as its disk is full") from error
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


def _forgotten_ms(record: Record | Tombstone) -> int:
    """When the server may forget it by itself, in milliseconds since 1970."""
    at = record.forgotten_at if isinstance(record, Tombstone) else record.expires_at + TOMBSTONE_S
    return math.ceil(1000 * at)
