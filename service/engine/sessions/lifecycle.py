"""The lifecycle of sessions: they are found, listed, created, forked, replaced and ended. No model runs here.

Owns which ids are free, and which parts of a record a new session takes over.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from secrets import token_hex

from onward.service.engine.event_loop import take_loop_turn
from onward.service.errors import (
    DamagedRecordError,
    SessionEndedError,
    SessionExistsError,
    UnknownSessionError,
    UnreadableRecordError,
)
from onward.service.store import record as records
from onward.service.store.contract import Change, Loaded, Store
from onward.service.store.record import Record

ENDED_AT_ONCE, MOST_ENDED = 500, 10_000
"""The most sessions that one commit ends, and that one call ends."""


@dataclass(frozen=True, slots=True)
class Session:
    """A session as its client sees it."""

    session_id: str
    record: Record


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """A choice of sessions: those of a model, with a prefix of their ids, and not stepped for at least `idle_s`."""

    model: str | None = None
    prefix: str = ""
    idle_s: float = 0.0


class SessionLifecycle:
    def __init__(
        self, store: Store, clock: Callable[[], float], ttl_s: float, count_damaged: Callable[[], None] | None = None
    ) -> None:
        """`clock` gives seconds since 1970 UTC. ttl_s: of sessions that name none. count_damaged: is called for each
        damaged record that is read.
        """
        self._store, self._clock, self._ttl_s, self._count_damaged = store, clock, ttl_s, count_damaged

    def load(self, key: bytes) -> Loaded:
        (record,) = self._store.load_many([key])
        if self._count_damaged is not None and isinstance(record, DamagedRecordError):
            self._count_damaged()
        return record

    def get(self, tenant: str, session_id: str) -> Session:
        """Returns the live session. Raises UnknownSessionError, SessionEndedError, UnreadableRecordError."""
        record = self.load(records.key(tenant, session_id))
        return Session(session_id, live_record(session_id, record, self._clock()))

    def page(self, tenant: str, after: str, limit: int, model: str | None) -> tuple[list[Session], str | None]:
        """Returns at most `limit` of the tenant's live sessions in the order of ids, and the id to go on after."""
        prefix = records.key(tenant, "")
        page = self._store.page(prefix, records.key(tenant, after), limit, now=self._clock(), model=model)
        sessions = [Session(records.session_id(key), record) for key, record in page.sessions]
        return sessions, None if page.after is None else records.session_id(page.after)

    def claim(self, tenant: str, session_id: str | None) -> "Claim":
        """Returns a claim on the id for a session to come; None makes a new id.

        Raises SessionExistsError if a live session has the id, and UnreadableRecordError.
        """
        session_id = session_id or token_hex(16)
        key = records.key(tenant, session_id)
        stored = self.load(key)
        if isinstance(stored, Record) and stored.alive(self._clock()):
            raise SessionExistsError(session_id)
        if isinstance(stored, UnreadableRecordError):
            raise stored
        return Claim(session_id, key, stored.revision if stored else None)

    def begin(self, claim: "Claim", record: Record, ttl_s: float | None) -> Session:
        """Commits the record as a new session under the claimed id. Raises SessionExistsError if another was faster."""
        now, ttl = self._clock(), ttl_s or self._ttl_s
        created = record.replace(
            revision=records.new_revision(), created_at=now, last_step_at=now, ttl_s=ttl, expires_at=now + ttl
        )
        if not self._store.commit_many([Change(claim.key, claim.revision, created)])[0]:
            raise SessionExistsError(claim.session_id)
        return Session(claim.session_id, created)

    def fork(self, tenant: str, session_id: str, new_id: str | None, ttl_s: float | None) -> Session:
        """Creates a session in the same state, with the same statistics, that remembers none of the requests.

        Raises as `get` and `claim` do.
        """
        record = self.get(tenant, session_id).record
        forked = record.replace(requests=b"")
        return self.begin(self.claim(tenant, new_id), forked, ttl_s or record.ttl_s)

    def replace(self, tenant: str, session_id: str, before: Record, after: Record) -> Session | None:
        """Commits `after` in the place of the session's record `before`. Returns None if it was stepped meanwhile."""
        now, key = self._clock(), records.key(tenant, session_id)
        record = after.replace(revision=records.new_revision(), last_step_at=now, expires_at=now + after.ttl_s)
        (committed,) = self._store.commit_many([Change(key, before.revision, record)])
        return Session(session_id, record) if committed else None

    def delete(self, tenant: str, session_id: str) -> None:
        """Ends a live session, or sets a damaged one aside. Raises as `get` does."""
        key, committed = records.key(tenant, session_id), False
        while not committed:  # until no step was committed in between
            now, stored = self._clock(), self.load(key)
            if isinstance(stored, DamagedRecordError):
                self._store.quarantine(key)
                return
            record = live_record(session_id, stored, now)
            (committed,) = self._store.commit_many([Change(key, record.revision, record.tombstone("deleted", now))])

    def delete_many(self, tenant: str, sessions: SessionFilter) -> tuple[int, bool]:
        """Ends the chosen sessions, at most MOST_ENDED. Returns how many it ended, and whether more may be left.

        A session that is stepped meanwhile is not ended.
        """
        ended, left = 0, False
        for page in self._pages(tenant, sessions):
            now = self._clock()
            idle = [(key, record) for key, record in page if record.last_step_at <= now - sessions.idle_s]
            changes = [Change(key, record.revision, record.tombstone("deleted", now)) for key, record in idle]
            committed = self._store.commit_many(changes) if changes else []
            ended, left = ended + sum(committed), left or not all(committed)
            if ended >= MOST_ENDED:
                return ended, True
            take_loop_turn()
        return ended, left

    def _pages(self, tenant: str, sessions: SessionFilter) -> Iterator[Sequence[tuple[bytes, Record]]]:
        prefix = records.key(tenant, sessions.prefix)
        after: bytes | None = records.key(tenant, "")
        while after is not None:
            page = self._store.page(prefix, after, ENDED_AT_ONCE, now=self._clock(), model=sessions.model)
            yield page.sessions
            after = page.after


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim on an id that was free when it was checked.

    revision: of the tombstone that the store had under the key; None: it had nothing.
    """

    session_id: str
    key: bytes
    revision: int | None


def live_record(session_id: str, loaded: Loaded, now: float) -> Record:
    """Returns what was loaded if it is the record of a live session.

    Raises UnknownSessionError, SessionEndedError or UnreadableRecordError.
    """
    if isinstance(loaded, UnreadableRecordError):
        raise loaded
    if loaded is None:
        raise UnknownSessionError(session_id)
    if isinstance(loaded, Record):
        if loaded.alive(now):
            return loaded
        raise SessionEndedError(session_id, "expired", loaded.expires_at)
    if now >= loaded.forgotten_at:
        raise UnknownSessionError(session_id)
    raise SessionEndedError(session_id, loaded.ended, loaded.ended_at)
