"""Frames are parsed as the websockets library parses them, in pieces of any size and in bounded memory."""

import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from onward.service.websocket.framing import MOST_FRAGMENTS, PIECE, Frames, Message
from tests.helpers import websocket_client
from tests.helpers.websocket_client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

MOST = 70_000
PAYLOADS = st.one_of(
    st.binary(max_size=130), st.sampled_from([125, 126, 127, 65_535]).map(bytes), st.just(bytes(MOST - 1))
)
TEXTS = st.one_of(st.text(max_size=60).map(str.encode), PAYLOADS.filter(bytes.isascii))
MASKS = st.binary(min_size=4, max_size=4)
WHOLE = st.one_of(st.builds(frame, TEXTS, st.just(TEXT), MASKS), st.builds(frame, PAYLOADS, st.just(BINARY), MASKS))
CONTROL = st.builds(frame, st.binary(max_size=125), st.sampled_from([PING, PONG]), MASKS)
PARTS = st.lists(PAYLOADS, min_size=2, max_size=4).map(lambda parts: fragments(parts, BINARY))
CUT_TEXTS = st.builds(
    lambda data, cuts: fragments([data[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True)]),
    st.text(min_size=1, max_size=20).map(str.encode),
    st.lists(st.integers(0, 20), min_size=1, max_size=3),
)
LONG = struct.pack(">BBQ", 0x82, 0xFF, 66_000) + bytes(4) + bytes(66_000)
WRONG = [
    frame(b"", 0), frame(b"x", 3), frame(b"x" * 126, PING), b"\x81\x01x", b"\xc1\x80" + bytes(4),
    frame(bytes(MOST + 1)),
    frame(b"a", TEXT, fin=False) + frame(b"b", TEXT), frame(b"\x03", CLOSE), frame(struct.pack(">H", 999), CLOSE),
    struct.pack(">BBQ", 0x81, 0xFF, MOST + 1) + bytes(4), struct.pack(">BBQ", 0x81, 0xFF, 2**63) + bytes(4),
    frame(b"x" * (MOST - 9), TEXT, fin=False) + frame(b"y" * 10, 0), frame(struct.pack(">H", 1000), CLOSE),
]  # fmt: skip


def fragments(parts: list[bytes], opcode: int = TEXT) -> bytes:
    return b"".join(
        frame(part, CONTINUATION if index else opcode, fin=index == len(parts) - 1) for index, part in enumerate(parts)
    )


def pieces(frames: Frames, data: bytes) -> Iterator[list[Message]]:
    """The lists of messages that `take` returns until no more are ready."""
    yield frames.take(data)
    while frames.more:
        yield frames.take()


class Reference:
    """The protocol of the websockets library, which receives the same bytes."""

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
@given(st.lists(st.one_of(WHOLE, WHOLE, CONTROL, PARTS, CUT_TEXTS, st.just(LONG)), max_size=6), WHOLE, st.data())
@settings(deadline=None, max_examples=20)
def test_frames_are_parsed_as_the_library_parses_them(
    end: bytes, frames: list[bytes], more: bytes, data: st.DataObject
) -> None:
    """Messages, pongs, close codes and the end are the same, also for bytes that follow the end, and for a message that
    is read alone.
    """
    sent = b"".join(frames) + end + more
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    frames_under_test, reference = Frames(MOST), Reference()
    received, answers, expected, expected_answers = list[Message](), b"", list[Message](), b""
    for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        alone = frames_under_test.single(sent[start:stop])
        for number, messages in enumerate(pieces(frames_under_test, sent[start:stop])):
            assert alone is None or (number, messages) == (0, [alone])
            received += messages
            answers += frames_under_test.to_send()
        expected += reference.take(sent[start:stop])
        expected_answers += b"".join(reference.protocol.data_to_send())
    assert received == expected
    assert without_reasons(answers) == without_reasons(expected_answers)
    assert frames_under_test.ends == reference.protocol.eof_sent


def without_reasons(answers: bytes) -> list[tuple[int, bytes]]:
    """The opcode and payload of each frame; the payload of a close frame is its code alone."""
    frames = websocket_client.Frames().feed(answers)
    return [(opcode, payload[:2] if opcode == CLOSE else payload) for opcode, payload in frames]


@given(st.lists(st.tuples(PAYLOADS, st.booleans()), max_size=4))
def test_frames_are_written_as_the_library_writes_them(messages: list[tuple[bytes, bool]]) -> None:
    """The bytes are equal, and nothing is written once the connection is closed."""
    protocol = ServerProtocol(state=State.OPEN)
    for payload, is_text in messages:
        (protocol.send_text if is_text else protocol.send_binary)(payload)
    frames = Frames(MOST)
    assert frames.encoded(list(messages)) == b"".join(protocol.data_to_send())
    frames.take(frame(struct.pack(">H", 1000), CLOSE))
    assert frames.encoded([(b"x", True)]) == b""


