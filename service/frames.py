"""WebSocket frames: ordinary ones read and written here, whatever else is so by the library that knows the protocol.

Ordinary is a whole message in one frame, as nearly every one is; so it costs a fraction of the library's time. Frames
are cut here, and the library gets whole ones: so it is always at the beginning of a frame, and knows the connection's
state; once that is closed, nothing more is said.
"""

import struct
from collections.abc import Sequence
from typing import Any

from websockets.frames import Opcode
from websockets.protocol import OPEN, SEND_EOF
from websockets.server import ServerProtocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # no compiled one for this platform
    from websockets.utils import apply_mask

_TEXT, _BINARY, _MASKED = 0x81, 0x82, 0x80  # RFC 6455, 5.2
_ORDINARY = frozenset({_TEXT, _BINARY})
_LENGTHS = {126: struct.Struct(">H"), 127: struct.Struct(">Q")}
_MASK = 4


Message = tuple[bytes, bool]
"""Its data, and whether it is a text; a bare tuple, since two are made for every step."""


class Frames:
    __slots__ = ("_most", "_parts", "_protocol", "_rest", "ends", "is_open")

    def __init__(self, protocol: ServerProtocol) -> None:
        """protocol: open, and nobody else's."""
        self._protocol, self._most = protocol, protocol.max_message_size or 2**63
        self._rest = b""  # of a frame whose end has not come
        self._parts: list[Any] = []  # frames of a message whose end has not come
        self.ends = False
        """Whether the connection is to be closed once what there is `to_send` was sent."""
        self.is_open = True

    def take(self, data: bytes) -> list[Message]:
        """The messages that are whole now; what the protocol itself has to say is in `to_send`."""
        messages: list[Message] = []
        data, start = self._rest + data if self._rest else data, 0
        self._rest = b""
        while start < len(data):
            body, size = _measure(data, start)
            refused = size > self._most or (len(data) > start + 1 and not data[start + 1] & _MASKED)
            end = len(data) if refused else body + size  # with it, the library will refuse all that follows
            if end > len(data):
                self._rest = data[start:]
                break
            if data[start] in _ORDINARY and not refused and not self._parts and self.is_open:
                message = apply_mask(data[body:end], data[body - _MASK : body])
                messages.append((message, data[start] == _TEXT))
            else:
                self._protocol.receive_data(data[start:end])
                self._look()
                messages += self._whole(self._protocol.events_received())
            start = end
        return messages

    def _whole(self, events: Sequence[Any]) -> list[Message]:
        """The messages that these frames end."""
        messages = []
        for frame in events:
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._parts.append(frame)
                if frame.fin:
                    data = b"".join(part.data for part in self._parts)
                    messages.append((data, self._parts[0].opcode is Opcode.TEXT))
                    self._parts.clear()
        return messages

    def said(self, messages: Sequence[Message]) -> bytes:
        """These as frames; nothing where the connection is closed."""
        return b"".join([_written(message) for message in messages]) if self.is_open else b""

    def to_send(self) -> bytes:
        writes = self._protocol.data_to_send()
        if not writes:
            return b""
        self.ends = self.ends or SEND_EOF in writes
        return b"".join(writes)

    def ping(self) -> None:
        self._protocol.send_ping(b"")

    def close(self, code: int, reason: str) -> None:
        if self.is_open:
            self._protocol.send_close(code, reason)
            self._look()

    def fail(self, code: int, reason: str) -> None:
        """Closes without waiting for the client's answer."""
        self._protocol.fail(code, reason)
        self._look()

    def _look(self) -> None:
        self.is_open = self._protocol.state is OPEN


def _measure(data: bytes, start: int) -> tuple[int, int]:
    """Where the payload of the frame at `start` begins, and its length; beyond the data where that is not known yet."""
    if len(data) < start + 2:
        return start + 2, 0
    size, body = data[start + 1] & 0x7F, start + 2
    if size >= 126:
        length = _LENGTHS[size]
        body += length.size
        size = length.unpack_from(data, start + 2)[0] if len(data) >= body else 0
    return body + _MASK, size


def _written(message: Message) -> bytes:
    data, is_text = message
    head, size = _TEXT if is_text else _BINARY, len(data)
    if size < 126:
        return bytes((head, size)) + data
    code = 126 if size < 2**16 else 127
    return bytes((head, code)) + _LENGTHS[code].pack(size) + data
