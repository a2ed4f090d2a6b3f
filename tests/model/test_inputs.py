"""A client's inputs as an array."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onward.model.inputs import InputArray, InputError, Inputs, arrays, plain_numbers, to_array
from onward.model.manifest import Feature

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.tuples(FLOAT32, FLOAT32), min_size=1, max_size=20)
SINGLE = np.dtype(np.float32)
A, B = Feature(name="a"), Feature(name="b")
NULLABLE = Feature(name="n", nullable=True)
WORD = Feature(name="w", kind="category", categories=("ant", "bee", "cat"))
NUMBER = Feature(name="k", kind="category", categories=(7, 10, 300), unknown=True, nullable=True)
CHARACTER = Feature(name="token", kind="category", categories=("a", "b", "\u20ac"), text="characters")
BYTE = Feature(name="token", kind="category", categories=tuple(range(256)), text="bytes")


def array(inputs: Any, features: tuple[Feature, ...], field: str = "inputs") -> InputArray:
    """Returns `to_array` of inputs of any type, as a request body may have them."""
    return to_array(inputs, features, field, dtype=SINGLE)


@given(ROWS)
def test_rows_and_names_give_the_same_array(rows: list[tuple[float, float]]) -> None:
    """Inputs by name, in any order of the names, have the bits of inputs by row."""
    expected = np.array(rows, np.float32)
    by_row = array([list(row) for row in rows], (A, B))
    by_name = array([{"b": b, "a": a} for a, b in rows], (A, B))
    assert by_row.tobytes() == by_name.tobytes() == expected.tobytes()
    assert by_row.shape == (len(rows), 2)


@given(st.lists(st.one_of(st.floats(), st.integers(-(2**140), 2**140)), min_size=1, max_size=6))
def test_few_numbers_are_read_as_many_are(few: list[float | int]) -> None:
    """Few values have the same bits, and the same refusal beyond single precision, as a long list of them."""
    with np.errstate(over="ignore"):
        expected = np.array(few, np.float64).astype(np.float32)
    if np.isinf(expected).any():
        for values in (few, few * 40):
            with pytest.raises(InputError, match=r"inputs\[\d+\]\[0\]: .* is no finite 32-bit number"):
                array(values, (A,))
        return
    np.testing.assert_array_equal(array(few, (A,))[:, 0], expected)
    assert array(few * 40, (A,)).tobytes() == array(few, (A,)).tobytes() * 40


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.floats(), st.integers(-(2**140), 2**140), st.sampled_from([10**400, True, None, "1", []])
)
STEPS: st.SearchStrategy[list[Any]] = st.lists(VALUES, max_size=3)


@given(st.one_of(STEPS, st.lists(STEPS, max_size=3), st.lists(st.one_of(STEPS, VALUES), max_size=3)))
@example([340_282_356_779_733_642_748_073_463_979_561_713_664])  # the first whole number beyond single precision
def test_plain_numbers_are_read_as_any_inputs_are(inputs: list[Any]) -> None:
    """Lists of finite numbers have the array of `to_array`; all other inputs are left to it, without an error."""
    for features in ((A,), (A, B)):
        found = plain_numbers(inputs, len(features), SINGLE)
        listed = [step if isinstance(step, list) else [step] for step in inputs]
        values = [value for step in listed for value in step]
        if found is None:
            is_plain = bool(inputs) and all(len(step) == len(features) for step in listed)
            is_plain = is_plain and {type(step) is list for step in inputs} in ({True}, {len(features) > 1})
            assert not is_plain or any(
                type(value) not in {int, float} or not abs(value) <= float(np.finfo(np.float32).max) for value in values
            )
        else:
            expected = array(inputs, features)
            assert np.isfinite(found).all()
            assert (found.tobytes(), found.shape) == (expected.tobytes(), expected.shape)


def test_numbers_are_steps_of_a_single_feature() -> None:
    assert array([1, 2.5], (A,)).tolist() == [[1.0], [2.5]]
    with pytest.raises(InputError, match=r"inputs\[0\]: a step is 2 numbers \(a, b\), not one value"):
        array([1, 2.5], (A, B))


def test_every_fault_of_a_named_step_is_reported() -> None:
    """Missing and unknown features are both reported."""
    with pytest.raises(InputError) as error:
        array([{"a": 1, "b": 2}, {"a": 1, "c": 3}], (A, B), "inputs[4]")
    assert [fault.field for fault in error.value.faults] == ["inputs[4][1].b", "inputs[4][1].c"]


def test_a_category_is_given_as_the_data_has_it() -> None:
    """Words are given by name or index, whole numbers by value only; unknown ones get the index after the last."""
    assert array(["bee", "ant", 2], (WORD,)).tolist() == [[1.0], [0.0], [2.0]]
    assert array([300, 7, 8, 1], (NUMBER,)).tolist() == [[2.0], [0.0], [3.0], [3.0]]
    assert array([[1.5, "cat"], [2, "ant"]], (A, WORD)).tolist() == [[1.5, 2.0], [2.0, 0.0]]
    assert array([{"w": "cat", "a": 1.0}], (A, WORD)).tolist() == [[1.0, 2.0]]


def test_null_is_a_missing_value_of_a_nullable_feature() -> None:
    got = array([[None, None], [2, 10]], (NULLABLE, NUMBER))
    assert np.isnan(got[0]).all()
    assert got[1].tolist() == [2.0, 1.0]


def test_a_text_is_its_characters_or_bytes() -> None:
    assert array("ba\u20ac", (CHARACTER,)).tolist() == [[1.0], [0.0], [2.0]]
    assert array("\u20ac", (BYTE,)).tolist() == [[226.0], [130.0], [172.0]]


@pytest.mark.parametrize(
    ("inputs", "features", "message"),
    [
        ([[1.0, None]], (NULLABLE, A), r"inputs\[0\]\[1\]: null \(a\): this value may not be missing"),
        ([[1.0], ["2"]], (A,), r"inputs\[1\]\[0\]: '2' \(a\) is not a number"),
        (["dog"], (WORD,), r"inputs\[0\]\[0\]: 'dog' \(w\) is none of the 3 categories: 'ant', 'bee', 'cat'$"),
        ([3], (WORD,), r"inputs\[0\]\[0\]: 3 \(w\) is none of the 3 categories"),
        ([-1], (WORD,), r"-1 \(w\) is none"),
        ([1.0], (WORD,), r"1.0 \(w\) is none"),
        (["7"], (NUMBER,), r"'7' \(k\) is none of the 3 categories: 7, 10, 300$"),
        ([None], (WORD,), r"null \(w\): this value may not be missing"),
        ("axb", (CHARACTER,), r"inputs\[1\]\[0\]: 'x' \(token\) is none of the 3 categories"),
        ("ab", (A,), r"inputs: the model reads no text; a step is 1 number \(a\)"),
        ("", (CHARACTER,), r"inputs: needs at least one step"),
        ("\ud800", (BYTE,), r"inputs\[0\]: half a surrogate pair is no character"),
        ([[1e39]], (NULLABLE,), r"inputs\[0\]\[0\]: 1e\+39 \(n\) is no finite 32-bit number"),
        ([[1], [10**400]], (A,), r"inputs\[1\]\[0\]: inf \(a\) is no finite 32-bit number"),
        ([[1.0, "ant"], [1.0]], (A, WORD), r"inputs\[1\]: a step is 2 values \(a, w\); this one has 1"),
    ],
)
def test_an_invalid_value_is_refused_with_its_position(
    inputs: Inputs, features: tuple[Feature, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        array(inputs, features)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[1], [2], 3], "inputs[2]: is one value, where the first step is a list of values"),
        ([[1], {"a": 2}], "inputs[1]: is values by name, where the first step is a list of values"),
        ([{"a": 1}, [2]], "inputs[1]: is a list of values, where the first step is values by name"),
        ([1, 2.5, [3]], "inputs[2]: is a list of values, where the first step is one value"),
        ([1, {"a": 2}], "inputs[1]: is values by name, where the first step is one value"),
        ([["1"], "2"], "inputs[1]: is one value, where the first step is a list of values"),
    ],
)
def test_steps_are_all_written_in_one_way(inputs: Any, message: str) -> None:
    """The error names the first step that has another form."""
    with pytest.raises(InputError) as error:
        array(inputs, (A,))
    assert str(error.value) == message


PARTS: dict[str, tuple[Any, tuple[Feature, ...]]] = {
    "numbers": ([0.5, 1, 2, 3.5, 4, 5, 6], (A,)),
    "lists": ([[0.5], [1], [2], [3.5], [4], [5], [6]], (A,)),
    "by name": ([{"a": number} for number in range(7)], (A,)),
    "bytes": (np.arange(7, dtype="<f4").tobytes(), (A,)),
    "a text": ("abc def", (BYTE,)),
    "the last is null": ([0, 1, 2, 3, 4, 5, None], (A,)),
    "the last is too large": ([0, 1, 2, 3, 4, 5, 1e40], (A,)),
    "the last is a list": ([0, 1, 2, 3, 4, 5, [6]], (A,)),
    "the last has two values": ([[0], [1], [2], [3], [4], [5], [6, 7]], (A,)),
    "the last has another name": ([*({"a": number} for number in range(6)), {"co2": 1}], (A,)),
    "the last part is of another form": ([0, 1, 2, 3, 4, 5, {"a": 1}], (A,)),
    "bytes over": (bytes(27), (A,)),
    "nothing": ([], (A,)),
}


def test_the_dtype_is_the_models() -> None:
    """Lists, plain numbers and bytes keep the digits of doubles where the model takes doubles."""
    values, double = [1_700_000_000.125, 1_700_000_000.25], np.dtype(np.float64)
    plain = plain_numbers(values, 1, double)
    packed = np.array(values, "<f8").tobytes()
    for found in (
        to_array(inputs, (A,), dtype=double) for inputs in (values, [{"a": value} for value in values], packed)
    ):
        assert found.tobytes() == packed
    assert plain is not None
    assert plain.tobytes() == packed
    nullable = to_array(np.array([np.nan, values[0]], "<f8").tobytes(), (NULLABLE,), dtype=double)
    assert nullable[1].tolist() == values[:1]
    assert len(set(array(values, (A,))[:, 0].tolist())) == 1, "single precision"
    assert plain_numbers([10**400], 1, double) is None
    with pytest.raises(InputError, match="is no finite 64-bit number"):
        to_array([10**400], (A,), dtype=double)
    with pytest.raises(InputError, match="1 number \\(a\\) of 8 bytes each; 12 bytes"):
        to_array(bytes(12), (A,), dtype=double)


@pytest.mark.parametrize("name", PARTS)
def test_inputs_in_parts_are_read_as_a_whole(name: str) -> None:
    """Inputs that are divided at any step give the same numbers, or the same fault with the same position."""
    inputs, features = PARTS[name]
    for at_once in (1, 2, 3, 6, 7, 9):
        try:
            whole: Any = array(inputs, features).tolist()
        except InputError as error:
            whole = error.faults
        try:
            parts: Any = np.concatenate(list(arrays(inputs, features, dtype=SINGLE, at_once=at_once))).tolist()
        except InputError as error:
            parts = error.faults
        assert parts == whole


LIMITED = Feature(name="x", limits=(-1.5, 2.5), nullable=True)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)])
def test_numbers_beyond_the_limits_are_refused_in_every_notation(dtype: Any) -> None:
    """The error names the step, the feature, the value and the limits; the limits themselves and null are accepted."""
    fits: list[Any] = [[1.0, -1.5], [9e9, 2.5]]
    for beyond in (-1.6, 2.6, 1e300):
        rows = [*fits, [0.0, beyond]]
        notations: list[Any] = [rows, [{"a": a, "x": x} for a, x in rows]]
        if beyond < 1e300:
            notations.append(np.array(rows, dtype).tobytes())
        for inputs in notations:
            for at_once in (None, 1, 2):
                with pytest.raises(InputError) as refused:
                    list(arrays(inputs, (A, LIMITED), dtype=dtype, at_once=at_once))
                (fault,) = refused.value.faults
                assert fault.field == "inputs[2][1]"
                assert " (x) is beyond the limits of this feature, -1.5 to 2.5" in fault.message
                assert float(fault.message.split()[0]) == pytest.approx(beyond, rel=1e-6)
    with_null = [*fits, [0.0, None]]
    expected = to_array(with_null, (A, NULLABLE), dtype=dtype)
    assert to_array(with_null, (A, LIMITED), dtype=dtype).tobytes() == expected.tobytes()
    assert to_array(expected.tobytes(), (A, LIMITED), dtype=dtype).tobytes() == expected.tobytes()
