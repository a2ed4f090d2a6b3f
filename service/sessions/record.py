"""The record: everything that a session is, as one value and as bytes.

Owns the format on disk and on the wire to a store. State, answers and accuracy are opaque bytes here: only the engine
knows the model that gives them meaning. No pickle: a fixed head, then sections, a checksum over all of it.
"""

import struct
import zlib
from functools import lru_cache
from random import getrandbits
from typing import Literal, NamedTuple

from service.errors import DamagedRecordError

Ended = Literal["expired", "deleted"]

TOMBSTONE_S = 86_400.0
"""How long it is known why a session ended."""

_FORMAT = 4
_MAGIC = b"OWR" + bytes([_FORMAT])  # Onward record
_CRC = struct.Struct("<4sI")
_HEAD = struct.Struct("<QQddddBQddI32sHHIIII")
_START = _CRC.size + _HEAD.size
_ENDED: tuple[Ended | None, ...] = (None, "expired", "deleted")


class Ref(NamedTuple):
    """The bundle that a session runs on: its name, its version, and the digest of its graph and layout."""

    model: str
    version: int
    digest: bytes


class Record(NamedTuple):
    """A session. Times are in seconds since 1970 UTC.

    `revision` is a random number, a new one for each commit; stores compare and set on it, so that a step is never
    applied to another state than it was computed from, even where a session was ended and created anew.
    `ended` None: alive until `expires_at`. Else a tombstone, kept until `expires_at`. It is a tuple because one is made
    for every step, and a frozen dataclass takes two to three times as long to make.
    """

    revision: int
    tenant: str
    ref: Ref
    step: int
    created_at: float
    last_step_at: float
    ttl_s: float
    expires_at: float
    state: bytes
    surprise: tuple[int, float, float] = (0, 0.0, 0.0)  # in short: see model.scoring.surprise
    requests: bytes = b""  # the last ones, and their answers: see service.sessions.requests
    history: bytes = b""
    accuracy: bytes = b""  # how predictions came true: see model.scoring.accuracy
    ended: Ended | None = None

    def to_bytes(self) -> bytes:
        (
            revision, tenant, ref, step, created_at, last_step_at, ttl_s, expires_at, state, surprise,
            requests, history, accuracy, ended,
        ) = self  # fmt: skip
        names, *lengths = _names(tenant, ref.model)
        head = _HEAD.pack(
            revision, step, created_at, last_step_at, ttl_s, expires_at, _ENDED.index(ended), *surprise, ref.version,
            ref.digest, *lengths, len(requests), len(history), len(accuracy), len(state),
        )  # fmt: skip
        body = b"".join((head, names, requests, history, accuracy, state))
        return _CRC.pack(_MAGIC, zlib.crc32(body)) + body

    def alive(self, now: float) -> bool:
        return self.ended is None and now < self.expires_at

    def tombstone(self, reason: Ended, at: float) -> "Record":
        """What is kept of a session that ended at `at`, so that a late client learns when and why."""
        return self._replace(
            revision=new_revision(),
            ended=reason,
            expires_at=at + TOMBSTONE_S,
            state=b"",
            requests=b"",
            history=b"",
            accuracy=b"",
        )

    @property
    def ended_at(self) -> float:
        """When a tombstone's session ended."""
        return self.expires_at - TOMBSTONE_S


@lru_cache(1024)
def _names(tenant: str, model: str) -> tuple[bytes, int, int]:
    """Both as bytes, and the length of each: nearly every step's are those of a step before."""
    one, other = tenant.encode(), model.encode()
    return one + other, len(one), len(other)


def _foreign(data: bytes) -> str:
    """Why these are not a record's bytes."""
    name, version = data[: len(_MAGIC) - 1], data[len(_MAGIC) - 1 : len(_MAGIC)]
    if name == _MAGIC[:-1] and version not in (b"", _MAGIC[-1:]):
        return f"it is of format {version[0]}, and this version of Onward reads format {_FORMAT}"
    return "it is no record of Onward's, or cut short"


def from_bytes(data: bytes) -> Record:
    """The record that `to_bytes` wrote. Raises DamagedRecordError."""
    if len(data) < _START or not data.startswith(_MAGIC):
        raise DamagedRecordError(_foreign(data))
    if zlib.crc32(memoryview(data)[_CRC.size :]) != _CRC.unpack_from(data)[1]:
        raise DamagedRecordError("its checksum does not match")
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
    whose, ref = _told(data[_START:names], tenant, version, digest)
    return Record(
        revision, whose, ref, step, created_at, last_step_at, ttl_s, expires_at, data[accuracy:state],
        (count, mean, recent), data[names:requests], data[requests:history], data[history:accuracy],
        _ENDED[ended],
    )  # fmt: skip


@lru_cache(1024)
def _told(names: bytes, tenant: int, version: int, digest: bytes) -> tuple[str, Ref]:
    """The tenant, whose name has so many bytes, and the bundle: nearly every record's are those of one before."""
    return names[:tenant].decode(), Ref(names[tenant:].decode(), version, digest)


def first(
    tenant: str, ref: Ref, state: bytes, step: int, surprise: tuple[int, float, float], accuracy: bytes = b""
) -> Record:
    """Of a session that is not begun: its times, and its revision, are set when it is."""
    return Record(
        revision=0, tenant=tenant, ref=ref, step=step, created_at=0, last_step_at=0, ttl_s=0, expires_at=0, state=state,
        surprise=surprise, accuracy=accuracy,
    )  # fmt: skip


def decoded(data: bytes | None) -> Record | DamagedRecordError | None:
    """The record, or what is wrong with its bytes; None of nothing."""
    if data is None:
        return None
    try:
        return from_bytes(data)
    except DamagedRecordError as error:
        return error


def new_revision() -> int:
    """One that no other commit has."""
    return getrandbits(64)


def revision_of(data: bytes) -> int:
    """The revision of a record's bytes, without reading the rest."""
    return int.from_bytes(data[_CRC.size : _CRC.size + 8], "little")


def revision_bytes(revision: int) -> bytes:
    """As they lie in a record's bytes, from the eighth on."""
    return revision.to_bytes(8, "little")


def counted_as(data: bytes) -> str | None:
    """The `model/version` that a record's bytes count for, without reading the rest; None for a tombstone's."""
    head = _HEAD.unpack_from(data, _CRC.size)
    ended, version, tenant, model = head[6], head[10], head[12], head[13]
    if ended:
        return None
    return f"{data[_START + tenant : _START + tenant + model].decode()}/{version}"


def key(tenant: str, session_id: str) -> bytes:
    """Under which a store keeps the session; a tenant's sessions lie together, in the order of their ids."""
    return f"{tenant}/{session_id}".encode()


def session_id(store_key: bytes) -> str:
    return store_key.decode().partition("/")[2]
