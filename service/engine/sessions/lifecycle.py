"""The lives of sessions: found, listed, forked, carried away and ended. No model runs here.

Owns which ids are free, and what of a record a new life keeps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from secrets import token_hex

from onward.service.engine.event_loop import turn
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
"""How many sessions are ended in one commit, and in one call."""


@dataclass(frozen=True, slots=True)
class Session:
    """A session as its client sees it."""

    session_id: str
    record: Record


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which sessions: of this model, with ids that begin so, not stepped for so many seconds."""

    model: str | None = None
    prefix: str = ""
    idle_s: float = 0.0


class Lives:
    def __init__(
        self, store: Store, clock: Callable[[], float], ttl_s: float, damaged: Callable[[], None] | None = None
    ) -> None:
        """`clock` gives seconds since 1970 UTC. ttl_s: of sessions that name none. damaged: is told of each."""
        self._store, self._clock, self._ttl_s, self._damaged = store, clock, ttl_s, damaged

    def load(self, key: bytes) -> Loaded:
        (record,) = self._store.load_many([key])
        if self._damaged is not None and isinstance(record, DamagedRecordError):
            self._damaged()
        return record

    def session(self, tenant: str, session_id: str) -> Session:
        """Raises UnknownSessionError, SessionEndedError, UnreadableRecordError."""
        record = self.load(records.key(tenant, session_id))
        return Session(session_id, living(session_id, record, self._clock()))

    def sessions(self, tenant: str, after: str, limit: int, model: str | None) -> tuple[list[Session], str | None]:
        """A page of the tenant's living sessions in the order of their ids, and the id to go on after."""
        prefix = records.key(tenant, "")
        page = self._store.page(prefix, records.key(tenant, after), limit, now=self._clock(), model=model)
        found = [Session(records.session_id(key), record) for key, record in page.sessions]
        return found, None if page.after is None else records.session_id(page.after)

    def claim(self, tenant: str, session_id: str | None) -> "Claim":
        """An id for a session to come: this one, or None: a new one. Raises SessionExistsError where it is taken."""
        session_id = session_id or token_hex(16)
        key = records.key(tenant, session_id)
        before = self.load(key)
        if isinstance(before, Record) and before.alive(self._clock()):
            raise SessionExistsError(session_id)
        if isinstance(before, UnreadableRecordError):
            raise before
        return Claim(session_id, key, before.revision if before else None)

    def begin(self, claim: "Claim", record: Record, ttl_s: float | None) -> Session:
        """The record lives from now on under the id. Raises SessionExistsError where another was faster."""
        now, ttl = self._clock(), ttl_s or self._ttl_s
        born = record._replace(
            revision=records.new_revision(), created_at=now, last_step_at=now, ttl_s=ttl, expires_at=now + ttl
        )
        if not self._store.commit_many([Change(claim.key, claim.before, born)])[0]:
            raise SessionExistsError(claim.session_id)
        return Session(claim.session_id, born)

    def fork(self, tenant: str, session_id: str, new_id: str | None, ttl_s: float | None) -> Session:
        """A session of its own in the same state, with the same statistics. Requests of the first are not its own.

        Raises as `session` and `claim` do.
        """
        record = self.session(tenant, session_id).record
        fresh = record._replace(requests=b"")
        return self.begin(self.claim(tenant, new_id), fresh, ttl_s or record.ttl_s)

    def replaced(self, tenant: str, session_id: str, before: Record, after: Record) -> Session | None:
        """The session with another record in the place of this one; None where it was stepped meanwhile."""
        now, key = self._clock(), records.key(tenant, session_id)
        record = after._replace(revision=records.new_revision(), last_step_at=now, expires_at=now + after.ttl_s)
        (done,) = self._store.commit_many([Change(key, before.revision, record)])
        return Session(session_id, record) if done else None

    def delete(self, tenant: str, session_id: str) -> None:
        """Ends a living session, or sets a damaged one aside. Raises as `session` does."""
        key, committed = records.key(tenant, session_id), False
        while not committed:  # until no step came in between
            now, found = self._clock(), self.load(key)
            if isinstance(found, DamagedRecordError):
                self._store.quarantine(key)
                return
            record = living(session_id, found, now)
            (committed,) = self._store.commit_many([Change(key, record.revision, record.tombstone("deleted", now))])

    def delete_many(self, tenant: str, chosen: Chosen) -> tuple[int, bool]:
        """Ends the chosen sessions, at most MOST_ENDED; how many it ended, and whether more may be left.

        One that is stepped meanwhile lives on, and is left.
        """
        ended, left = 0, False
        for page in self._pages(tenant, chosen):
            now = self._clock()
            idle = [(key, record) for key, record in page if record.last_step_at <= now - chosen.idle_s]
            changes = [Change(key, record.revision, record.tombstone("deleted", now)) for key, record in idle]
            committed = self._store.commit_many(changes) if changes else []
            ended, left = ended + sum(committed), left or not all(committed)
            if ended >= MOST_ENDED:
                return ended, True
            turn()
        return ended, left

    def _pages(self, tenant: str, chosen: Chosen) -> Iterator[Sequence[tuple[bytes, Record]]]:
        prefix = records.key(tenant, chosen.prefix)
        after: bytes | None = records.key(tenant, "")
        while after is not None:
            page = self._store.page(prefix, after, ENDED_AT_ONCE, now=self._clock(), model=chosen.model)
            yield page.sessions
            after = page.after


@dataclass(frozen=True, slots=True)
class Claim:
    """An id that was free when it was looked at, and what lay there: the revision of a tombstone, or nothing."""

    session_id: str
    key: bytes
    before: int | None


def living(session_id: str, record: Loaded, now: float) -> Record:
    """The record of a living session. Raises UnknownSessionError, SessionEndedError or UnreadableRecordError."""
    if isinstance(record, UnreadableRecordError):
        raise record
    if record is None:
        raise UnknownSessionError(session_id)
    if isinstance(record, Record):
        if record.alive(now):
            return record
        raise SessionEndedError(session_id, "expired", record.expires_at)
    if now >= record.forgotten_at:
        raise UnknownSessionError(session_id)
    raise SessionEndedError(session_id, record.ended, record.ended_at)
