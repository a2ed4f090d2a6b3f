"""State as rows and as bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.manifest import StatePair
from model.state import Layout, State, StateError

PAIRS = (
    StatePair(input="h", output="h2", shape=(2, "batch", 3)),
    StatePair(input="count", output="count2", shape=("batch",), dtype="int64", init=7),
    StatePair(input="ring", output="ring2", shape=("batch", 4), dtype="uint8", init=[1, 2, 3, 255]),
    StatePair(input="wide", output="wide2", shape=("batch", 2), dtype="float64", init=[0.1, -0.0]),
)


def layout() -> Layout:
    return Layout(PAIRS)


def filled(rows: int, seed: int = 0) -> State:
    state = layout().initial(rows)
    rng = np.random.default_rng(seed)
    state["h"] = rng.standard_normal((rows, 2, 3))
    state["count"] = rng.integers(-(2**62), 2**62, rows)
    state["ring"] = rng.integers(0, 256, (rows, 4))
    state["wide"] = rng.standard_normal((rows, 2))
    return state


def test_initial_is_the_declared_value_in_every_row() -> None:
    """A new session starts from each tensor's own `init`, spread over the shape of one row, and from no other row."""
    state = layout().initial(3)
    assert state.shape == (3,)
    assert state["h"].tolist() == np.zeros((3, 2, 3)).tolist()
    assert state["count"].tolist() == [7, 7, 7]
    assert state["ring"].tolist() == [[1, 2, 3, 255]] * 3
    assert state["wide"].tobytes() == np.array([[0.1, -0.0]] * 3).tobytes()
    state["h"][0] = 5.0
    assert not state["h"][1:].any()
    assert not layout().initial(1)["h"].any()


@given(st.binary(min_size=80, max_size=80))
def test_every_bit_pattern_survives_bytes(memory: bytes) -> None:
    """A state comes back from bytes with the bits it had, NaN and negative zero included."""
    assert layout().dtype.itemsize == 24 + 8 + 4 + 16
    state = np.frombuffer(memory[: layout().dtype.itemsize], layout().dtype)
    assert layout().from_bytes(layout().to_bytes(state[0])).tobytes() == state.tobytes()


def test_stack_keeps_rows_in_order() -> None:
    """The rows of a batch are the rows that were given, in that order, as in memory."""
    state = filled(5)
    rows = [layout().to_bytes(row) for row in state]
    assert layout().stack(rows).tobytes() == state.tobytes()
    assert layout().stack(rows[::-1])["count"].tolist() == state["count"].tolist()[::-1]
    assert layout().stack([]).shape == (0,)


def test_one_flipped_bit_is_found_wherever_it_is() -> None:
    """A record damaged in any bit of any byte is refused, never served."""
    good = layout().to_bytes(filled(1)[0])
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            with pytest.raises(StateError):
                layout().from_bytes(bytes(bad))


def test_every_other_length_is_refused() -> None:
    """A record cut short anywhere, or with bytes after it, is refused."""
    good = layout().to_bytes(filled(1)[0])
    for length in range(len(good)):
        with pytest.raises(StateError):
            layout().from_bytes(good[:length])
    with pytest.raises(StateError, match=f"{len(good) + 1} bytes long, expected {len(good)}"):
        layout().from_bytes(good + b"\0")


@pytest.mark.parametrize(
    "other",
    [
        (PAIRS[1], PAIRS[0], *PAIRS[2:]),
        (PAIRS[0].model_copy(update={"input": "g"}), *PAIRS[1:]),
        (PAIRS[0].model_copy(update={"shape": (3, "batch", 2)}), *PAIRS[1:]),
        (*PAIRS[:3], PAIRS[3].model_copy(update={"dtype": "int64", "init": 0})),
    ],
    ids=["order", "name", "shape", "dtype"],
)
def test_a_foreign_layout_is_refused(other: tuple[StatePair, ...]) -> None:
    """State of another model is refused although it has as many bytes: by order, name, shape or type of tensors."""
    assert Layout(other).dtype.itemsize == layout().dtype.itemsize
    row = Layout(other).to_bytes(Layout(other).initial(1)[0])
    with pytest.raises(StateError, match="written by a model with other state tensors"):
        layout().from_bytes(row)


def test_the_refusal_says_which_and_why() -> None:
    """The message gives the row's place in the batch, and tells another format from damage."""
    good = layout().to_bytes(filled(1)[0])
    with pytest.raises(StateError, match="state of row 2: not a state of format 1"):
        layout().stack([good, good, b"OWS\x02" + good[4:]])
    with pytest.raises(StateError, match="state of row 1: checksum does not match"):
        layout().stack([good, good[:-1] + bytes([good[-1] ^ 1])])


def test_the_wire_format_is_fixed() -> None:
    """Bytes written today must be readable by every later version: tag, layout, checksum, then the row's memory."""
    pair = StatePair(input="h", output="h2", shape=("batch", 2), init=[1.0, -2.0])
    row = Layout([pair]).to_bytes(Layout([pair]).initial(1)[0])
    assert row.hex() == "4f575301" + "ae0bcce8537c94dd" + "562687c3" + "0000803f" + "000000c0"


@pytest.mark.parametrize(
    "init",
    [
        [1.0, 2.0],
        [[1.0], [2.0, 3.0]],
        float("nan"),
        float("inf"),
        1e39,
        10**400,
        ["a", "b", "c"],
        [{}, {}, {}],
        [None] * 3,
    ],
)
def test_an_init_that_is_no_row_is_refused(init: object) -> None:
    """An initial value of the wrong shape, or no finite number, is a ValueError with the tensor's name."""
    pair = StatePair.model_construct(input="h", output="h2", shape=("batch", 3), dtype="float32", init=init)
    with pytest.raises(ValueError, match=r"^state 'h': init"):
        Layout([pair])
