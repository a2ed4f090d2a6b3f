"""State as rows and as bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.model.manifest import Part, StatePair
from onward.model.state import Layout, State, StateError

PAIRS = (
    StatePair(input="h", output="h2", shape=(2, "batch", 3)),
    StatePair(input="count", output="count2", shape=("batch",), dtype="int64", init=7),
    StatePair(input="ring", output="ring2", shape=("batch", 4), dtype="uint8", init=[1, 2, 3, 255]),
    StatePair(input="wide", output="wide2", shape=("batch", 2), dtype="float64", init=[0.1, -0.0]),
)


JOINED = StatePair(
    input="joined",
    output="joined2",
    shape=(2, "batch", 3),
    init=[[0, 0, 0], [0, 0.5, -1.5]],
    parts=(Part(name="h", size=4), Part(name="mean", size=2)),
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
    assert layout().stack([state[0].tobytes()]).tobytes() == state.tobytes()


def test_stack_keeps_rows_in_order() -> None:
    """The rows of a batch are the rows that were given, in that order, as in memory."""
    state = filled(5)
    rows = [row.tobytes() for row in state]
    assert layout().stack(rows).tobytes() == state.tobytes()
    assert layout().stack(rows[::-1])["count"].tolist() == state["count"].tolist()[::-1]
    assert layout().stack([]).shape == (0,)


def test_every_other_length_is_refused() -> None:
    """A row cut short anywhere, or with bytes after it, is refused, and its place in the batch is said."""
    good = filled(1)[0].tobytes()
    for length in range(len(good)):
        with pytest.raises(StateError):
            layout().stack([good[:length]])
    with pytest.raises(StateError, match=f"state of row 1: {len(good) + 1} bytes long, expected {len(good)}"):
        layout().stack([good, good + b"\0"])
    with pytest.raises(StateError, match="state of row 0"):
        layout().stack([good + b"\0", good[:-1]])  # together as long as two


def test_a_rows_bytes_are_its_memory() -> None:
    """Bytes written today must be readable by every later version: each tensor in turn, little-endian."""
    pair = StatePair(input="h", output="h2", shape=("batch", 2), init=[1.0, -2.0])
    assert Layout([pair]).initial(1)[0].tobytes().hex() == "0000803f" + "000000c0"


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


def test_parts_of_a_tensor_are_views() -> None:
    """A part is so many elements of a row in the order of its axes; a tensor without parts is viewed whole."""
    joined = Layout((PAIRS[1], JOINED, PAIRS[3]))
    state = joined.initial(2)
    assert state["joined"].tolist() == [[[0, 0, 0], [0, 0.5, -1.5]]] * 2
    parts = joined.parts(state)
    assert parts.dtype.names == ("count", "joined.h", "joined.mean", "wide")
    parts["joined.h"] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert state["joined"].tolist() == [[[1, 2, 3], [4, 0.5, -1.5]], [[5, 6, 7], [8, 0.5, -1.5]]]
    assert parts["count"].tolist() == [7, 7]
    assert parts["wide"].tobytes() == state["wide"].tobytes()
    named = state.view(joined.view({"middle": ("joined.mean", (2, 1)), "number": ("count", ())}))
    assert named["middle"].tolist() == [[[0.5], [-1.5]]] * 2
    assert named["number"].tolist() == [7, 7]
