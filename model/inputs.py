"""Conversion of a client's inputs to an array in the model's order of features.

Owns the notations of a step: a list of values, one value, values by feature name, or a piece of a text. A value is a
number, a category as it is in the training data, or null if the feature is nullable. Knows nothing of HTTP or sessions:
the service and the local client read inputs by the same rules.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import Feature

Value = float | int | str | None
Rows = Sequence[Sequence[Value]]
Values = Sequence[Value]
NamedRows = Sequence[Mapping[str, Value]]
Inputs = Rows | Values | NamedRows | str | bytes
"""Bytes are little-endian floats of the model's input dtype: categories as numbers, missing values as NaN."""
InputArray = NDArray[np.float32 | np.float64]
"""Inputs (..., features) in the client's units, categories as indices and missing values as NaN."""
InputDtype = np.dtype[np.float32 | np.float64]

MOST_NAMED_FAULTS = 3
"""The most faults that the message of an error lists, as in the service's."""
_NUMBER_TYPES = frozenset({int, float})
_BY_NAME, _LISTED, _SINGLE = "values by name", "a list of values", "one value"


class Fault(NamedTuple):
    """An invalid field of a request, and what is wrong with it."""

    field: str
    message: str


class InputError(ValueError):
    """The inputs do not fit the model; `faults` lists the invalid fields."""

    def __init__(self, *faults: Fault) -> None:
        few = "; ".join(f"{fault.field}: {fault.message}" for fault in faults[:MOST_NAMED_FAULTS])
        more = len(faults) - MOST_NAMED_FAULTS
        super().__init__(f"{few}; and {more} more" if more > 0 else few)
        self.faults = faults


def to_array(inputs: Inputs, features: Sequence[Feature], field: str = "inputs", *, dtype: InputDtype) -> InputArray:
    """Returns inputs (steps, features) in the model's order: categories as indices, missing values as NaN.

    The array may be read-only. field: the name of the inputs in errors. dtype: the model's input dtype. Raises
    InputError, which names the step and the feature.
    """
    (array,) = arrays(inputs, features, field, dtype=dtype)
    return array


def plain_numbers(inputs: Any, width: int, dtype: InputDtype, above: InputArray | None = None) -> InputArray | None:
    """Returns what `to_array` returns for lists of `width` finite numbers, at less cost; None for any other inputs.

    For a model whose features are numbers without limits (`StepModel.has_plain_numbers`). above: see `StepModel.above`.
    """
    if type(inputs) is not list or not inputs:
        return None
    numbers = inputs
    if type(inputs[0]) is not list:
        if width > 1:
            return None
    elif len(inputs) == 1 and len(inputs[0]) == width:  # the usual case, at less cost
        numbers = inputs[0]
    elif set(map(type, inputs)) != {list} or set(map(len, inputs)) != {width}:
        return None
    else:
        numbers = list(chain.from_iterable(inputs))
    try:
        if not _NUMBER_TYPES.issuperset(map(type, numbers)) or not all(map(math.isfinite, numbers)):
            return None
        packed = struct.pack(f"<{len(numbers)}{dtype.char}", *numbers)
    except (OverflowError, struct.error):  # a number beyond the dtype
        return None
    array: InputArray = np.ndarray((len(inputs), width), dtype, packed)
    return array if above is None or (array > above).all() else None


