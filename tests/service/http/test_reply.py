"""The encoder of response bodies: a large body is encoded in pieces, with the bytes of a whole encoding."""

import gevent
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.service.engine.event_loop import LoopTurns
from onward.service.http import reply
from onward.service.http.reply import encode, encode_by_turns

LONG = np.arange(300_000, dtype=np.float32) / 7
LARGE = {
    "an array": LONG,
    "rows": LONG.reshape(-1, 3),
    "long rows": LONG.reshape(3, -1),
    "columns": {"step": 7, "predictions": {'a "name"': LONG[:5000], "b": LONG[:3]}, "none": None},
    "a list": list(range(10_000)),
    "many objects": [
        {"step": number, "values": LONG[number : number + 9], "text": ["a", None]} for number in range(1000)
    ],
    "a long array among short ones": [1, [2, 3], LONG, "text", LONG[:2], []],
    "fragments": {"problems": {str(number): orjson.Fragment(b'{"a": 1}') for number in range(5000)}},
    "empty arrays": [[], {}, LONG[:0], LONG],
}


@pytest.mark.parametrize("name", LARGE)
def test_encoding_in_pieces_equals_encoding_the_whole(name: str) -> None:
    """Both encoders write the same bytes."""
    assert encode_by_turns(LARGE[name]) == encode(LARGE[name])


@given(
    st.recursive(
        st.none() | st.integers(-9, 9) | st.text(max_size=3) | st.integers(0, 30).map(lambda count: LONG[:count]),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=5),
        max_leaves=30,
    )
)
def test_encoding_any_content_in_pieces_equals_encoding_the_whole(content: object) -> None:
    """The bytes do not depend on where the pieces end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reply, "PIECE", 3)
        assert encode_by_turns(content) == encode(content)


def test_the_event_loop_turns_while_a_large_response_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece has few values, and other greenlets run between two pieces."""
    sizes: list[int] = []

    def counted(content: object) -> bytes:
        data = encode(content)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(reply, "encode", counted)
    turns_at = []

    def count_turns() -> None:
        turns = LoopTurns()
        while True:
            turns_at.append(len(sizes))
            turns.take()

    counting = gevent.spawn(count_turns)
    data = encode_by_turns({"predictions": {"mean": LONG, "rows": LONG.reshape(-1, 3)}})
    counting.kill()
    assert max(sizes) < len(data) / 50
    assert len(set(turns_at)) > len(data) / reply.PIECE_BYTES / 3
