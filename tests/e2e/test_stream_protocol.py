"""Cases of RFC 6455 on the real server: the frames that answer, and the code with which a connection is closed."""

import struct
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest

from tests.e2e.server import Server
from tests.helpers.websocket_client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WebSocket, frame

MOST = 4096
STEP = b'{"inputs": [[500]]}'
CHARACTERS = "κόσμε".encode()
ANSWER = (TEXT, None)
ENDED = (CLOSE, b"")
Expected = tuple[int, bytes | int | None]
"""A frame of the service: its opcode, and its payload (None for any payload) or the code of a close."""


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(struct.pack(">H", code) + reason, CLOSE)


def head(first: int, size: int, *, mask: bool = True) -> bytes:
    """Returns the beginning of a frame whose length has 64 bits."""
    return struct.pack(">BBQ", first, 0xFF if mask else 0x7F, size)


def raw(first: int, payload: bytes = b"") -> bytes:
    return bytes([first]) + frame(payload)[1:]


def cut(data: bytes, *offsets: int, between: bytes = b"") -> bytes:
    """Returns a text in fragments, cut at those offsets."""
    parts = [data[start:stop] for start, stop in pairwise((0, *offsets, len(data)))]
    return between.join(
        frame(part, CONTINUATION if index else TEXT, fin=index == len(offsets)) for index, part in enumerate(parts)
    )


def padded(size: int) -> bytes:
    return STEP.ljust(size)


