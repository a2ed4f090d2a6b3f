"""Parses the JSON of requests without blocking the event loop, and refuses objects with a repeated key.

Owns the bounds of a long document, which are checked before anything is built of it: its depth, the number of its lists
and objects, the entries of a list and the members of an object. A long document is cut at its commas and parsed in
pieces, between which other greenlets run. Each piece is parsed as a list or an object of its own, so invalid JSON is
refused wherever the cuts are. Knows nothing of the meaning of a document.
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
"""Bytes that are parsed at once. A document of at most this length is parsed whole and has no other bounds."""
MOST_DEPTH = 8
"""The most lists and objects inside each other; the deepest body of any operation has 5."""
MOST_MEMBERS = 10_000
MOST_LISTS = 3
"""The most lists and objects of a document, per entry that its longest list may have: a step or an item is one."""

Positions = NDArray[np.signedinteger[Any]]

_SPACE = b" \t\n\r"
_QUOTE, _COMMA = ord('"'), ord(",")
_KEY = re.compile(rb'[ \t\n\r]*("(?:[^"\\]|\\.){0,1000}")[ \t\n\r]*:').match
_DEEPER = np.zeros(256, np.int8)
_DEEPER[list(b"[{")], _DEEPER[list(b"]}")] = 1, -1


def validated(form: type[B], data: bytes, limits: Limits) -> B:
    """The document as an instance of `form`. Raises ValidationError, and the errors of `parsed`."""
    return form.model_validate(parsed(data, limits, form))


def parsed(data: bytes, limits: Limits, form: type[Body] | None = None) -> Any:
    """The parsed document. form: the schema that it should have.

    Raises RequestError if the document is not JSON, ValidationError if a field's value is invalid, such as NaN, and
    InvalidInputError if the document exceeds the bounds or repeats a key.
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
    """A long document with the positions and the depths of its commas."""

    def __init__(self, data: bytes, longest: int, turns: LoopTurns) -> None:
        self._data, self._longest, self._turns = data, longest, turns
        self._commas, self._depths = _commas(data, MOST_LISTS * longest, turns)

    def value(self, start: int, end: int, depth: int, path: str) -> Any:
        """The value between these bytes; depth: of its entries or members."""
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
        for at, to, is_entry in _pieces(commas, start, end):
            if is_entry and to - at > PIECE:
                entries.append(self.value(at, to, depth + 1, f"{path}[{len(entries)}]"))
                continue
            self._turns.take()
            parsed_piece = _read(b"[%b]" % self._data[at:to], at - 1, path, len(entries))
            if not parsed_piece and len(commas):
                raise _malformed(f"an entry is missing: byte {at}")
            entries += parsed_piece
        return entries

    def _object(self, start: int, end: int, depth: int, path: str) -> dict[str, Any]:
        commas = self._between(start, end, depth)
        if len(commas) >= MOST_MEMBERS:
            _refuse(path, f"an object has at most {MOST_MEMBERS} members, not {len(commas) + 1}")
        members: dict[str, Any] = {}
        for at, to, is_entry in _pieces(commas, start, end):
            if is_entry and to - at > PIECE:
                key = _KEY(self._data, at, to)
                if key is None:
                    raise _malformed(f"expected a key of at most 1000 characters, and a value: byte {at}")
                name = _read(key[1], at)
                parsed_piece = {name: self.value(key.end(), to, depth + 1, _member(path, name))}
            else:
                self._turns.take()
                parsed_piece = _read(b"{%b}" % self._data[at:to], at - 1, path)
            if not parsed_piece and len(commas):
                raise _malformed(f"a member is missing: byte {at}")
            if repeated := members.keys() & parsed_piece.keys():
                _refuse_key(_member(path, min(repeated)))
            members |= parsed_piece
        return members

    def _between(self, start: int, end: int, depth: int) -> Positions:
        """The positions of the commas of that depth between these bytes."""
        first, last = bisect_left(self._commas, start), bisect_left(self._commas, end)
        commas: Positions = self._commas[first:last][self._depths[first:last] == depth]
        return commas


def _commas(data: bytes, most: int, turns: LoopTurns) -> tuple[Positions, NDArray[np.int8]]:
    """The positions of the commas outside of texts, and the depth of each: the number of lists and objects around it.

    most: the most lists and objects of the document. Raises RequestError, InvalidInputError.
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
    """(start, end, whether the piece is a single entry) of pieces that end at a comma.

    A piece has at most PIECE bytes, unless it is a single entry.
    """
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
    """The parsed document, or a piece of a document that begins at the offset.

    path: its name in errors; first: the index of its first entry.
    """
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _malformed(f"{error.msg}: byte {offset + error.pos}" if offset else str(error)) from None
    if b"{" in text and isinstance(content, (dict, list)) and may_repeat(text, content):
        _refuse_repeated(json.loads(text, object_pairs_hook=_members), path, first)
    return content


def may_repeat(text: bytes, content: Any) -> bool:
    """True if an object in the text may repeat a key.

    It cannot if the text has exactly the quotes that the content needs: a repeated key adds quotes to the text alone.
    """
    try:
        return text.count(b'"') != orjson.dumps(content).count(b'"') or rb"\u0022" in text
    except orjson.JSONEncodeError:
        _refuse("", "nested too deep")


class _Repeats(dict[str, Any]):
    """An object that repeats `key`."""

    key = ""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    repeats, keys = _Repeats(members), set()
    for key, _ in pairs:
        if key in keys:
            repeats.key = key
            break
        keys.add(key)
    return repeats


def _refuse_repeated(content: Any, path: str, first: int = 0) -> None:
    """Raises InvalidInputError if an object in the content repeats a key."""
    if isinstance(content, _Repeats):
        _refuse_key(_member(path, content.key))
    if isinstance(content, dict):
        for key, value in content.items():
            _refuse_repeated(value, _member(path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content, first):
            if isinstance(value, (dict, list)):
                _refuse_repeated(value, f"{path}[{index}]")


def _member(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _refuse_key(path: str) -> NoReturn:
    _refuse(path, "this key stands twice in the same object")


def _refuse(path: str, message: str) -> NoReturn:
    raise InvalidInputError(Fault(path or "body", message))


def _malformed(why: str) -> RequestError:
    return RequestError(MALFORMED, why, [Fault("body", why)])
