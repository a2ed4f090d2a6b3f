"""The binary format of records and tombstones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.service.errors import DamagedRecordError, ForeignRecordError
from onward.service.store import record as records
from onward.service.store.record import BundleRef, Record, Tombstone
from tests.contracts.test_stores import FORMAT_4_TOMBSTONE

TIMES = st.floats(0, 4e9)
RECORDS = st.builds(
    Record.pack,
    revision=st.integers(0, 2**64 - 1),
    tenant=st.text("abc", max_size=64),
    ref=st.builds(
        BundleRef, st.text("abc-", max_size=64), st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32)
    ),
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
)
TOMBSTONES = st.builds(Tombstone, st.integers(0, 2**64 - 1), st.sampled_from(["expired", "deleted"]), TIMES)


@given(RECORDS | TOMBSTONES)
def test_a_record_comes_back_from_its_bytes(record: Record | Tombstone) -> None:
    """Every field survives the round trip, and the revision can be read without the rest."""
    data = record.to_bytes()
    assert records.from_bytes(data) == record
    assert records.revision_of(data) == record.revision


@given(RECORDS | TOMBSTONES, st.data())
def test_any_flipped_bit_is_damage(record: Record | Tombstone, data: st.DataObject) -> None:
    """Any changed bit and any missing or additional byte is detected; the format number is excepted."""
    good = record.to_bytes()
    flipped = bytearray(good)
    flipped[data.draw(st.integers(0, len(good) - 1).filter(lambda index: index != 3))] ^= 1 << data.draw(
        st.integers(0, 7)
    )
    for damaged in (bytes(flipped), good[: data.draw(st.integers(0, len(good) - 1))], good + b"\0"):
        with pytest.raises(DamagedRecordError):
            records.from_bytes(damaged)


@given(RECORDS | TOMBSTONES, st.integers(0, 255))
def test_another_formats_number_never_makes_another_record(record: Record | Tombstone, number: int) -> None:
    """Bytes with an unknown format number belong to another version; a known but wrong format number is damage."""
    good = record.to_bytes()
    if number == good[3]:
        return
    with pytest.raises(DamagedRecordError if number in (4, 5, 6) else ForeignRecordError):
        records.from_bytes(good[:3] + bytes([number]) + good[4:])


def test_every_version_reads_the_records_of_earlier_versions() -> None:
    """The bytes were written by the version that introduced each format."""
    ref = BundleRef("pulse", 3, bytes(range(32)))
    record = Record.pack(
        revision=0x0123456789ABCDEF, tenant="public", ref=ref, step=7, created_at=1_700_000_000.25,
        last_step_at=1_700_000_060.5, ttl_s=3600.0, expires_at=1_700_003_660.5, state=b"state",
        surprise=(7, 0.5, 0.25), requests=b"requests", history=b"history", accuracy=b"accuracy",
    )  # fmt: skip
    assert records.from_bytes(FORMAT_4) == record
    assert records.from_bytes(FORMAT_6) == record
    assert record.to_bytes() == FORMAT_7
    assert records.from_bytes(FORMAT_7) == record
    tombstone = Tombstone(0xFEDCBA9876543210, "deleted", 1_700_000_100.0)
    assert records.from_bytes(FORMAT_4_TOMBSTONE) == tombstone
    assert records.from_bytes(FORMAT_5) == tombstone
    assert tombstone.to_bytes() == FORMAT_5


FORMAT_4 = bytes.fromhex(
    "4f575204f26c837eefcdab8967452301070000000000000000001040fc54d9410000204ffc54d941000000000020ac40000020d3ff54d941"
    "000700000000000000000000000000e03f000000000000d03f03000000000102030405060708090a0b0c0d0e0f101112131415161718191a"
    "1b1c1d1e1f06000500080000000700000008000000050000007075626c696370756c73657265717565737473686973746f72796163637572"
    "6163797374617465"
)
FORMAT_7 = bytes.fromhex(
    "4f5752074293887defcdab8967452301070000000000000000001040fc54d9410000204ffc54d941000000000020ac40000020d3ff54d941"
    "0700000000000000000000000000e03f000000000000d03f03000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b"
    "1c1d1e1f0800000005000000060005000800000007000000616363757261637973746174657075626c696370756c73657265717565737473"
    "686973746f7279"
)
FORMAT_6 = bytes.fromhex(
    "4f5752064293887defcdab8967452301070000000000000000001040fc54d9410000204ffc54d941000000000020ac40000020d3ff54d941"
    "0700000000000000000000000000e03f000000000000d03f03000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b"
    "1c1d1e1f0800000005000000060005000800000007000000616363757261637973746174657075626c696370756c73657265717565737473"
    "686973746f7279"
)
FORMAT_5 = bytes.fromhex("4f5752058ef3e8881032547698badcfe0200000059fc54d941")


def test_a_record_of_another_version_of_onward_is_not_called_damaged() -> None:
    """The error names the record's format and the readable formats; bytes that are no record are called damaged."""
    data = records.new_record("public", BundleRef("m", 1, bytes(32)), b"", 0, (0, 0.0, 0.0)).to_bytes()
    for foreign in (3, 8):
        with pytest.raises(
            ForeignRecordError, match=f"in format {foreign}, and this version reads formats 4, 5, 6 and 7"
        ):
            records.from_bytes(data[:3] + bytes([foreign]) + data[4:])
    for damaged in (b"", b"OWR", data[:15], b"\x00" * 300):
        with pytest.raises(DamagedRecordError, match="it is no record of Onward's, or cut short"):
            records.from_bytes(damaged)
