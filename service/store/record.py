"""The record: a session's complete data as one value and as bytes; and the tombstone of an ended session.

Owns the formats on disk and on the wire to a store. State, answers and accuracy are opaque bytes here: only the engine
knows the model that gives them meaning. There is no pickle: a fixed header, then sections, and a checksum over all.

Every format, present and future, begins with the same 16 bytes: `OWR`, the format's number as one byte, the CRC-32 of
the bytes after it, and the revision. A number is never used for two layouts. Every version reads the records of all
earlier released versions, so a format's reader stays in `_READERS` for good.
"""

import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from random import getrandbits
from typing import Literal, NamedTuple

from onward.service.errors import DamagedRecordError, ForeignRecordError, UnreadableRecordError

EndReason = Literal["expired", "deleted"]

TOMBSTONE_S = 86_400.0
"""The seconds for which a tombstone is stored."""

_NAME = b"OWR"  # Onward record
_RECORD, _TOMBSTONE = 4, 5  # the formats; before format 5, a tombstone was a record of format 4 without sections
_MAGIC, _TOMBSTONE_MAGIC = _NAME + bytes([_RECORD]), _NAME + bytes([_TOMBSTONE])
_CRC = struct.Struct("<4sI")
REVISION = slice(_CRC.size, _CRC.size + 8)
"""The position of the revision in a record's bytes, of any format."""
_HEAD = struct.Struct("<QQddddBQddI32sHHIIII")
_START = _CRC.size + _HEAD.size
_END = struct.Struct("<QBd")
_ENDED: tuple[EndReason | None, ...] = (None, "expired", "deleted")


class BundleRef(NamedTuple):
    """The bundle that a session runs on: name, version, and the digest of its graph and layout."""

    model: str
    version: int
    digest: bytes


class Tombstone(NamedTuple):
    """When and why a session ended, in seconds since 1970 UTC; stored until `forgotten_at`.

    `revision` is compared like a record's, so that only one of two concurrent creations of the same id succeeds.
    """

    revision: int
    ended: EndReason
    ended_at: float

    @property
    def forgotten_at(self) -> float:
        return self.ended_at + TOMBSTONE_S

    def to_bytes(self) -> bytes:
        body = _END.pack(self.revision, _ENDED.index(self.ended), self.ended_at)
        return _CRC.pack(_TOMBSTONE_MAGIC, zlib.crc32(body)) + body


class Record(NamedTuple):
    """A living session, until `expires_at`. Times are in seconds since 1970 UTC.

    `revision` is a new random number for each commit; stores compare and set on it, so that a step is never applied to
    another state than the one it was computed from, even if the session was ended and created again. A record is a
    tuple because every step creates one, and a frozen dataclass takes two to three times as long to create.
    """

    revision: int
    tenant: str
    ref: BundleRef
    step: int
    created_at: float
    last_step_at: float
    ttl_s: float
    expires_at: float
    state: bytes
    surprise: tuple[int, float, float] = (0, 0.0, 0.0)  # see onward.model.scoring.surprise
    requests: bytes = b""  # the last ones and their answers: see onward.service.store.idempotency
    history: bytes = b""
    accuracy: bytes = b""  # running statistics: see onward.model.scoring.accuracy

    def to_bytes(self) -> bytes:
        (
            revision, tenant, ref, step, created_at, last_step_at, ttl_s, expires_at, state, surprise,
            requests, history, accuracy,
        ) = self  # fmt: skip
        names, *lengths = _names(tenant, ref.model)
        head = _HEAD.pack(
            revision, step, created_at, last_step_at, ttl_s, expires_at, 0, *surprise, ref.version,
            ref.digest, *lengths, len(requests), len(history), len(accuracy), len(state),
        )  # fmt: skip
        body = b"".join((head, names, requests, history, accuracy, state))
        return _CRC.pack(_MAGIC, zlib.crc32(body)) + body

    def alive(self, now: float) -> bool:
        return now < self.expires_at

    def tombstone(self, reason: EndReason, at: float) -> Tombstone:
        """Returns the tombstone of the session if it ended at `at`."""
        return Tombstone(new_revision(), reason, at)


@lru_cache(1024)
def _names(tenant: str, model: str) -> tuple[bytes, int, int]:
    """Returns both names as bytes, and the length of each; cached because most steps repeat an earlier pair."""
    tenant_bytes, model_bytes = tenant.encode(), model.encode()
    return tenant_bytes + model_bytes, len(tenant_bytes), len(model_bytes)


