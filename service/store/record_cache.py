"""The records that this process committed last: what a store need not be asked for again.

Owns how many of them are remembered. Whether one is still what the store has, the next commit tells: it is compared.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from onward.service.store.contract import Change, Loaded
from onward.service.store.record import Record, decode

MOST_BYTES = 4 * 2**20
_OBJECTS = 900
"""What a record takes beside its bytes, as Python's objects: about so many bytes."""


class RecordCache:
    """Bounded by bytes; what was committed longest ago is forgotten first."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._records: OrderedDict[bytes, tuple[Record, int]] = OrderedDict()  # with their weights
        self._most, self._bytes = most_bytes, 0

    def filled(
        self, keys: Sequence[bytes], load: Callable[[list[bytes]], Sequence[bytes | None]], *, fresh: bool
    ) -> list[Loaded]:
        """One entry a key, as `Store.load_many` says; `load` gives the bytes of those that are not known, or all."""
        known = [None if fresh else self.get(key) for key in keys]
        unknown = [key for key, record in zip(keys, known, strict=True) if record is None]
        loaded = iter(load(unknown) if unknown else ())
        return [decode(next(loaded)) if record is None else record for record in known]

    def committed(self, changes: Sequence[Change], done: Sequence[bool]) -> None:
        """Keeps the records that were committed, forgets what was refused or has ended."""
        for change, kept in zip(changes, done, strict=True):
            if kept and isinstance(change.record, Record):
                self.keep(change.key, change.record)
            else:
                self.forget(change.key)

    def get(self, key: bytes) -> Record | None:
        known = self._records.get(key)
        return None if known is None else known[0]

    def keep(self, key: bytes, record: Record) -> None:
        self.forget(key)
        weight = _OBJECTS + len(record.state) + len(record.requests) + len(record.history) + len(record.accuracy)
        self._records[key] = record, weight
        self._bytes += weight
        while self._bytes > self._most:
            self._bytes -= self._records.popitem(last=False)[1][1]

    def forget(self, key: bytes) -> None:
        before = self._records.pop(key, None)
        if before is not None:
            self._bytes -= before[1]
