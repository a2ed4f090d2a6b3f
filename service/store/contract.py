"""The store contract: what the engine asks of the place where sessions live.

Every operation is atomic on its own, may be called from any process, and raises StoreUnavailableError or StoreFullError
where the backend fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from onward.service.errors import UnreadableRecordError
from onward.service.store.record import Record, Tombstone

RESTORE = "restore the folder from a backup, or move it away to begin with an empty store"
"""What to do where a store on this machine is damaged."""

Loaded = Record | Tombstone | UnreadableRecordError | None


class Change(NamedTuple):
    """Set `key` to `record` if its revision is `expected`; None: if the store has nothing under it.

    advances: the record is a living session's next one, on the same model, so nothing but the record changes.
    """

    key: bytes
    expected: int | None
    record: Record | Tombstone
    advances: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Living sessions in the order of their keys; `after` is where the next page begins, None at the end."""

    sessions: list[tuple[bytes, Record]]
    after: bytes | None


class Store(Protocol):
    def load_many(self, keys: Sequence[bytes], *, fresh: bool = True) -> list[Loaded]:
        """One entry a key: its record or tombstone, an error where its bytes cannot be read, None where nothing is.

        fresh: what the store has now. If not, it may be what this process committed last, which is good enough to go on
        from, as `commit_many` refuses what does not follow the store's own; never to refuse anybody anything.
        """

    def commit_many(self, changes: Sequence[Change]) -> list[bool]:
        """Applies every change whose expectation holds; True for these. Durable against a killed process on return."""

    def page(self, prefix: bytes, after: bytes, limit: int, *, now: float, model: str | None = None) -> Page:
        """At most `limit` living sessions whose key starts with `prefix` and lies behind `after`.

        A page may be short, even empty, though more follow: `after` alone says whether it is the last.
        """

    def count(self) -> dict[tuple[str, int], int]:
        """Sessions by model and version that have not ended; an expired one counts until it is swept.

        One whose record cannot be read counts until it is set aside, or the version that reads it ends it.
        """

    def sweep(self, now: float, limit: int = 1000) -> int:
        """Ends sessions that have expired and forgets tombstones whose time is over; returns how many it looked at.

        As many as `limit` means that more may wait. Does nothing, and returns 0, while another process sweeps. Records
        that cannot be read are left alone, and hold up nothing that is due behind them.
        """

    def quarantine(self, key: bytes) -> None:
        """Takes a damaged record out of the way, and keeps its bytes for inspection. Never one of another version."""

    def flush(self) -> None:
        """Brings what is committed to disk, so that it outlives a crash of the machine too."""

    def close(self) -> None: ...
