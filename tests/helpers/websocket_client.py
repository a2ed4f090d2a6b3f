"""A WebSocket client written from RFC 6455, byte for byte and independent of the product's framing."""

import json
import os
import socket
import struct
from typing import Any, Self
from urllib.parse import urlsplit

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # the response to KEY in RFC 6455, section 1.3
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def handshake(path: str, *headers: bytes) -> bytes:
    lines = [
        b"GET " + path.encode() + b" HTTP/1.1", b"Host: localhost", b"Upgrade: websocket", b"Connection: Upgrade",
        b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Version: 13", *headers,
    ]  # fmt: skip
    return b"\r\n".join(lines) + b"\r\n\r\n"


def frame(data: bytes, opcode: int = TEXT, mask: bytes = b"\x01\x02\x03\x04", *, fin: bool = True) -> bytes:
    length = len(data)
    if length < 126:
        size = bytes([0x80 | length])
    else:
        size = b"\xfe" + struct.pack(">H", length) if length < 2**16 else b"\xff" + struct.pack(">Q", length)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
    return bytes([fin << 7 | opcode]) + size + mask + masked


class Frames:
    """A parser of the frames that a server sends."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Returns the opcode and the payload of each frame that these bytes complete."""
        self.rest += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> tuple[int, bytes] | None:
        if len(self.rest) < 2:
            return None
        assert self.rest[0] & 0x80, "the service sends whole messages"
        length, start = self.rest[1], 2
        if length == 126 and len(self.rest) >= 4:
            length, start = struct.unpack(">H", self.rest[2:4])[0], 4
        elif length == 127 and len(self.rest) >= 10:
            length, start = struct.unpack(">Q", self.rest[2:10])[0], 10
        elif length >= 126:
            return None
        if len(self.rest) < start + length:
            return None
        opcode, data = self.rest[0] & 15, self.rest[start : start + length]
        self.rest = self.rest[start + length :]
        return opcode, data


class WebSocket:
    """A blocking WebSocket connection that sends no pong by itself."""

    def __init__(self, url: str, session_id: str, *headers: bytes, model: str = "", query: str = "") -> None:
        """Connects; raises ConnectionError if the handshake is refused. `model` creates the session."""
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=60)
        of_model = f"/models/{model}" if model else ""
        self.socket.sendall(handshake(f"/v1{of_model}/sessions/{session_id}/stream{query}", *headers))
        self._frames, self._read = Frames(), list[tuple[int, bytes]]()
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError(head)
            head += data
        self.head, _, rest = head.partition(b"\r\n\r\n")
        if not self.head.startswith(b"HTTP/1.1 101 "):
            self.socket.close()
            raise ConnectionError(head)
        assert b"Sec-WebSocket-Accept: " + ACCEPT in self.head
        self._read += self._frames.feed(rest)

    def send(self, *messages: dict[str, Any] | bytes) -> None:
        """Sends messages in a single write: objects as JSON texts, bytes as binary messages."""
        self.socket.sendall(
            b"".join(
                frame(message, BINARY, os.urandom(4))
                if isinstance(message, bytes)
                else frame(json.dumps(message).encode())
                for message in messages
            )
        )

    def frame(self) -> tuple[int, bytes]:
        """Returns the opcode and payload of the next frame; raises ConnectionError at the end of the stream."""
        while not self._read:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the stream has ended")
            self._read += self._frames.feed(data)
        return self._read.pop(0)

    def receive(self) -> Any:
        """Returns the next message, a text parsed as JSON or bytes; raises ConnectionError with the code of a close."""
        while True:
            opcode, data = self.frame()
            if opcode == TEXT:
                return json.loads(data)
            if opcode == BINARY:
                return data
            if opcode == CLOSE:
                raise ConnectionError(struct.unpack(">H", data[:2])[0])

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
