"""WebSocket frames of a server, as RFC 6455 defines them, without extensions.

Owns the protocol's state of one connection: the frame and the message that have begun, the closing handshake, and the
control frames that are to be sent. Nearly every message is one frame that comes alone, which `single` reads.

The memory of a connection is bounded whatever its client sends: one message of at most `most` bytes, to which each
fragment is joined as it comes, the part of its next frame that has come, and what one read brought. A frame is refused
by its first bytes, before its payload is waited for.
"""

import struct
from collections.abc import Sequence

from websockets.exceptions import ProtocolError
from websockets.frames import Close

try:
    from websockets.speedups import apply_mask
except ImportError:  # no compiled one for this platform
    from websockets.utils import apply_mask

PIECE = 32
"""The most frames that are read in one turn of the event loop."""
MOST_FRAGMENTS = 65_536
"""The most fragments of a message. They cost no memory, but an endless message would cost endless time."""

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10  # RFC 6455, 5.2
_OPCODES = frozenset({_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG})
_FIN, _RESERVED, _OPCODE, _CONTROL, _MASKED = 0x80, 0x70, 0x0F, 0x08, 0x80
_WHOLE_TEXT, _WHOLE_BINARY = _FIN | _TEXT, _FIN | _BINARY
_WHOLE = frozenset({_WHOLE_TEXT, _WHOLE_BINARY})
_LENGTHS = {126: struct.Struct(">H"), 127: struct.Struct(">Q")}
_HEAD_8, _HEAD_16, _HEAD_64 = struct.Struct(">BB"), struct.Struct(">BBH"), struct.Struct(">BBQ")
_MASK = 4
_MOST_CONTROL = 125
_PROTOCOL_ERROR, _NOT_UTF8, _POLICY, _TOO_BIG = 1002, 1007, 1008, 1009  # RFC 6455, 7.4.1


Message = tuple[bytes, bool]
"""The data of a message, and True if it is a text. A plain tuple, because two are made for every step."""


class _EndError(Exception):
    """The connection ends with a close frame of this payload."""

    def __init__(self, payload: bytes) -> None:
        super().__init__(payload)
        self.payload = payload


