"""What a process remembers of what it committed."""

from onward.service.store.record_cache import RecordCache
from tests.contracts.test_stores import key, session


def test_it_is_bounded_and_the_oldest_give_way() -> None:
    """By bytes, however often one session is kept anew."""
    known = RecordCache(most_bytes=20_000)
    kept = [session(revision)._replace(state=bytes(4000)) for revision in range(10)]
    for number, record in enumerate(kept):
        for _ in range(3):
            known.keep(key(f"s{number}"), record)
    held = [number for number in range(10) if known.get(key(f"s{number}")) is kept[number]]
    assert held == [6, 7, 8, 9]
    known.keep(key("s7"), kept[0])
    known.forget(key("s6"))
    known.forget(key("s6"))
    known.keep(key("s1"), kept[1])
    assert [known.get(key(f"s{number}")) for number in (6, 7, 8, 9, 1)] == [None, kept[0], kept[8], kept[9], kept[1]]
    known.keep(key("s2"), kept[2])
    assert known.get(key("s8")) is None
