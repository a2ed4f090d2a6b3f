"""JSON as requests bring it: no document holds the event loop up while it is read, and no object has a key twice.

Owns the bounds of a long document, which hold before anything is made of it: how deep it nests, how many lists and
objects it has in all, how many entries a list and how many members an object has. A long document is cut at its commas
and read in pieces, between which others have their turn. Each piece is read as a list or an object of its own, so
whatever is not JSON is refused wherever the cuts are. Knows nothing of what a document means.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from onward.service.engine.engine import Limits
from onward.service.engine.event_loop import LoopTurns
from onward.service.errors import Fault, InvalidInputError
from onward.service.http.problems import MALFORMED, RequestError
from onward.service.http.request_schemas import MOST_ITEMS, Body

B = TypeVar("B", bound=Body)

PIECE = 65_536
"""Bytes that are read at once. A document that is no longer is read whole, and needs no other bounds."""
MOST_DEPTH = 8
"""Lists and objects in each other; the deepest that any operation takes is 5."""
MOST_MEMBERS = 10_000
MOST_LISTS = 3
"""Lists and objects in all, for each entry that the longest list may have: a step is one of them, so is an item."""

Positions = NDArray[np.signedinteger[Any]]

_SPACE = b" \t\n\r"
_QUOTE, _COMMA = ord('"'), ord(",")
_KEY = re.compile(rb'[ \t\n\r]*("(?:[^"\\]|\\.){0,1000}")[ \t\n\r]*:').match
_DEEPER = np.zeros(256, np.int8)
_DEEPER[list(b"[{")], _DEEPER[list(b"]}")] = 1, -1


def validated(form: type[B], data: bytes, limits: Limits) -> B:
    """The document as `form`. Raises as `parsed` does, and ValidationError."""
    return form.model_validate(parsed(data, limits, form))


def parsed(data: bytes, limits: Limits, form: type[Body] | None = None) -> Any:
    """What the document says. form: which it should have.

    Raises RequestError where it is not JSON, ValidationError where that is a field's fault, as with NaN, and
    InvalidInputError where it is beyond the bounds or has a key twice.
    """
    if len(data) <= PIECE:
        try:
            return _read(data)
        except RequestError:
            if form is not None:
                form.model_validate_json(data)
            raise
    longest = max(limits.max_steps, limits.max_horizon, limits.max_sequences, MOST_ITEMS)
    turns = LoopTurns()
    try:
        return _Document(data, longest, turns).value(0, len(data), 1, "")
    finally:
        turns.close()


class _Document:
    """A long one, and where its commas are: their positions, and how deep each lies."""

    def __init__(self, data: bytes, longest: int, turns: LoopTurns) -> None:
        self._data, self._longest, self._turns = data, longest, turns
        self._commas, self._depths = _commas(data, MOST_LISTS * longest, turns)

    def value(self, start: int, end: int, depth: int, path: str) -> Any:
        """The value between these bytes, whose entries or members lie so deep."""
        text = self._data[start:end]
        start += len(text) - len(text.lstrip(_SPACE))
        end = start + len(text.strip(_SPACE))
        ends = self._data[start : start + 1] + self._data[max(start, end - 1) : end]
        if end - start > PIECE and ends == b"[]":
            return self._list(start + 1, end - 1, depth, path)
        if end - start > PIECE and ends == b"{}":
            return self._object(start + 1, end - 1, depth, path)
        self._turns.take()
        return _read(self._data[start:end], start, path)

    def _list(self, start: int, end: int, depth: int, path: str) -> list[Any]:
        commas = self._between(start, end, depth)
        if len(commas) >= self._longest:
            _refuse(path, f"at most {self._longest} entries, not {len(commas) + 1}")
        entries: list[Any] = []
        for at, to, is_one in _pieces(commas, start, end):
            if is_one and to - at > PIECE:
                entries.append(self.value(at, to, depth + 1, f"{path}[{len(entries)}]"))
                continue
            self._turns.take()
            some = _read(b"[%b]" % self._data[at:to], at - 1, path, len(entries))
            if not some and len(commas):
                raise _malformed(f"an entry is missing: byte {at}")
            entries += some
        return entries

    def _object(self, start: int, end: int, depth: int, path: str) -> dict[str, Any]:
        commas = self._between(start, end, depth)
        if len(commas) >= MOST_MEMBERS:
            _refuse(path, f"an object has at most {MOST_MEMBERS} members, not {len(commas) + 1}")
        members: dict[str, Any] = {}
        for at, to, is_one in _pieces(commas, start, end):
            if is_one and to - at > PIECE:
                key = _KEY(self._data, at, to)
                if key is None:
                    raise _malformed(f"expected a key of at most 1000 characters, and a value: byte {at}")
                name = _read(key[1], at)
                some = {name: self.value(key.end(), to, depth + 1, _member(path, name))}
            else:
                self._turns.take()
                some = _read(b"{%b}" % self._data[at:to], at - 1, path)
            if not some and len(commas):
                raise _malformed(f"a member is missing: byte {at}")
            if twice := members.keys() & some.keys():
                _refuse_twice(_member(path, min(twice)))
            members |= some
        return members

    def _between(self, start: int, end: int, depth: int) -> Positions:
        """The commas there that lie so deep."""
        first, last = bisect_left(self._commas, start), bisect_left(self._commas, end)
        commas: Positions = self._commas[first:last][self._depths[first:last] == depth]
        return commas


def _commas(data: bytes, most: int, turns: LoopTurns) -> tuple[Positions, NDArray[np.int8]]:
    """Where commas outside of texts are, and in how many lists and objects each lies.

    most: lists and objects in all. Raises RequestError, InvalidInputError.
    """
    found, depths = [np.zeros(0, np.int32)], [np.zeros(0, np.int8)]
    depth, lists, in_text, is_escaped = 0, 0, False, False
    for start in range(0, len(data), PIECE):
        block = data[start : start + PIECE]
        if is_escaped:
            block = b" " + block[1:]
        block = block.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
        is_escaped = block.endswith(b"\\")
        codes = np.frombuffer(block, np.uint8)
        texts = np.logical_xor.accumulate(codes == _QUOTE)
        if in_text:
            texts = ~texts
        in_text = bool(texts[-1])
        deeper = _DEEPER[codes]
        deeper[texts] = 0
        inside = np.cumsum(deeper, dtype=np.int32) + depth
        depth, lists = int(inside[-1]), lists + int(np.count_nonzero(deeper > 0))
        if inside.max() > MOST_DEPTH:
            _refuse("", f"lists and objects lie at most {MOST_DEPTH} deep in each other")
        if inside.min() < 0:
            raise _malformed("more lists or objects end than begin")
        if lists > most:
            _refuse("", f"at most {most} lists and objects in all")
        commas = np.flatnonzero((codes == _COMMA) & ~texts)
        found.append((commas + start).astype(np.int32 if len(data) < 2**31 else np.int64))
        depths.append(inside[commas].astype(np.int8))
        turns.take()
    return np.concatenate(found), np.concatenate(depths)


def _pieces(commas: Positions, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether that is one entry) of pieces that end at a comma, each as long as it may be or one entry."""
    first = 0
    while True:
        last = bisect_right(commas, start + PIECE) - 1
        if start + PIECE >= end:
            last = len(commas)
        last = max(first, last)
        to = int(commas[last]) if last < len(commas) else end
        yield start, to, last == first
        if last >= len(commas):
            return
        first, start = last + 1, to + 1


