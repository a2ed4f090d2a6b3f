"""A session's last requests and what they were answered, as bytes of its record: so a retry gets the same answer.

Owns how many are kept, and their bytes: a mark of each request id, a head of each, then the answers, all the newest
first, after their count. Keeping one more is a matter of slices, whatever their number.
"""

import struct
from hashlib import blake2b
from typing import NamedTuple

MAX_REQUESTS = 32
"""How many of a session's last requests are known when they come again."""
MAX_ANSWER_BYTES = 4096
"""Bytes of answers that are kept beside the newest's; without its answer a request is known all the same.

More for a model of which MAX_REQUESTS answers of a step each are longer, so that they are kept too.
"""
MAX_STEP_ANSWER_BYTES = 2048

_MARK_BYTES, _DIGEST_BYTES = 8, 8
_HEAD = struct.Struct("<8sQI")  # of the inputs, the step that was reached, the answer's length: 0 where it is not kept


class AppliedRequest(NamedTuple):
    """A request that was applied: the digest of its inputs, the step that it led to, its answer; empty: not kept."""

    digest: bytes
    step: int
    answer: bytes


def digest(inputs: bytes) -> bytes:
    return blake2b(inputs, digest_size=_DIGEST_BYTES).digest()


def max_answer_bytes(step_bytes: int) -> int:
    """How many bytes of answers are kept where a step's answer has so many."""
    return max(MAX_ANSWER_BYTES, MAX_REQUESTS * min(step_bytes, MAX_STEP_ANSWER_BYTES))


def remember(kept: bytes, request_id: str, known: AppliedRequest, most: int = MAX_ANSWER_BYTES) -> bytes:
    """With one more request; the oldest is forgotten where there are MAX_REQUESTS. most: bytes of answers before it."""
    marks, heads, answers = _sections(kept)
    if len(marks) == MAX_REQUESTS * _MARK_BYTES:
        *_, oldest = _HEAD.unpack_from(heads, len(heads) - _HEAD.size)
        marks, heads, answers = marks[:-_MARK_BYTES], heads[: -_HEAD.size], answers[: len(answers) - oldest]
    if len(answers) > most:
        heads, answers = _lightened(heads, answers, most)
    head = _HEAD.pack(known.digest, known.step, len(known.answer))
    count = bytes((len(marks) // _MARK_BYTES + 1,))
    return b"".join((count, _mark(request_id), marks, head, heads, known.answer, answers))


def find(kept: bytes, request_id: str) -> AppliedRequest | None:
    """The request, where it is one of the last."""
    if not kept:
        return None
    marks, mark, place = kept[1 : 1 + kept[0] * _MARK_BYTES], _mark(request_id), 0
    while (found := marks.find(mark, place)) % _MARK_BYTES:  # -1 is one too
        if found < 0:
            return None
        place = found + 1
    _, heads, answers = _sections(kept)
    start, before = 0, found // _MARK_BYTES
    for *_, length in _HEAD.iter_unpack(heads[: before * _HEAD.size]):
        start += length
    of, step, length = _HEAD.unpack_from(heads, before * _HEAD.size)
    return AppliedRequest(of, step, answers[start : start + length])


def without_answers(kept: bytes) -> bytes:
    """The same requests without their answers."""
    marks, heads, answers = _sections(kept)
    return kept[:1] + marks + _lightened(heads, answers, 0)[0]


def _sections(kept: bytes) -> tuple[bytes, bytes, bytes]:
    count = kept[0] if kept else 0
    heads = 1 + count * _MARK_BYTES
    answers = heads + count * _HEAD.size
    return kept[1:heads], kept[heads:answers], kept[answers:]


def _lightened(heads: bytes, answers: bytes, most: int) -> tuple[bytes, bytes]:
    """Without the oldest answers, down to so many bytes."""
    lighter, place = bytearray(heads), len(heads)
    while len(answers) > most:
        place -= _HEAD.size
        of, step, length = _HEAD.unpack_from(heads, place)
        _HEAD.pack_into(lighter, place, of, step, 0)
        answers = answers[: len(answers) - length]
    return bytes(lighter), answers


def _mark(request_id: str) -> bytes:
    return blake2b(request_id.encode(), digest_size=_MARK_BYTES).digest()
