"""Idempotency: a session's last requests and their answers, in its record, so that a retry gets the same answer.

Owns the number of requests that are stored, and their bytes: their count, then a hash of each request id, a header of
each request, and the answers, each section newest first. Adding a request takes a few slices, whatever their number.
"""

import struct
from hashlib import blake2b
from typing import NamedTuple

MAX_REQUESTS = 32
"""The number of a session's last requests whose repetition is recognised as a retry."""
MAX_ANSWER_BYTES = 4096
"""The bytes of answers that are stored beside the newest one; a request without its answer is still recognised.

The limit is higher for a model of which MAX_REQUESTS answers of one step are longer, up to MAX_STEP_ANSWER_BYTES each.
"""
MAX_STEP_ANSWER_BYTES = 2048

_ID_HASH_BYTES, _DIGEST_BYTES = 8, 8
_HEADER = struct.Struct("<8sQI")  # digest of the inputs, step after the request, length of the answer (0: not stored)


class AppliedRequest(NamedTuple):
    """An applied request: the digest of its inputs, the step after it, and its answer (empty: not stored)."""

    digest: bytes
    step: int
    answer: bytes


def digest(inputs: bytes) -> bytes:
    """Returns the digest of a request's inputs."""
    return blake2b(inputs, digest_size=_DIGEST_BYTES).digest()


def max_answer_bytes(step_bytes: int) -> int:
    """Returns how many bytes of answers are stored if the answer to one step has `step_bytes`."""
    return max(MAX_ANSWER_BYTES, MAX_REQUESTS * min(step_bytes, MAX_STEP_ANSWER_BYTES))


def remember(requests: bytes, request_id: str, applied: AppliedRequest, most_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """Returns `requests` with one more, without the oldest if there are MAX_REQUESTS already.

    most_bytes: the bytes of older answers that remain stored.
    """
    id_hashes, headers, answers = _sections(requests)
    if len(id_hashes) == MAX_REQUESTS * _ID_HASH_BYTES:
        *_, oldest = _HEADER.unpack_from(headers, len(headers) - _HEADER.size)
        id_hashes, headers, answers = (
            id_hashes[:-_ID_HASH_BYTES],
            headers[: -_HEADER.size],
            answers[: len(answers) - oldest],
        )
    if len(answers) > most_bytes:
        headers, answers = _drop_oldest_answers(headers, answers, most_bytes)
    header = _HEADER.pack(applied.digest, applied.step, len(applied.answer))
    count = bytes((len(id_hashes) // _ID_HASH_BYTES + 1,))
    return b"".join((count, _id_hash(request_id), id_hashes, header, headers, applied.answer, answers))


def find(requests: bytes, request_id: str) -> AppliedRequest | None:
    """Returns the request with that id, or None if it is not stored."""
    if not requests:
        return None
    id_hashes, id_hash, start = requests[1 : 1 + requests[0] * _ID_HASH_BYTES], _id_hash(request_id), 0
    while (found := id_hashes.find(id_hash, start)) % _ID_HASH_BYTES:  # -1 has a remainder too
        if found < 0:
            return None
        start = found + 1
    _, headers, answers = _sections(requests)
    start, before = 0, found // _ID_HASH_BYTES
    for *_, length in _HEADER.iter_unpack(headers[: before * _HEADER.size]):
        start += length
    inputs_digest, step, length = _HEADER.unpack_from(headers, before * _HEADER.size)
    return AppliedRequest(inputs_digest, step, answers[start : start + length])


def without_answers(requests: bytes) -> bytes:
    """Returns the same requests without their answers."""
    id_hashes, headers, answers = _sections(requests)
    return requests[:1] + id_hashes + _drop_oldest_answers(headers, answers, 0)[0]


def _sections(requests: bytes) -> tuple[bytes, bytes, bytes]:
    count = requests[0] if requests else 0
    headers = 1 + count * _ID_HASH_BYTES
    answers = headers + count * _HEADER.size
    return requests[1:headers], requests[headers:answers], requests[answers:]


def _drop_oldest_answers(headers: bytes, answers: bytes, most_bytes: int) -> tuple[bytes, bytes]:
    """Returns the headers and the answers without the oldest answers, so that at most `most_bytes` remain."""
    updated, offset = bytearray(headers), len(headers)
    while len(answers) > most_bytes:
        offset -= _HEADER.size
        inputs_digest, step, length = _HEADER.unpack_from(headers, offset)
        _HEADER.pack_into(updated, offset, inputs_digest, step, 0)
        answers = answers[: len(answers) - length]
    return bytes(updated), answers


def _id_hash(request_id: str) -> bytes:
    return blake2b(request_id.encode(), digest_size=_ID_HASH_BYTES).digest()
