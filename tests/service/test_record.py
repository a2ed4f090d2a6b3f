"""The record's bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import DamagedRecordError
from service.sessions import record as records
from service.sessions.record import Record, Ref

TIMES = st.floats(0, 4e9)
RECORDS = st.builds(
    Record,
    revision=st.integers(0, 2**64 - 1),
    tenant=st.text("abc", max_size=64),
    ref=st.builds(Ref, st.text("abc-", max_size=64), st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32)),
    step=st.integers(0, 2**64 - 1),
    created_at=TIMES,
    last_step_at=TIMES,
    ttl_s=TIMES,
    expires_at=TIMES,
    state=st.binary(max_size=300),
    surprise=st.tuples(st.integers(0, 2**64 - 1), st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)),
    requests=st.binary(max_size=300),
    history=st.binary(max_size=300),
    accuracy=st.binary(max_size=300),
    ended=st.sampled_from([None, "expired", "deleted"]),
)


@given(RECORDS)
def test_a_record_comes_back_from_its_bytes(record: Record) -> None:
    """Every field survives, and the revision can be read alone."""
    data = record.to_bytes()
    assert records.from_bytes(data) == record
    assert records.revision_of(data) == record.revision


@given(RECORDS, st.data())
def test_any_flipped_bit_is_damage(record: Record, data: st.DataObject) -> None:
    """No bit can change without being noticed; nor can bytes be missing or added."""
    good = record.to_bytes()
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for wrong in (bytes(bad), good[: data.draw(st.integers(0, len(good) - 1))], good + b"\0"):
        with pytest.raises(DamagedRecordError):
            records.from_bytes(wrong)


def test_a_record_of_another_version_of_onward_is_not_called_damaged() -> None:
    """It says which format it is of, and which is read here; what is no record at all says that."""
    data = Record(1, "public", Ref("m", 1, bytes(32)), 0, 0.0, 0.0, 1.0, 1.0, b"").to_bytes()
    for other in (3, 5):
        with pytest.raises(DamagedRecordError, match=f"of format {other}, and this version of Onward reads format 4"):
            records.from_bytes(data[:3] + bytes([other]) + data[4:])
    for nothing in (b"", b"OWR", data[:20], b"\x00" * 300):
        with pytest.raises(DamagedRecordError, match="it is no record of Onward's, or cut short"):
            records.from_bytes(nothing)