STEPS = frame(STEP)
FRAMING: dict[str, tuple[bytes, list[Expected]]] = {
    "a text": (STEPS, [ANSWER]),
    "an empty text": (frame(b""), [ANSWER]),
    "empty bytes": (frame(b"", BINARY), [ANSWER]),
    "bytes": (frame(struct.pack("<Qf", 0, 500), BINARY), [(BINARY, None)]),
    **{f"a text of {size} bytes": (frame(padded(size)), [ANSWER]) for size in (125, 126, 127, 128, 4095, MOST)},
    "a length of 16 bits for a short text": (struct.pack(">BBH4x", 0x81, 0xFE, len(STEP)) + STEP, [ANSWER]),
    "a length of 64 bits for a short text": (head(0x81, len(STEP)) + bytes(4) + STEP, [ANSWER]),
    "a mask of zeros": (frame(STEP, TEXT, bytes(4)), [ANSWER]),
    "no mask": (b"\x81\x13" + STEP, [(CLOSE, 1002)]),
    "a ping without a mask": (b"\x89\x00", [(CLOSE, 1002)]),
    "a close without a mask": (b"\x88\x00", [(CLOSE, 1002)]),
    **{f"reserved bits {bits:#x} on a text": (raw(0x81 | bits, STEP), [(CLOSE, 1002)]) for bits in range(16, 128, 16)},
    "a compressed text, which was not agreed on": (raw(0xC1, b"\xaaV*\x03\x00"), [(CLOSE, 1002)]),
    "a reserved bit on a ping": (raw(0xC9), [(CLOSE, 1002)]),
    "a reserved bit on a close": (raw(0xA8), [(CLOSE, 1002)]),
    "a reserved bit on a continuation": (frame(b"a", fin=False) + raw(0x90, b"b"), [(CLOSE, 1002)]),
    "a step before a reserved bit": (STEPS + raw(0xC1, STEP) + frame(b"", PING), [ANSWER, (CLOSE, 1002)]),
    **{f"opcode {code:#x}": (frame(b"x", code), [(CLOSE, 1002)]) for code in (*range(3, 8), *range(11, 16))},
    "a step before an unknown opcode": (STEPS + raw(0x83) + STEPS, [ANSWER, (CLOSE, 1002)]),
}
CONTROLS: dict[str, tuple[bytes, list[Expected]]] = {
    "a ping": (frame(b"", PING), [(PONG, b"")]),
    "a ping of 125 bytes": (frame(b"\xfe" * 125, PING), [(PONG, b"\xfe" * 125)]),
    "a ping of 126 bytes": (frame(bytes(126), PING), [(CLOSE, 1002)]),
    "ten pings": (b"".join(frame(b"%d" % n, PING) for n in range(10)), [(PONG, b"%d" % n) for n in range(10)]),
    "a pong that was not asked for": (frame(b"x", PONG) + STEPS, [ANSWER]),
    "a pong of 126 bytes": (frame(bytes(126), PONG), [(CLOSE, 1002)]),
    "a ping in fragments": (frame(b"a", PING, fin=False) + frame(b"b", CONTINUATION), [(CLOSE, 1002)]),
    "a pong in fragments": (frame(b"a", PONG, fin=False), [(CLOSE, 1002)]),
    "a close in fragments": (frame(b"", CLOSE, fin=False), [(CLOSE, 1002)]),
}
FRAGMENTS: dict[str, tuple[bytes, list[Expected]]] = {
    "a text in two": (cut(STEP, 7), [ANSWER]),
    "a text in bytes": (cut(STEP, *range(1, len(STEP))), [ANSWER]),
    "empty fragments around a text": (cut(STEP, 0, 0, len(STEP)), [ANSWER]),
    "nothing, in three": (cut(b"", 0, 0), [ANSWER]),
    "pings between fragments": (cut(STEP, 3, 7, between=frame(b"p", PING)), [(PONG, b"p"), (PONG, b"p"), ANSWER]),
    "pongs between fragments": (cut(STEP, 3, 7, between=frame(b"p", PONG)), [ANSWER]),
    "a continuation of nothing": (frame(b"x", CONTINUATION), [(CLOSE, 1002)]),
    "a first fragment of nothing": (frame(b"x", CONTINUATION, fin=False), [(CLOSE, 1002)]),
    "a continuation after the end": (cut(STEP, 7) + frame(b"x", CONTINUATION), [ANSWER, (CLOSE, 1002)]),
    "a text within a text": (frame(b"a", fin=False) + STEPS, [(CLOSE, 1002)]),
    "bytes within a text": (frame(b"a", fin=False) + frame(b"b", BINARY), [(CLOSE, 1002)]),
    "a first fragment within a text": (frame(b"a", fin=False) * 2, [(CLOSE, 1002)]),
}
ENCODINGS: dict[str, tuple[bytes, list[Expected]]] = {
    **{
        f"UTF-8: {name}": (frame(data), [ANSWER])
        for name, data in {
            "Greek": CHARACTERS,
            "the last of 1 byte": b"\x7f",
            "the first of 2": b"\xc2\x80",
            "the last of 2": b"\xdf\xbf",
            "the first of 3": b"\xe0\xa0\x80",
            "the last of 3": b"\xef\xbf\xbf",
            "before the surrogates": b"\xed\x9f\xbf",
            "after them": b"\xee\x80\x80",
            "the first of 4": b"\xf0\x90\x80\x80",
            "the last of all": b"\xf4\x8f\xbf\xbf",
            "U+FFFE, which is no character": b"\xef\xbf\xbe",
            "NUL": b"\0",
        }.items()
    },
    **{
        f"not UTF-8: {name}": (frame(data), [(CLOSE, 1007)])
        for name, data in {
            "a continuation alone": b"\x80",
            "after what is": CHARACTERS + b"\xed\xa0\x80edited",
            "0xFE": b"\xfe",
            "0xFF": b"\xff",
            "overlong in 2": b"\xc0\xaf",
            "overlong in 3": b"\xe0\x80\xaf",
            "overlong in 4": b"\xf0\x80\x80\xaf",
            "a surrogate": b"\xed\xa0\x80",
            "a pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
            "beyond the last": b"\xf4\x90\x80\x80",
            "5 bytes": b"\xf8\x88\x80\x80\x80",
            "cut after 1 of 2": b"\xce",
            "cut after 3 of 4": b"a\xf0\x90\x80",
            "ASCII within a character": b"\xcea",
        }.items()
    },
    "a request that is not UTF-8": (frame(b'{"inputs": [["\xff"]]}'), [(CLOSE, 1007)]),
    "a character over fragments": (cut(CHARACTERS, 1), [ANSWER]),
    "every byte a fragment": (cut(CHARACTERS, *range(1, len(CHARACTERS))), [ANSWER]),
    "a ping within a character": (cut(CHARACTERS, 1, between=frame(b"", PING)), [(PONG, b""), ANSWER]),
    "4 bytes in 4 fragments": (cut(b"\xf0\x90\x80\x80", 1, 2, 3), [ANSWER]),
    "not UTF-8 over fragments": (cut(CHARACTERS + b"\xed\xa0\x80", len(CHARACTERS) + 1), [(CLOSE, 1007)]),
    "a character that no fragment ends": (cut(b"a\xce", 1), [(CLOSE, 1007)]),
    "a step before what is not UTF-8": (STEPS + frame(b"\xff") + STEPS, [ANSWER, (CLOSE, 1007)]),
    "bytes need not be UTF-8": (frame(b"\xff" * 12, BINARY), [ANSWER]),
    "a ping need not be UTF-8": (frame(b"\xff", PING), [(PONG, b"\xff")]),
}
CLOSES: dict[str, tuple[bytes, list[Expected]]] = {
    "no code": (frame(b"", CLOSE), [ENDED]),
    "one byte": (frame(b"\x03", CLOSE), [(CLOSE, 1002)]),
    **{
        f"code {code}": (close(code), [(CLOSE, code)])
        for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999)
    },
    **{
        f"code {code}, which no one may send": (close(code), [(CLOSE, 1002)])
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "a reason": (close(1000, CHARACTERS), [(CLOSE, struct.pack(">H", 1000) + CHARACTERS)]),
    "a reason of 123 bytes": (close(1000, b"x" * 123), [(CLOSE, 1000)]),
    "a reason of 124 bytes": (close(1000, b"x" * 124), [(CLOSE, 1002)]),
    "a reason that is not UTF-8": (close(1000, CHARACTERS + b"\xed\xa0\x80"), [(CLOSE, 1007)]),
    "a code that no one may send and a reason that is not UTF-8": (close(1004, b"a"), [(CLOSE, 1002)]),
    "steps after a close": (close(1000) + STEPS, [(CLOSE, 1000)]),
    "a ping after a close": (close(1000) + frame(b"", PING), [(CLOSE, 1000)]),
    "two closes": (close(1000) + close(1001), [(CLOSE, 1000)]),
    "steps before a close": (STEPS * 40 + close(1000), [*[ANSWER] * 40, (CLOSE, 1000)]),
    "a close within a message": (frame(b"a", fin=False) + close(1001), [(CLOSE, 1001)]),
}
LIMITS: dict[str, tuple[bytes, list[Expected]]] = {
    "a text of a byte more": (frame(padded(MOST + 1)), [(CLOSE, 1009)]),
    "bytes of a byte more": (frame(bytes(MOST + 1), BINARY), [(CLOSE, 1009)]),
    "fragments of the limit": (cut(padded(MOST), 1000), [ANSWER]),
    "a ping before the last byte of the limit": (
        cut(padded(MOST), MOST - 1, between=frame(bytes(125), PING)), [(PONG, bytes(125)), ANSWER]
    ),
    "an empty end after the limit": (cut(padded(MOST), MOST), [ANSWER]),
    "fragments of a byte more": (cut(padded(MOST + 1), MOST), [(CLOSE, 1009)]),
    "a fragment that announces a byte more": (
        frame(bytes(1000), BINARY, fin=False) + head(0x80, MOST - 999), [(CLOSE, 1009)]
    ),
    **{f"a text that announces 2^{n} bytes": (head(0x81, 2**n), [(CLOSE, 1009)]) for n in (31, 32, 62, 63)},
    "bytes that announce 2^64 - 1 bytes": (head(0x82, 2**64 - 1), [(CLOSE, 1009)]),
    "a fragment that announces 2^62 bytes": (frame(b"a", fin=False) + head(0x80, 2**62), [(CLOSE, 1009)]),
    "a ping that announces 2^62 bytes": (head(0x89, 2**62), [(CLOSE, 1002)]),
    "an unknown opcode that announces 2^62 bytes": (head(0x83, 2**62), [(CLOSE, 1002)]),
    "reserved bits that announce 2^62 bytes": (head(0xC2, 2**62), [(CLOSE, 1002)]),
    "no mask and 2^62 bytes": (head(0x81, 2**62, mask=False), [(CLOSE, 1002)]),
    "a step before 2^62 bytes": (STEPS + head(0x81, 2**62), [ANSWER, (CLOSE, 1009)]),
    "65,536 empty fragments": (
        frame(b"", fin=False) + frame(b"", CONTINUATION, fin=False) * 65_534 + frame(STEP, CONTINUATION), [ANSWER]
    ),
    "65,537 empty fragments": (
        frame(b"", fin=False) + frame(b"", CONTINUATION, fin=False) * 65_536, [(CLOSE, 1008)]
    ),
}  # fmt: skip
CASES = FRAMING | CONTROLS | FRAGMENTS | ENCODINGS | CLOSES | LIMITS
BY_BYTES = [name for name, (sent, _) in CASES.items() if len(sent) < 200]