class Frames:
    """The framing of one connection, without I/O: bytes in, messages out, and the reverse."""

    __slots__ = (
        "_fragments", "_is_text", "_last", "_message", "_most", "_rest", "_to_send", "ends", "has_ended",
        "is_open", "more",
    )  # fmt: skip

    def __init__(self, most: int) -> None:
        """most: the largest size of a message in bytes."""
        self._most = most
        self._rest = bytearray()  # received bytes that are not parsed yet
        self._message = bytearray()  # the fragments of an unfinished message
        self._fragments, self._is_text = 0, False
        self._to_send = bytearray()
        self._last: bytes | None = None  # the payload of the close frame that is sent after pending messages
        self.more = False
        """True if `take` can return more messages from the bytes already received."""
        self.has_ended = False
        """True if `take` has just read the end of a message, or a control frame between messages."""
        self.ends = False
        """True if the connection must be closed after the bytes of `to_send` are sent."""
        self.is_open = True
        """True until a close frame is sent: messages may be sent."""

    def single(self, data: bytes) -> Message | None:
        """The message if these bytes are one frame, which is a whole message and valid; None if `take` must read them.

        Changes nothing, so that `take` may read the same bytes all the same.
        """
        if self._rest or self._fragments or not self.is_open or len(data) < 2 + _MASK:
            return None
        first, second = data[0], data[1]
        if _MASKED <= second < _MASKED | 126:
            body, size = 2 + _MASK, second ^ _MASKED
        elif second < _MASKED:
            return None
        else:
            body, size = _measure(data, 0)
        if body + size != len(data) or size > self._most or first not in _WHOLE:
            return None
        payload = apply_mask(data[body:], data[body - _MASK : body])
        if first == _WHOLE_BINARY:
            return payload, False
        return (payload, True) if payload.isascii() else None

    def take(self, data: bytes = b"") -> list[Message]:
        """The complete messages among the next PIECE frames; control frames to send are in `to_send`.

        A fault or the client's close ends the connection only after the messages before it were returned.
        """
        if self._last is not None:
            self._finish(self._last)
            return []
        received: bytes | bytearray = data
        if self._rest:
            self._rest += data
            received = self._rest
        messages: list[Message] = []
        self.more = False
        try:
            start = self._read(received, messages)
        except _EndError as end:
            start, self.more, self._last = len(received), bool(messages), end.payload
            if not messages:
                self._finish(end.payload)
        if received is self._rest:
            del self._rest[:start]
        elif start < len(received):
            self._rest += received[start:]
        self.has_ended = start > 0 and not self._fragments
        return messages if self.is_open else []

    def _read(self, data: bytes | bytearray, messages: list[Message]) -> int:
        """Appends to `messages` and returns the offset of the first frame that was not read. Raises _EndError."""
        start = 0
        for _ in range(PIECE):
            if len(data) < start + 2:
                break
            first, second = data[start], data[start + 1]
            is_whole = first in _WHOLE and not self._fragments
            if _MASKED <= second < _MASKED | 126:
                body, size = start + 2 + _MASK, second ^ _MASKED
            else:
                body, size = _measure(data, start)
            if not is_whole or size > self._most or second < _MASKED:
                self._check(first, second, size)
            end = body + size
            if end > len(data):
                break
            payload = apply_mask(data[body:end], data[body - _MASK : body])
            if is_whole:
                if first == _WHOLE_TEXT and not payload.isascii():
                    _check_text(payload)
                messages.append((payload, first == _WHOLE_TEXT))
            else:
                messages += self._read_part(first, payload)
            start = end
        else:
            self.more = start < len(data)
        return start

    def _check(self, first: int, second: int, size: int) -> None:
        """Raises _EndError if a frame with this head is not allowed now."""
        opcode, is_control, continues = first & _OPCODE, first & _CONTROL, first & _OPCODE == _CONTINUATION
        refusals = (
            (opcode not in _OPCODES, _PROTOCOL_ERROR, "invalid opcode"),
            (first & _RESERVED, _PROTOCOL_ERROR, "reserved bits must be 0: no extension was agreed on"),
            (not second & _MASKED, _PROTOCOL_ERROR, "a client must mask its frames"),
            (
                is_control and size > _MOST_CONTROL,
                _PROTOCOL_ERROR,
                f"a control frame has at most {_MOST_CONTROL} bytes",
            ),
            (is_control and not first & _FIN, _PROTOCOL_ERROR, "a control frame has no fragments"),
            (continues and not self._fragments, _PROTOCOL_ERROR, "there is no message to continue"),
            (not is_control and not continues and self._fragments, _PROTOCOL_ERROR, "expected a continuation frame"),
            (
                continues and self._fragments >= MOST_FRAGMENTS,
                _POLICY,
                f"a message has at most {MOST_FRAGMENTS} frames",
            ),
            (
                not is_control and size > self._most - len(self._message),
                _TOO_BIG,
                f"a message has at most {self._most} bytes",
            ),
        )
        for applies, code, reason in refusals:
            if applies:
                raise _EndError(_closing(code, reason))

    def _read_part(self, first: int, payload: bytes) -> list[Message]:
        """Reads a frame that is not a whole message; returns the message that it ends, if it ends one."""
        opcode = first & _OPCODE
        if opcode == _CLOSE:
            raise _EndError(_reply_to_close(payload))
        if opcode == _PING and self.is_open:
            self._to_send += _encoded(_FIN | _PONG, payload)
        if opcode & _CONTROL:
            return []
        if not self._fragments:
            self._is_text = opcode == _TEXT
        self._fragments += 1
        self._message += payload
        if not first & _FIN:
            return []
        message = bytes(self._message)
        self._message, self._fragments = bytearray(), 0
        if self._is_text:
            _check_text(message)
        return [(message, self._is_text)]

    def encoded(self, messages: Sequence[Message]) -> bytes:
        """The messages as frames; empty if the connection is closed."""
        if not self.is_open:
            return b""
        if len(messages) == 1:
            data, is_text = messages[0]
            return _encoded(_WHOLE_TEXT if is_text else _WHOLE_BINARY, data)
        return b"".join([_encoded(_WHOLE_TEXT if is_text else _WHOLE_BINARY, data) for data, is_text in messages])

    def to_send(self) -> bytes:
        if not self._to_send:
            return b""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    @property
    def has_begun(self) -> bool:
        """True if a frame or a message has begun and its end was not read."""
        return bool(self._rest or self._fragments)

    def ping(self) -> None:
        self._to_send += _encoded(_FIN | _PING, b"")

    def close(self, code: int, reason: str) -> None:
        """Asks the client to close; it is expected to answer."""
        self._close(_closing(code, reason))

    def fail(self, code: int, reason: str) -> None:
        """Closes without waiting for the client's answer."""
        self._finish(_closing(code, reason))

    def _close(self, payload: bytes) -> None:
        if self.is_open:
            self._to_send += _encoded(_FIN | _CLOSE, payload)
        self.is_open = False

    def _finish(self, payload: bytes) -> None:
        self._close(payload)
        self.ends, self._last, self.more = True, payload, False  # so that nothing that comes is read
        self._message.clear()


def _measure(data: bytes | bytearray, start: int) -> tuple[int, int]:
    """The offset and length of the payload of the frame at `start`; an offset beyond the data if more is needed."""
    size, body = data[start + 1] & 0x7F, start + 2
    if size >= 126:
        length = _LENGTHS[size]
        body += length.size
        size = length.unpack_from(data, start + 2)[0] if len(data) >= body else 0
    return body + _MASK, size


def _check_text(data: bytes) -> None:
    """Raises _EndError if the data is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise _EndError(_closing(_NOT_UTF8, f"a text must be UTF-8: {error.reason} at {error.start}")) from None


def _reply_to_close(payload: bytes) -> bytes:
    """The payload of the close frame that answers the client's: the same, or why the client's is refused."""
    try:
        Close.parse(payload)
    except ProtocolError as error:
        return _closing(_PROTOCOL_ERROR, str(error))
    except UnicodeDecodeError:
        return _closing(_NOT_UTF8, "the reason of a close must be UTF-8")
    return payload


def _closing(code: int, reason: str) -> bytes:
    return struct.pack(">H", code) + reason.encode()


def _encoded(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return _HEAD_8.pack(first, size) + payload
    if size < 2**16:
        return _HEAD_16.pack(first, 126, size) + payload
    return _HEAD_64.pack(first, 127, size) + payload
