"""The record cache: the records that this process committed last, which save reads of the store.

Owns the bound on its size. A cached record may be outdated: the next commit's compare-and-set detects that.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from onward.service.store.contract import Change, Loaded
from onward.service.store.record import Record, decode

MOST_BYTES = 4 * 2**20
_OBJECT_BYTES = 200
"""About the memory of a record's Python objects, beside its bytes."""


class RecordCache:
    """A cache that is bounded by bytes; the record whose commit is longest ago is evicted first."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._records: OrderedDict[bytes, Record] = OrderedDict()
        self._most_bytes, self._bytes = most_bytes, 0

    def load(
        self, keys: Sequence[bytes], read: Callable[[list[bytes]], Sequence[bytes | None]], *, fresh: bool
    ) -> list[Loaded]:
        """Returns an entry per key, as `Store.load_many` does; `read` reads the keys that are not cached, or all."""
        if fresh:
            return [decode(data) for data in read(list(keys))]
        cached = list(map(self._records.get, keys))
        if all(cached):
            return list[Loaded](cached)
        missing = [key for key, record in zip(keys, cached, strict=True) if record is None]
        loaded = iter(read(missing))
        return [decode(next(loaded)) if record is None else record for record in cached]

    def update(self, changes: Sequence[Change], committed: Sequence[bool]) -> None:
        """Caches the records that were committed, and removes those that were refused or have ended."""
        for (key, _, record, _), is_committed in zip(changes, committed, strict=True):
            before = self._records.pop(key, None)
            if before is not None:
                self._bytes -= len(before.data) + _OBJECT_BYTES
            if is_committed and isinstance(record, Record):
                self._records[key] = record
                self._bytes += len(record.data) + _OBJECT_BYTES
        while self._bytes > self._most_bytes:
            self._bytes -= len(self._records.popitem(last=False)[1].data) + _OBJECT_BYTES

    def remove(self, key: bytes) -> None:
        record = self._records.pop(key, None)
        if record is not None:
            self._bytes -= len(record.data) + _OBJECT_BYTES
