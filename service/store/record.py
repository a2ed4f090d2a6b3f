"""The record: a session's complete data as one buffer; and the tombstone of an ended session.

A record's bytes are the same in memory, under the checksum and in a store. It has a part of fixed layout, which is the
head, the running statistics and the state of the model, and then what varies in length: the names of the tenant and of
the model, the last requests with their answers, and the history. So rows of one model are columns of one array, and a
step that keeps nothing of variable length copies the rest. This module does not read statistics, state, requests and
history, which are bytes to it: only the engine knows the model that gives them meaning. There is no pickle.

Every format, present and future, begins with the same 16 bytes: `OWR`, the format's number as one byte, the CRC-32 of
the bytes after it, and the revision. A number is never used for two layouts. Every version reads the records of all
earlier released versions, so a format's reader stays in `_READERS` for good.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from random import getrandbits
from typing import Any, Literal, NamedTuple, Self

from zlib_ng.zlib_ng import crc32

from onward.service.errors import DamagedRecordError, ForeignRecordError, UnreadableRecordError

EndReason = Literal["expired", "deleted"]

TOMBSTONE_S = 86_400.0
"""The seconds for which a tombstone is stored."""

_NAME = b"OWR"  # Onward record
_SECTIONS, _TOMBSTONE, _RECORD_BEFORE_ANOMALY, _RECORD = 4, 5, 6, 7
"""The formats. Format 4 is of records, and of tombstones before format 5, without a part of fixed layout. Formats 6 and
7 differ in the running statistics alone.
"""
_CRC = struct.Struct("<4sI")
REVISION = slice(_CRC.size, _CRC.size + 8)
"""The position of the revision in a record's bytes, of any format."""
MAGIC = _NAME + bytes([_RECORD])
_TOMBSTONE_MAGIC = _NAME + bytes([_TOMBSTONE])
_END = struct.Struct("<QBd")
_ENDED: tuple[EndReason | None, ...] = (None, "expired", "deleted")

HEAD = struct.Struct("<4sIQQddddQddI32sIIHHII")
"""The head: magic, checksum, and the fields of HEAD_FIELDS."""
HEAD_FIELDS: tuple[tuple[str, str], ...] = (
    ("magic", "S4"),
    ("checksum", "<u4"),
    ("revision", "<u8"),
    ("step", "<u8"),
    ("created_at", "<f8"),
    ("last_step_at", "<f8"),
    ("ttl_s", "<f8"),
    ("expires_at", "<f8"),
    ("surprises", "<u8"),
    ("surprise_mean", "<f8"),
    ("surprise_recent", "<f8"),
    ("version", "<u4"),
    ("digest", "V32"),
    ("accuracy_bytes", "<u4"),
    ("state_bytes", "<u4"),
    ("tenant_bytes", "<u2"),
    ("model_bytes", "<u2"),
    ("requests_bytes", "<u4"),
    ("history_bytes", "<u4"),
)
"""The names and types of the head's fields, as those of a structured array."""
_POSITIONS = {name: position for position, (name, _) in enumerate(HEAD_FIELDS)}
REVISION_FIELD, STEP, EXPIRES_AT, VERSION = (_POSITIONS[name] for name in ("revision", "step", "expires_at", "version"))
"""The positions of these fields among HEAD_FIELDS."""
SURPRISE = slice(_POSITIONS["surprises"], _POSITIONS["surprise_recent"] + 1)
"""The positions of the summary of surprises among HEAD_FIELDS."""
_SIZES_OF_FIELDS = [int(kind.lstrip("<SVuf")) for _, kind in HEAD_FIELDS]
_STARTS = {name: sum(_SIZES_OF_FIELDS[:position]) for name, position in _POSITIONS.items()}
_FROM_REVISION = struct.Struct(HEAD.format.replace("4sI", "", 1))
_SIZES = struct.Struct("<IIHHII")
_SIZES_START = HEAD.size - _SIZES.size
_STEP, _TIME, _SURPRISE = struct.Struct("<Q"), struct.Struct("<d"), struct.Struct("<Qdd")
_BUNDLE_START, _BUNDLE_END = _STARTS["version"], _SIZES_START


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
        return _CRC.pack(_TOMBSTONE_MAGIC, crc32(body)) + body


class _Seconds:
    """A field of a record's head in seconds, read from its bytes."""

    def __init__(self, name: str) -> None:
        self._start = _STARTS[name]

    def __get__(self, record: "Record", kind: type | None = None) -> float:
        seconds: float = _TIME.unpack_from(record.data, self._start)[0]
        return seconds