def arrays(
    inputs: Inputs,
    features: Sequence[Feature],
    field: str = "inputs",
    *,
    dtype: InputDtype,
    at_once: int | None = None,
) -> Iterator[InputArray]:
    """Yields the array of `to_array` in consecutive parts of `at_once` steps; each part is converted on demand."""
    if not len(inputs):
        raise InputError(Fault(field, "needs at least one step"))
    steps: Any = _from_text(inputs, features, field) if isinstance(inputs, str) else inputs
    width = dtype.itemsize * len(features) if isinstance(inputs, bytes) else 1  # items of a step
    if len(steps) % width:
        raise InputError(
            Fault(
                field,
                f"a step is {_describe_step(features)} of {dtype.itemsize} bytes each; "
                f"{len(steps)} bytes are no whole number of them",
            )
        )
    form = _form(type(steps[0]))
    for start in range(0, len(steps), width * (at_once or len(steps))):
        part = steps if at_once is None else steps[start : start + width * at_once]
        if isinstance(part, bytes):
            yield _from_bytes(part, features, field, start // width, dtype)
        else:
            yield _array(part, features, field, start, form, dtype)


def _array(
    inputs: Any, features: Sequence[Feature], field: str, first: int, form: str, dtype: InputDtype
) -> InputArray:
    """Returns steps of one form as an array (steps, features); `first` is the first one's index in its request."""
    rows = _rows(inputs, features, field, first, form)
    if (
        all(feature.kind == "number" for feature in features)
        and set(map(type, chain.from_iterable(rows))) <= _NUMBER_TYPES
    ):
        array = _as_float64(rows)
    else:
        columns = [
            _to_numbers([row[column] for row in rows], feature, column, field, first)
            for column, feature in enumerate(features)
        ]
        array = _as_float64(columns).T
    _check_limits(array, features, field, first)
    return _finite(array, features, field, first, dtype)


def _rows(inputs: Any, features: Sequence[Feature], field: str, first: int, form: str) -> Sequence[Sequence[Value]]:
    listed: Sequence[Sequence[Value]] = inputs
    if form == _LISTED and set(map(type, inputs)) == {list} and set(map(len, inputs)) == {len(features)}:
        return listed
    if any(_form(kind) != form for kind in set(map(type, inputs))):
        forms = enumerate(map(_form, map(type, inputs)), first)
        step, unlike = next((step, step_form) for step, step_form in forms if step_form != form)
        raise InputError(Fault(f"{field}[{step}]", f"is {unlike}, where the first step is {form}"))
    if form == _BY_NAME:
        names = [feature.name for feature in features]
        expected = set(names)
        if all(step.keys() == expected for step in inputs):
            return [[step[name] for name in names] for step in inputs]
        return [_values_in_order(step, features, f"{field}[{number}]") for number, step in enumerate(inputs, first)]
    if form == _SINGLE:
        if len(features) != 1:
            raise InputError(Fault(f"{field}[0]", f"a step is {_describe_step(features)}, not one value"))
        return [[value] for value in inputs]
    for step, row in enumerate(inputs, first):
        if len(row) != len(features):
            raise InputError(
                Fault(f"{field}[{step}]", f"a step is {_describe_step(features)}; this one has {len(row)}")
            )
    return listed


def _form(kind: type) -> str:
    if issubclass(kind, Mapping):
        return _BY_NAME
    return _LISTED if issubclass(kind, (list, tuple)) else _SINGLE


def _to_numbers(values: Sequence[Value], feature: Feature, column: int, field: str, first: int) -> list[float]:
    """Returns one feature's numbers (steps,)."""
    numbers = []
    for step, value in enumerate(values, first):
        number = np.nan if value is None and feature.nullable else _to_number(value, feature)
        if number is None:
            raise InputError(Fault(f"{field}[{step}][{column}]", _explain(value, feature)))
        numbers.append(number)
    return numbers


def _to_number(value: Value, feature: Feature) -> float | None:
    """Returns a number, or a category's index; None if the value is neither.

    A whole number is an index if the categories are words, and a category if they are numbers.
    """
    if feature.kind == "number":
        return value if type(value) in _NUMBER_TYPES else None  # type: ignore[return-value]
    if type(value) is not str and type(value) is not int:
        return None
    if type(value) is int and isinstance(feature.categories[0], str):
        return value if 0 <= value < feature.category_count else None
    index = feature.category_index.get(value)
    if index is None and feature.unknown and isinstance(value, str) == isinstance(feature.categories[0], str):
        return len(feature.categories)
    return index


def _explain(value: Value, feature: Feature) -> str:
    name, shown = feature.name, repr(value)[:100]
    if value is None:
        return f"null ({name}): this value may not be missing"
    if feature.kind == "number":
        return f"{shown} ({name}) is not a number"
    first = ", ".join(repr(category) for category in feature.categories[:5])
    more = ", ..." if len(feature.categories) > 5 else ""
    return f"{shown} ({name}) is none of the {len(feature.categories):,} categories: {first}{more}"


def _from_text(text: str, features: Sequence[Feature], field: str) -> Sequence[Value]:
    """A value for each step."""
    feature = features[0]
    if feature.text is None or len(features) > 1:
        raise InputError(Fault(field, f"the model reads no text; a step is {_describe_step(features)}"))
    if feature.text == "bytes":
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise InputError(Fault(f"{field}[{error.start}]", "half a surrogate pair is no character")) from None
    return list(text)


def _from_bytes(data: bytes, features: Sequence[Feature], field: str, first: int, dtype: InputDtype) -> InputArray:
    array: InputArray = np.frombuffer(data, dtype).reshape(-1, len(features))
    if np.isfinite(array).all() and all(feature.kind == "number" for feature in features):
        _check_limits(array, features, field, first)
        return _in_domain(array, features, field, first)
    rows = [
        [
            None if np.isnan(value) else int(value) if feature.kind == "category" and value == value // 1 else value
            for value, feature in zip(row, features, strict=True)
        ]
        for row in array.tolist()
    ]
    return _array(rows, features, field, first, _LISTED, dtype)


def _as_float64(rows: Any) -> NDArray[np.float64]:
    """Returns the rows in double precision; whole numbers beyond its range become infinite."""
    try:
        return np.array(rows, np.float64)
    except OverflowError:
        largest = int(np.finfo(np.float64).max)
        return np.array([[np.inf if abs(value) > largest else value for value in row] for row in rows], np.float64)


def _finite(
    numbers: NDArray[np.float64], features: Sequence[Feature], field: str, first: int, dtype: InputDtype
) -> InputArray:
    """Returns the numbers in the dtype. Raises InputError if it cannot represent one of them."""
    with np.errstate(over="ignore"):
        array: InputArray = numbers.astype(dtype)
    infinite = np.isinf(array)
    if infinite.any():
        step, column = (int(indices[0]) for indices in np.nonzero(infinite))
        raise InputError(
            Fault(
                f"{field}[{first + step}][{column}]",
                f"{numbers[step, column]:g} ({features[column].name}) is no finite {8 * dtype.itemsize}-bit number",
            )
        )
    return _in_domain(array, features, field, first)


def _in_domain(array: InputArray, features: Sequence[Feature], field: str, first: int) -> InputArray:
    """Returns the numbers. Raises InputError if the transform of a feature is not defined for one of them."""
    for column, feature in enumerate(features):
        if (transform := feature.transform) is not None and (outside := array[:, column] <= transform.above).any():
            step = int(outside.argmax())
            raise InputError(
                Fault(
                    f"{field}[{first + step}][{column}]",
                    f"{array[step, column]:g} ({feature.name}) is not above {transform.above:g}, "
                    f"as the model's transform {transform.label} needs",
                )
            )
    return array


def _check_limits(numbers: InputArray, features: Sequence[Feature], field: str, first: int) -> None:
    """Raises InputError, which names the first such number, if one of the numbers (steps, features) is refused."""
    for column, feature in enumerate(features):
        if feature.limits is not None:
            low, high = feature.limits
            beyond = (numbers[:, column] < low) | (numbers[:, column] > high)
            if beyond.any():
                step = int(beyond.argmax())
                value = f"{numbers[step, column]:.15g} ({feature.name})"
                what = f"{value} is beyond the limits of this feature, {low:.15g} to {high:.15g}"
                raise InputError(Fault(f"{field}[{first + step}][{column}]", what))


def _values_in_order(step: Mapping[str, Value], features: Sequence[Feature], field: str) -> list[Value]:
    names = [feature.name for feature in features]
    faults = [Fault(f"{field}.{name}", "missing") for name in names if name not in step]
    faults += [
        Fault(f"{field}.{name}", f"no such feature; a step is {_describe_step(features)}")
        for name in step
        if name not in names
    ]
    if faults:
        raise InputError(*faults)
    return [step[name] for name in names]


def _describe_step(features: Sequence[Feature]) -> str:
    noun = "number" if all(feature.kind == "number" for feature in features) else "value"
    names = ", ".join(feature.name for feature in features)
    return f"{len(features)} {noun}{'s' if len(features) > 1 else ''} ({names})"
