"""The cache of the records that a process has committed."""

from onward.service.store.record_cache import RecordCache
from tests.contracts.test_stores import key, session


def test_the_cache_is_bounded_and_evicts_the_oldest_records() -> None:
    """The limit is in bytes, and replacing a session's record many times uses it only once."""
    cache = RecordCache(most_bytes=20_000)
    records = [session(revision).replace(state=bytes(4000)) for revision in range(10)]
    for number, record in enumerate(records):
        for _ in range(3):
            cache.put(key(f"s{number}"), record)
    cached = [number for number in range(10) if cache.get(key(f"s{number}")) is records[number]]
    assert cached == [6, 7, 8, 9]
    cache.put(key("s7"), records[0])
    cache.remove(key("s6"))
    cache.remove(key("s6"))
    cache.put(key("s1"), records[1])
    assert [cache.get(key(f"s{number}")) for number in (6, 7, 8, 9, 1)] == [
        None,
        records[0],
        records[8],
        records[9],
        records[1],
    ]
    cache.put(key("s2"), records[2])
    assert cache.get(key("s8")) is None