class Record:
    """A living session, until `expires_at`. Times are in seconds since 1970 UTC.

    `data` are its bytes; each attribute is read from them when it is asked for, because a step needs few of them.
    `revision` is a new random number for each commit; stores compare and set on it, so that a step is never applied to
    another state than the one it was computed from, even if the session was ended and created again.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        """`data` must be a record's bytes of this format, as `pack` or `from_bytes` gives them."""
        self.data = data

    @classmethod
    def pack(
        cls,
        *,
        revision: int,
        tenant: str,
        ref: BundleRef,
        step: int,
        created_at: float,
        last_step_at: float,
        ttl_s: float,
        expires_at: float,
        state: bytes,
        surprise: tuple[int, float, float] = (0, 0.0, 0.0),
        requests: bytes = b"",
        history: bytes = b"",
        accuracy: bytes = b"",
    ) -> Self:
        """Returns the record with these fields.

        surprise: see `onward.model.scoring.surprise`. requests: the last ones and their answers, see
        `onward.service.store.idempotency`. accuracy: the running statistics, see `onward.model.scoring.accuracy`.
        """
        names, tenant_bytes, model_bytes = _names(tenant, ref.model)
        body = b"".join(
            (
                _FROM_REVISION.pack(
                    revision, step, created_at, last_step_at, ttl_s, expires_at, *surprise, ref.version, ref.digest,
                    len(accuracy), len(state), tenant_bytes, model_bytes, len(requests), len(history),
                ),
                accuracy, state, names, requests, history,
            )
        )  # fmt: skip
        return cls(_CRC.pack(MAGIC, crc32(body)) + body)

    def replace(self, **changes: Any) -> Self:
        """Returns the record with some of the fields of `pack` changed."""
        return self.pack(**{name: getattr(self, name) for name in _FIELDS} | changes)

    def advanced(
        self,
        steps: int,
        now: float,
        state: bytes,
        surprise: tuple[int, float, float],
        accuracy: bytes,
        requests: bytes | None = None,
        history: bytes | None = None,
    ) -> Self:
        """Returns the session's record after `steps` more, with a new revision and its expiry moved.

        requests, history: None leaves them as they are.
        """
        data = self.data
        _, _, _, step, created_at, _, ttl_s, _, _, _, _, version, digest, *sizes = HEAD.unpack_from(data)
        accuracy_bytes, state_bytes, tenant_bytes, model_bytes, requests_bytes, history_bytes = sizes
        rest = data[HEAD.size + accuracy_bytes + state_bytes :]
        if requests is not None or history is not None:
            names, end = rest[: tenant_bytes + model_bytes], len(rest) - history_bytes
            requests = rest[end - requests_bytes : end] if requests is None else requests
            history = rest[end:] if history is None else history
            rest, requests_bytes, history_bytes = names + requests + history, len(requests), len(history)
        head = _FROM_REVISION.pack(
            getrandbits(64), step + steps, created_at, now, ttl_s, now + ttl_s, *surprise, version, digest,
            len(accuracy), len(state), tenant_bytes, model_bytes, requests_bytes, history_bytes,
        )  # fmt: skip
        body = b"".join((head, accuracy, state, rest))
        return type(self)(_CRC.pack(MAGIC, crc32(body)) + body)

    def to_bytes(self) -> bytes:
        return self.data

    def __eq__(self, another: object) -> bool:
        return isinstance(another, Record) and self.data == another.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"<Record of {self.tenant!r} on {self.ref.model} {self.ref.version} at step {self.step}>"

    @property
    def revision(self) -> int:
        return revision_of(self.data)

    @property
    def step(self) -> int:
        step: int = _STEP.unpack_from(self.data, _STARTS["step"])[0]
        return step

    created_at, last_step_at, ttl_s, expires_at = map(_Seconds, ("created_at", "last_step_at", "ttl_s", "expires_at"))

    @property
    def surprise(self) -> tuple[int, float, float]:
        count, mean, recent = _SURPRISE.unpack_from(self.data, _STARTS["surprises"])
        return count, mean, recent

    @property
    def ref(self) -> BundleRef:
        return self._owner()[1]

    @property
    def tenant(self) -> str:
        return self._owner()[0]

    @property
    def accuracy(self) -> bytes:
        size, *_ = self.sizes
        return self.data[HEAD.size : HEAD.size + size]

    @property
    def state(self) -> bytes:
        accuracy, size, *_ = self.sizes
        start = HEAD.size + accuracy
        return self.data[start : start + size]

    @property
    def requests(self) -> bytes:
        *_, requests, history = self.sizes
        end = len(self.data) - history
        return self.data[end - requests : end]

    @property
    def history(self) -> bytes:
        *_, size = self.sizes
        return self.data[len(self.data) - size :]

    def alive(self, now: float) -> bool:
        return now < self.expires_at

    def tombstone(self, reason: EndReason, at: float) -> Tombstone:
        """Returns the tombstone of the session if it ended at `at`."""
        return Tombstone(new_revision(), reason, at)

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """The bytes of the statistics, the state, the names of tenant and model, the requests and the history."""
        accuracy, state, tenant, model, requests, history = _SIZES.unpack_from(self.data, _SIZES_START)
        return accuracy, state, tenant, model, requests, history

    def _owner(self) -> tuple[str, BundleRef]:
        accuracy, state, tenant, model, *_ = self.sizes
        start = HEAD.size + accuracy + state
        return _owner(self.data[start : start + tenant + model], tenant, self.data[_BUNDLE_START:_BUNDLE_END])


