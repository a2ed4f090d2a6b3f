"""The store contract: the operations on stored sessions that the engine needs.

Every operation is atomic, may be called from any process, and raises StoreUnavailableError or StoreFullError if the
backend fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from onward.service.errors import UnreadableRecordError
from onward.service.store.record import Record, Tombstone

RESTORE = "restore the folder from a backup, or move it away to begin with an empty store"
"""The advice in error messages about a damaged store on this machine."""

Loaded = Record | Tombstone | UnreadableRecordError | None


class Change(NamedTuple):
    """A conditional write: sets `key` to `record` if the stored revision is `expected` (None: nothing is stored).

    advances: the record is the next one of a living session on the same model, so that no index changes.
    """

    key: bytes
    expected: int | None
    record: Record | Tombstone
    advances: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Living sessions in the order of their keys; `after` is the position of the next page, None at the end."""

    sessions: list[tuple[bytes, Record]]
    after: bytes | None


class Store(Protocol):
    def load_many(self, keys: Sequence[bytes], *, fresh: bool = True) -> list[Loaded]:
        """Returns an entry per key: its record or tombstone, an error if unreadable, or None.

        fresh: read the store. If False, an entry may be the record that this process committed last. That is sufficient
        to compute a next record from, as `commit_many` refuses a change whose expected revision is outdated; it is not
        sufficient to refuse a request.
        """

    def commit_many(self, changes: Sequence[Change]) -> list[bool]:
        """Applies every change whose expected revision is stored, and returns True for each of these.

        On return the changes survive a killed process.
        """

    def page(self, prefix: bytes, after: bytes, limit: int, *, now: float, model: str | None = None) -> Page:
        """Returns at most `limit` living sessions whose key starts with `prefix` and is greater than `after`.

        A page may be short or even empty although more follow: only `after` of the page shows whether it is the last.
        """

    def count(self) -> dict[tuple[str, int], int]:
        """Returns the number of sessions by model and version; an expired session counts until it is swept.

        A session whose record cannot be read counts until it is quarantined or ended by a version that reads it.
        """

    def sweep(self, now: float, limit: int = 1000) -> int:
        """Ends expired sessions and deletes tombstones that are over; returns how many entries it examined.

        If that is `limit`, more may be due. Returns 0 at once while another process sweeps. Records that cannot be read
        are skipped, and do not delay the sessions that are due after them.
        """

    def quarantine(self, key: bytes) -> None:
        """Moves a damaged record out of the way and retains its bytes for inspection; never one of another version."""

    def flush(self) -> None:
        """Writes all committed changes to disk, so that they survive a crash of the machine too."""

    def close(self) -> None: ...
