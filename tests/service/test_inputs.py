"""A client's inputs as an array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.inputs import to_array
from service.errors import InvalidInputError

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.tuples(FLOAT32, FLOAT32), min_size=1, max_size=20)


@given(ROWS)
def test_rows_and_names_are_two_ways_to_say_the_same(rows: list[tuple[float, float]]) -> None:
    """In any order of the names, bit for bit."""
    expected = np.array(rows, np.float32)
    by_row = to_array([list(row) for row in rows], ("a", "b"))
    by_name = to_array([{"b": b, "a": a} for a, b in rows], ("a", "b"))
    assert by_row.tobytes() == by_name.tobytes() == expected.tobytes()
    assert by_row.shape == (len(rows), 2)


def test_numbers_are_steps_of_a_single_feature() -> None:
    assert to_array([1, 2.5], ("a",)).tolist() == [[1.0], [2.5]]
    with pytest.raises(InvalidInputError, match=r"inputs\[0\]: a step is 2 numbers \(a, b\)"):
        to_array([1, 2.5], ("a", "b"))


def test_every_fault_of_a_named_step_is_told() -> None:
    """Missing and unknown features alike."""
    with pytest.raises(InvalidInputError) as error:
        to_array([{"a": 1, "b": 2}, {"a": 1, "c": 3}], ("a", "b"), "inputs[4]")
    assert [fault.field for fault in error.value.faults] == ["inputs[4][1].b", "inputs[4][1].c"]