@pytest.fixture(scope="module")
def protocol_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("protocol")
    with Server(folder, ONWARD_MAX_BODY_BYTES=str(MOST), ONWARD_WORKERS="1") as server:
        with httpx.Client(base_url=server.url) as client:
            client.post("/v1/models/pulse/sessions", json={"session_id": "s"}).raise_for_status()
        yield server


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_the_protocol(protocol_server: Server, name: str) -> None:
    """The service answers a case that is sent at once as the RFC demands."""
    sent, expected = CASES[name]
    with WebSocket(protocol_server.url, "s") as stream:
        stream.socket.sendall(sent)
        expect(stream, expected)


@pytest.mark.parametrize("name", BY_BYTES)
def test_a_case_of_the_protocol_byte_by_byte(protocol_server: Server, name: str) -> None:
    """The service answers alike if each byte is sent separately; bytes after its close may find a closed connection."""
    sent, expected = CASES[name]
    with WebSocket(protocol_server.url, "s") as stream:
        stream.socket.setsockopt(6, 1, 1)  # TCP_NODELAY
        try:
            for byte in sent:
                stream.socket.sendall(bytes([byte]))
        except ConnectionError:
            assert expected[-1][0] == CLOSE
        expect(stream, expected)


def expect(stream: WebSocket, expected: list[Expected]) -> None:
    """Asserts that these frames come, and then the end of the connection or the response to another step."""
    for opcode, content in expected:
        received, payload = stream.frame()
        assert received == opcode, payload
        if isinstance(content, int):
            assert struct.unpack(">H", payload[:2])[0] == content
            payload[2:].decode()
        else:
            assert content is None or payload == content
    if expected[-1][0] == CLOSE:
        with pytest.raises(ConnectionError, match=r"ended|reset"):
            stream.frame()
    else:
        stream.send({"inputs": [[501]]})
        assert "predictions" in stream.receive()