_FIELDS = (
    "revision", "tenant", "ref", "step", "created_at", "last_step_at", "ttl_s", "expires_at", "state", "surprise",
    "requests", "history", "accuracy",
)  # fmt: skip


@lru_cache(1024)
def _names(tenant: str, model: str) -> tuple[bytes, int, int]:
    """Returns both names as bytes, and the length of each; cached because most records repeat an earlier pair."""
    tenant_bytes, model_bytes = tenant.encode(), model.encode()
    return tenant_bytes + model_bytes, len(tenant_bytes), len(model_bytes)


@lru_cache(1024)
def _owner(names: bytes, tenant_bytes: int, bundle: bytes) -> tuple[str, BundleRef]:
    """Returns the tenant, whose name has `tenant_bytes` bytes, and the bundle; cached, as most records repeat."""
    version = int.from_bytes(bundle[:4], "little")
    return names[:tenant_bytes].decode(), BundleRef(names[tenant_bytes:].decode(), version, bundle[4:])


def from_bytes(data: bytes) -> Record | Tombstone:
    """Decodes `to_bytes`. Raises DamagedRecordError, or ForeignRecordError for another version's format."""
    if len(data) < REVISION.stop or not data.startswith(_NAME):
        raise DamagedRecordError("it is no record of Onward's, or cut short")
    read = _READERS.get(data[len(_NAME)])
    if read is None:
        raise ForeignRecordError(data[len(_NAME)], sorted(_READERS))
    if crc32(memoryview(data)[_CRC.size :]) != _CRC.unpack_from(data)[1]:
        raise DamagedRecordError("its checksum does not match")
    return read(data)


def _record(data: bytes) -> Record:
    """Reads format 7: the bytes stay as they are."""
    if len(data) < HEAD.size:
        raise DamagedRecordError("it is no record of Onward's, or cut short")
    end = HEAD.size + sum(_SIZES.unpack_from(data, _SIZES_START))
    if end != len(data):
        raise DamagedRecordError(f"{len(data)} bytes long, its sections end at {end}")
    return Record(data)


def _record_before_anomaly(data: bytes) -> Record:
    """Reads format 6, whose statistics the engine recognises by their length."""
    return _record(MAGIC + data[len(MAGIC) :])


_SECTIONS_HEAD = struct.Struct("<QQddddBQddI32sHHIIII")


def _record_of_sections(data: bytes) -> Record | Tombstone:
    """Reads format 4: a head, then the names, the requests, the history, the statistics and the state."""
    start = _CRC.size + _SECTIONS_HEAD.size
    if len(data) < start:
        raise DamagedRecordError("it is no record of Onward's, or cut short")
    (
        revision, step, created_at, last_step_at, ttl_s, expires_at, ended, count, mean, recent, version, digest,
        tenant, model, requests, history, accuracy, state,
    ) = _SECTIONS_HEAD.unpack_from(data, _CRC.size)  # fmt: skip
    names = start + tenant + model  # each length becomes the end of its section
    requests += names
    history += requests
    accuracy += history
    state += accuracy
    if state != len(data):
        raise DamagedRecordError(f"{len(data)} bytes long, its sections end at {state}")
    if ended:
        return Tombstone(revision, _reason(ended), expires_at - TOMBSTONE_S)
    return Record.pack(
        revision=revision,
        tenant=data[start : start + tenant].decode(),
        ref=BundleRef(data[start + tenant : names].decode(), version, digest),
        step=step,
        created_at=created_at,
        last_step_at=last_step_at,
        ttl_s=ttl_s,
        expires_at=expires_at,
        state=data[accuracy:state],
        surprise=(count, mean, recent),
        requests=data[names:requests],
        history=data[requests:history],
        accuracy=data[history:accuracy],
    )


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


_READERS: dict[int, Callable[[bytes], Record | Tombstone]] = {
    _SECTIONS: _record_of_sections,
    _TOMBSTONE: _tombstone,
    _RECORD_BEFORE_ANOMALY: _record_before_anomaly,
    _RECORD: _record,
}
"""The readers by the format's number."""


def new_record(
    tenant: str, ref: BundleRef, state: bytes, step: int, surprise: tuple[int, float, float], accuracy: bytes = b""
) -> Record:
    """Returns the record of a session that has not begun: its times and its revision are set when it begins."""
    return Record.pack(
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
