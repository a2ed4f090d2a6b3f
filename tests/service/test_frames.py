"""Frames are read as the library alone reads them, however they are cut and mixed."""

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from service.frames import Frames, Message
from tests.websocket import BINARY, CLOSE, PING, PONG, TEXT, frame

MOST = 70_000
PAYLOADS = st.one_of(
    st.binary(max_size=130), st.sampled_from([125, 126, 127, 65_535]).map(bytes), st.just(bytes(MOST - 1))
)
MASKS = st.binary(min_size=4, max_size=4)
WHOLE = st.builds(frame, PAYLOADS, st.sampled_from([TEXT, BINARY]), MASKS)
CONTROL = st.builds(frame, st.binary(max_size=125), st.sampled_from([PING, PONG]), MASKS)
PARTS = st.lists(PAYLOADS, min_size=2, max_size=4).map(
    lambda parts: b"".join(
        frame(part, TEXT if not place else 0, fin=place == len(parts) - 1) for place, part in enumerate(parts)
    )
)
LONG = struct.pack(">BBQ", 0x82, 0xFF, 66_000) + bytes(4) + bytes(66_000)
WRONG = [
    frame(b"", 0), frame(b"x", 3), frame(b"x" * 126, PING), b"\x81\x01x", b"\xc1\x80" + bytes(4),
    frame(bytes(MOST + 1)),
    frame(b"a", TEXT, fin=False) + frame(b"b", TEXT), frame(b"\x03", CLOSE), frame(struct.pack(">H", 999), CLOSE),
    struct.pack(">BBQ", 0x81, 0xFF, MOST + 1) + bytes(4), struct.pack(">BBQ", 0x81, 0xFF, 2**63) + bytes(4),
    frame(b"x" * (MOST - 9), TEXT, fin=False) + frame(b"y" * 10, 0), frame(struct.pack(">H", 1000), CLOSE),
]  # fmt: skip


class Reference:
    """The library, given every byte."""

    def __init__(self) -> None:
        self.protocol = ServerProtocol(state=State.OPEN, max_size=MOST)
        self.parts: list[Any] = []

    def take(self, data: bytes) -> list[Message]:
        self.protocol.receive_data(data)
        found = []
        for event in self.protocol.events_received():
            assert not isinstance(event, (str, int))
            if getattr(event, "opcode", None) in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self.parts.append(event)
                if self.parts[-1].fin:
                    whole = b"".join(part.data for part in self.parts)
                    found.append((whole, self.parts[0].opcode is Opcode.TEXT))
                    self.parts.clear()
        return found


@pytest.mark.parametrize("end", [b"", *WRONG], ids=range(len(WRONG) + 1))
@given(st.lists(st.one_of(WHOLE, WHOLE, CONTROL, PARTS, st.just(LONG)), max_size=6), WHOLE, st.data())
@settings(deadline=None, max_examples=20)
def test_as_the_library_reads_them(end: bytes, frames: list[bytes], more: bytes, data: st.DataObject) -> None:
    """The same messages, the same words of the protocol's own, the same end; also of what comes after the end."""
    sent = b"".join(frames) + end + more
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    ours, theirs = Frames(ServerProtocol(state=State.OPEN, max_size=MOST)), Reference()
    heard, said, expected, answers = list[Message](), b"", list[Message](), b""
    for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        heard += ours.take(sent[start:stop])
        said += ours.to_send()
        expected += theirs.take(sent[start:stop])
        answers += b"".join(theirs.protocol.data_to_send())
    assert heard == expected
    assert said == answers
    assert ours.ends == theirs.protocol.eof_sent


@given(st.lists(st.tuples(PAYLOADS, st.booleans()), max_size=4))
def test_as_the_library_writes_them(messages: list[tuple[bytes, bool]]) -> None:
    """Bit for bit; and nothing once the connection is closed."""
    protocol = ServerProtocol(state=State.OPEN)
    for payload, is_text in messages:
        (protocol.send_text if is_text else protocol.send_binary)(payload)
    frames = Frames(ServerProtocol(state=State.OPEN))
    assert frames.said(list(messages)) == b"".join(protocol.data_to_send())
    frames.take(frame(struct.pack(">H", 1000), CLOSE))
    assert frames.said([(b"x", True)]) == b""
