"""The cache of the records that a process has committed."""

from onward.service.store.contract import Change, Loaded
from onward.service.store.record_cache import RecordCache
from tests.contracts.test_stores import key, session


def cached_record(cache: RecordCache, name: str) -> Loaded:
    (record,) = cache.load([key(name)], lambda missing: [None] * len(missing), fresh=False)
    return record


def test_the_cache_is_bounded_and_evicts_the_oldest_records() -> None:
    """The limit is in bytes, and replacing a session's record many times uses it only once."""
    cache = RecordCache(most_bytes=20_000)
    records = [session(revision).replace(state=bytes(4000)) for revision in range(10)]
    for number, record in enumerate(records):
        for _ in range(3):
            cache.update([Change(key(f"s{number}"), None, record)], [True])
    cached = [number for number in range(10) if cached_record(cache, f"s{number}") is records[number]]
    assert cached == [6, 7, 8, 9]
    cache.update([Change(key("s7"), None, records[0])], [True])
    cache.remove(key("s6"))
    cache.remove(key("s6"))
    cache.update([Change(key("s1"), None, records[1])], [True])
    assert [cached_record(cache, f"s{number}") for number in (6, 7, 8, 9, 1)] == [
        None,
        records[0],
        records[8],
        records[9],
        records[1],
    ]
    cache.update([Change(key("s2"), None, records[2])], [True])
    assert cached_record(cache, "s8") is None