def from_bytes(data: bytes) -> Record | Tombstone:
    """Decodes `to_bytes`. Raises DamagedRecordError, or ForeignRecordError for another version's format."""
    if len(data) < REVISION.stop or not data.startswith(_NAME):
        raise DamagedRecordError("it is no record of Onward's, or cut short")
    read = _READERS.get(data[len(_NAME)])
    if read is None:
        raise ForeignRecordError(data[len(_NAME)], sorted(_READERS))
    if zlib.crc32(memoryview(data)[_CRC.size :]) != _CRC.unpack_from(data)[1]:
        raise DamagedRecordError("its checksum does not match")
    return read(data)


def _record(data: bytes) -> Record | Tombstone:
    """Reads format 4, which was once the format of tombstones too."""
    if len(data) < _START:
        raise DamagedRecordError("it is no record of Onward's, or cut short")
    (
        revision, step, created_at, last_step_at, ttl_s, expires_at, ended, count, mean, recent, version, digest,
        tenant, model, requests, history, accuracy, state,
    ) = _HEAD.unpack_from(data, _CRC.size)  # fmt: skip
    names = _START + tenant + model  # each length becomes the end of its section
    requests += names
    history += requests
    accuracy += history
    state += accuracy
    if state != len(data):
        raise DamagedRecordError(f"{len(data)} bytes long, its sections end at {state}")
    if ended:
        return Tombstone(revision, _reason(ended), expires_at - TOMBSTONE_S)
    tenant_name, ref = _owner(data[_START:names], tenant, version, digest)
    return Record(
        revision, tenant_name, ref, step, created_at, last_step_at, ttl_s, expires_at, data[accuracy:state],
        (count, mean, recent), data[names:requests], data[requests:history], data[history:accuracy],
    )  # fmt: skip


def _tombstone(data: bytes) -> Tombstone:
    """Reads format 5."""
    if len(data) != _CRC.size + _END.size:
        raise DamagedRecordError(f"a tombstone of {len(data)} bytes")
    revision, ended, ended_at = _END.unpack_from(data, _CRC.size)
    return Tombstone(revision, _reason(ended), ended_at)


def _reason(number: int) -> EndReason:
    if number < len(_ENDED) and (reason := _ENDED[number]):
        return reason
    raise DamagedRecordError(f"its reason for the session's end is {number}, which has no meaning")


_READERS: dict[int, Callable[[bytes], Record | Tombstone]] = {_RECORD: _record, _TOMBSTONE: _tombstone}
"""The readers by the format's number."""


@lru_cache(1024)
def _owner(names: bytes, tenant_bytes: int, version: int, digest: bytes) -> tuple[str, BundleRef]:
    """Returns the tenant, whose name has `tenant_bytes` bytes, and the bundle; cached, as most records repeat."""
    return names[:tenant_bytes].decode(), BundleRef(names[tenant_bytes:].decode(), version, digest)


def new_record(
    tenant: str, ref: BundleRef, state: bytes, step: int, surprise: tuple[int, float, float], accuracy: bytes = b""
) -> Record:
    """Returns the record of a session that has not begun: its times and its revision are set when it begins."""
    return Record(
        revision=0, tenant=tenant, ref=ref, step=step, created_at=0, last_step_at=0, ttl_s=0, expires_at=0, state=state,
        surprise=surprise, accuracy=accuracy,
    )  # fmt: skip


def decode(data: bytes | None) -> Record | Tombstone | UnreadableRecordError | None:
    """Returns the result of `from_bytes`, or the error that it raises; None for None."""
    if data is None:
        return None
    try:
        return from_bytes(data)
    except UnreadableRecordError as error:
        return error


def new_revision() -> int:
    """Returns a random number of 64 bits, which no other commit has."""
    return getrandbits(64)


def revision_of(data: bytes) -> int:
    """Returns the revision of a record's bytes, of any format, without decoding the rest."""
    return int.from_bytes(data[REVISION], "little")


def revision_bytes(revision: int) -> bytes:
    """Returns the revision as it is stored in a record's bytes, at REVISION."""
    return revision.to_bytes(8, "little")


def key(tenant: str, session_id: str) -> bytes:
    """Returns the session's key in a store; a tenant's sessions are adjacent, in the order of their ids."""
    return f"{tenant}/{session_id}".encode()


def session_id(store_key: bytes) -> str:
    """Returns the id of the session that has this key."""
    return store_key.decode().partition("/")[2]
