"""The record: everything that a session is, as one value and as bytes; and the tombstone of one that has ended.

Owns the formats on disk and on the wire to a store. State, answers and accuracy are opaque bytes here: only the engine
knows the model that gives them meaning. No pickle: a fixed head, then sections, a checksum over all of it.

Every format, present and future, begins with the same 16 bytes: `OWR`, the format's number as one byte, the CRC-32 of
all that follows, and the revision. A number is never used for two layouts. What a released version wrote is read by
every later one, so a format's reader stays in `_READERS` for good.
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
"""How long it is known why a session ended."""

_NAME = b"OWR"  # Onward record
_RECORD, _TOMBSTONE = 4, 5  # the formats; until format 5, a tombstone was a record of format 4 without its sections
_MAGIC, _TOMBSTONE_MAGIC = _NAME + bytes([_RECORD]), _NAME + bytes([_TOMBSTONE])
_CRC = struct.Struct("<4sI")
REVISION = slice(_CRC.size, _CRC.size + 8)
"""Where the revision lies in a record's bytes, of any format."""
_HEAD = struct.Struct("<QQddddBQddI32sHHIIII")
_START = _CRC.size + _HEAD.size
_END = struct.Struct("<QBd")
_ENDED: tuple[EndReason | None, ...] = (None, "expired", "deleted")


class BundleRef(NamedTuple):
    """The bundle that a session runs on: its name, its version, and the digest of its graph and layout."""

    model: str
    version: int
    digest: bytes


class Tombstone(NamedTuple):
    """A session that ended at `ended_at`, in seconds since 1970 UTC. It says when and why until `forgotten_at`.

    `revision` is compared as a record's is, so that an id is created anew once.
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

    `revision` is a random number, a new one for each commit; stores compare and set on it, so that a step is never
    applied to another state than it was computed from, even where a session was ended and created anew. It is a tuple
    because one is made for every step, and a frozen dataclass takes two to three times as long to make.
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
    surprise: tuple[int, float, float] = (0, 0.0, 0.0)  # in short: see onward.model.scoring.surprise
    requests: bytes = b""  # the last ones, and their answers: see onward.service.store.idempotency
    history: bytes = b""
    accuracy: bytes = b""  # how predictions came true: see onward.model.scoring.accuracy

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
        """What is left of the session where it ended at `at`."""
        return Tombstone(new_revision(), reason, at)


@lru_cache(1024)
def _names(tenant: str, model: str) -> tuple[bytes, int, int]:
    """Both as bytes, and the length of each: nearly every step's are those of a step before."""
    one, other = tenant.encode(), model.encode()
    return one + other, len(one), len(other)


def from_bytes(data: bytes) -> Record | Tombstone:
    """What `to_bytes` wrote. Raises DamagedRecordError, or ForeignRecordError where another version wrote it."""
    if len(data) < REVISION.stop or not data.startswith(_NAME):
        raise DamagedRecordError("it is no record of Onward's, or cut short")
    read = _READERS.get(data[len(_NAME)])
    if read is None:
        raise ForeignRecordError(data[len(_NAME)], sorted(_READERS))
    if zlib.crc32(memoryview(data)[_CRC.size :]) != _CRC.unpack_from(data)[1]:
        raise DamagedRecordError("its checksum does not match")
    return read(data)


def _record(data: bytes) -> Record | Tombstone:
    """Of format 4, which once was a tombstone's too."""
    if len(data) < _START:
        raise DamagedRecordError("it is no record of Onward's, or cut short")
    (
        revision, step, created_at, last_step_at, ttl_s, expires_at, ended, count, mean, recent, version, digest,
        tenant, model, requests, history, accuracy, state,
    ) = _HEAD.unpack_from(data, _CRC.size)  # fmt: skip
    names = _START + tenant + model  # where the section ends, and so the others
    requests += names
    history += requests
    accuracy += history
    state += accuracy
    if state != len(data):
        raise DamagedRecordError(f"{len(data)} bytes long, its sections end at {state}")
    if ended:
        return Tombstone(revision, _reason(ended), expires_at - TOMBSTONE_S)
    whose, ref = _told(data[_START:names], tenant, version, digest)
    return Record(
        revision, whose, ref, step, created_at, last_step_at, ttl_s, expires_at, data[accuracy:state],
        (count, mean, recent), data[names:requests], data[requests:history], data[history:accuracy],
    )  # fmt: skip


def _tombstone(data: bytes) -> Tombstone:
    """Of format 5."""
    if len(data) != _CRC.size + _END.size:
        raise DamagedRecordError(f"a tombstone of {len(data)} bytes")
    revision, ended, ended_at = _END.unpack_from(data, _CRC.size)
    return Tombstone(revision, _reason(ended), ended_at)


def _reason(number: int) -> EndReason:
    if number < len(_ENDED) and (reason := _ENDED[number]):
        return reason
    raise DamagedRecordError(f"it says {number} for why the session ended")


_READERS: dict[int, Callable[[bytes], Record | Tombstone]] = {_RECORD: _record, _TOMBSTONE: _tombstone}
"""By the format's number."""


@lru_cache(1024)
def _told(names: bytes, tenant: int, version: int, digest: bytes) -> tuple[str, BundleRef]:
    """The tenant, whose name has so many bytes, and the bundle: nearly every record's are those of one before."""
    return names[:tenant].decode(), BundleRef(names[tenant:].decode(), version, digest)


def new_record(
    tenant: str, ref: BundleRef, state: bytes, step: int, surprise: tuple[int, float, float], accuracy: bytes = b""
) -> Record:
    """Of a session that is not begun: its times, and its revision, are set when it is."""
    return Record(
        revision=0, tenant=tenant, ref=ref, step=step, created_at=0, last_step_at=0, ttl_s=0, expires_at=0, state=state,
        surprise=surprise, accuracy=accuracy,
    )  # fmt: skip


def decode(data: bytes | None) -> Record | Tombstone | UnreadableRecordError | None:
    """What `from_bytes` says, or the error that it raises; None of nothing."""
    if data is None:
        return None
    try:
        return from_bytes(data)
    except UnreadableRecordError as error:
        return error


def new_revision() -> int:
    """One that no other commit has."""
    return getrandbits(64)


def revision_of(data: bytes) -> int:
    """The revision of a record's bytes, of any format, without reading the rest."""
    return int.from_bytes(data[REVISION], "little")


def revision_bytes(revision: int) -> bytes:
    """As they lie in a record's bytes, from the eighth on."""
    return revision.to_bytes(8, "little")


def key(tenant: str, session_id: str) -> bytes:
    """Under which a store keeps the session; a tenant's sessions lie together, in the order of their ids."""
    return f"{tenant}/{session_id}".encode()


def session_id(store_key: bytes) -> str:
    return store_key.decode().partition("/")[2]