def _read(text: bytes, offset: int = 0, path: str = "", first: int = 0) -> Any:
    """A document, or a piece of one that begins so many bytes in.

    path: what errors call it; first: the number of its first entry.
    """
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _malformed(f"{error.msg}: byte {offset + error.pos}" if offset else str(error)) from None
    if b"{" in text and isinstance(content, (dict, list)) and may_repeat(text, content):
        _hold(json.loads(text, object_pairs_hook=_members), path, first)
    return content


def may_repeat(text: bytes, content: Any) -> bool:
    """Whether a key may stand twice in the text: not where each quote in it is one that the content needs."""
    try:
        return text.count(b'"') != orjson.dumps(content).count(b'"') or rb"\u0022" in text
    except orjson.JSONEncodeError:
        _refuse("", "nested too deep")


class _Twice(dict[str, Any]):
    """An object that has `key` twice."""

    key = ""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    repeats, keys = _Twice(members), set()
    for key, _ in pairs:
        if key in keys:
            repeats.key = key
            break
        keys.add(key)
    return repeats


def _hold(content: Any, path: str, first: int = 0) -> None:
    """Raises InvalidInputError where an object has a key twice."""
    if isinstance(content, _Twice):
        _refuse_twice(_member(path, content.key))
    if isinstance(content, dict):
        for key, value in content.items():
            _hold(value, _member(path, key))
    elif isinstance(content, list):
        for number, value in enumerate(content, first):
            if isinstance(value, (dict, list)):
                _hold(value, f"{path}[{number}]")


def _member(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _refuse_twice(path: str) -> NoReturn:
    _refuse(path, "this key stands twice in the same object")


def _refuse(path: str, message: str) -> NoReturn:
    raise InvalidInputError(Fault(path or "body", message))


def _malformed(why: str) -> RequestError:
    return RequestError(MALFORMED, why, [Fault("body", why)])