ENDLESS = {
    "empty fragments": (frame(b"", fin=False), frame(b"", CONTINUATION, fin=False)),
    "fragments of a byte": (frame(b"x", fin=False), frame(b"x", CONTINUATION, fin=False)),
    "pings": (b"", frame(b"0123456789", PING)),
    "pings within a message": (frame(b"x", fin=False), frame(b"", PING)),
    "pongs": (b"", frame(b"0123456789", PONG)),
    "empty messages": (b"", frame(b"")),
    "messages of a byte": (b"", frame(b"x", BINARY)),
    "messages in two": (b"", fragments([b"a", b"b"])),
    "closes": (frame(b"", CLOSE), frame(b"", CLOSE)),
}
READ, FRAMES, MEMORY = 65_536, 50_000, 2**20


@pytest.mark.parametrize("kind", ENDLESS)
def test_memory_does_not_grow_with_the_number_of_frames(kind: str) -> None:
    """Memory is bounded by a read and a message, because each piece is answered before the next is parsed."""
    first, repeated = ENDLESS[kind]
    data = repeated * (READ // len(repeated))
    frames = Frames(READ)
    tracemalloc.start()
    frames.take(first)
    for _ in range(FRAMES * len(repeated) // len(data)):
        for messages in pieces(frames, data):
            assert len(messages) <= PIECE
            assert len(frames.to_send()) <= PIECE * 127
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY


@pytest.mark.parametrize("size", [0, 1])
def test_a_message_without_an_end_is_refused(size: int) -> None:
    """The number of fragments of a message is limited, even if the fragments are small or empty."""
    frames = Frames(10 * MOST_FRAGMENTS)
    more = frame(bytes(size), CONTINUATION, fin=False) * (PIECE - 1)
    frames.take(frame(b"", fin=False))
    count = 1
    while count + PIECE <= MOST_FRAGMENTS:
        frames.take(more)
        count += PIECE - 1
    frames.take(frame(b"", CONTINUATION, fin=False) * (MOST_FRAGMENTS - count))
    assert frames.is_open
    frames.take(frame(b"", CONTINUATION))
    (answer,) = websocket_client.Frames().feed(frames.to_send())
    assert answer == (CLOSE, struct.pack(">H", 1008) + b"a message has at most 65536 frames")
    assert frames.ends


def test_a_long_frame_is_assembled_without_repeated_copies() -> None:
    """A frame that arrives byte by byte is not copied for each byte."""
    size = 2**18
    frames = Frames(size)
    assert frames.take(struct.pack(">BBQ", 0x82, 0xFF, size) + bytes(4)) == []
    rest = frames._rest
    for _ in range(size - 1):
        assert not frames.take(b"x")
    assert frames._rest is rest
    assert frames.take(b"x") == [(b"x" * size, False)]
    assert len(frames._rest) == 0


def test_the_memory_of_a_long_message_is_freed() -> None:
    """No memory of a message remains in use after the message was taken."""
    size = 2**22
    frames = Frames(size)
    data = struct.pack(">BBQ", 0x02, 0xFF, size) + bytes(4) + bytes(size)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for start in range(0, len(data), READ):
        assert not frames.take(data[start : start + READ])
    assert len(frames.take(frame(b"", CONTINUATION))) == 1
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 10_000
    assert peak - before < 4 * size


def test_messages_before_the_end_are_answered_before_the_close_frame() -> None:
    """Messages before an error or a close frame are returned first, so that their responses precede the close frame."""
    for end, code in ((b"\xff" * 20, 1002), (frame(struct.pack(">H", 1000), CLOSE), 1000), (frame(b"\xff"), 1007)):
        frames = Frames(MOST)
        assert frames.take(frame(b"a") + frame(b"b") + end + frame(b"c")) == [(b"a", True), (b"b", True)]
        assert frames.encoded([(b"A", True)])
        assert (frames.to_send(), frames.more, frames.ends) == (b"", True, False)
        assert frames.take() == []
        ((opcode, payload),) = websocket_client.Frames().feed(frames.to_send())
        assert (opcode, payload[:2]) == (CLOSE, struct.pack(">H", code))
        assert (frames.more, frames.ends, frames.encoded([(b"B", True)])) == (False, True, b"")
        assert frames.take(frame(b"d")) == []
