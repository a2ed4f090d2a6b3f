"""A client's inputs as an array, in the model's order.

Owns the ways to write a step: a list of values, one value, values by feature name, or a piece of a text. A value is a
number, a category as the model's data has it, or null where it may be missing. Knows nothing of HTTP or sessions: the
service and whoever runs a bundle in process read inputs by these rules.
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
"""Bytes are 32-bit floats, little-endian, in the order of the features; categories by number, what is missing NaN."""

_PLAIN = frozenset({int, float})
_FEW = 32
"""So many values are read one by one: numpy's calls would cost more."""
_NAMED, _LISTED, _ONE = "values by name", "a list of values", "one value"


class Fault(NamedTuple):
    """One field of a request and what is wrong with it."""

    field: str
    message: str


class InputError(ValueError):
    """Inputs that do not fit the model, by field."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in faults))
        self.faults = faults


def to_array(inputs: Inputs, features: Sequence[Feature], field: str = "inputs") -> NDArray[np.float32]:
    """(steps, features) in the model's order, categories by place and missing values NaN. Not to be written to.

    `field` is what errors call the inputs. Raises InputError, naming the step and the feature.
    """
    (array,) = arrays(inputs, features, field)
    return array


def arrays(
    inputs: Inputs, features: Sequence[Feature], field: str = "inputs", at_once: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """The array of `to_array` in consecutive parts of `at_once` steps, each made when it is asked for."""
    if not len(inputs):
        raise InputError(Fault(field, "needs at least one step"))
    steps: Any = _text(inputs, features, field) if isinstance(inputs, str) else inputs
    width = 4 * len(features) if isinstance(inputs, bytes) else 1  # items of a step
    if len(steps) % width:
        raise InputError(
            Fault(
                field, f"a step is {_said(features)} of 4 bytes each; {len(steps)} bytes are no whole number of steps"
            )
        )
    form = _form(type(steps[0]))
    for start in range(0, len(steps), width * (at_once or len(steps))):
        part = steps if at_once is None else steps[start : start + width * at_once]
        if isinstance(part, bytes):
            yield _floats(part, features, field, start // width)
        else:
            yield _array(part, features, field, start, form)


def _array(inputs: Any, features: Sequence[Feature], field: str, first: int, form: str) -> NDArray[np.float32]:
    """(steps, features) of steps in that form, the first of which is number `first` of its request."""
    rows = _rows(inputs, features, field, first, form)
    if all(feature.kind == "number" for feature in features) and set(map(type, chain.from_iterable(rows))) <= _PLAIN:
        few = len(rows) * len(features) <= _FEW
        if few and (packed := _packed(list(chain.from_iterable(rows)))) is not None:
            return np.ndarray((len(rows), len(features)), "<f4", packed)
        array = _wide(rows)
    else:
        columns = [
            _column([row[place] for row in rows], feature, place, field, first)
            for place, feature in enumerate(features)
        ]
        array = _wide(columns).T
    return _finite(array, features, field, first)


def _rows(inputs: Any, features: Sequence[Feature], field: str, first: int, form: str) -> Sequence[Sequence[Value]]:
    listed: Sequence[Sequence[Value]] = inputs
    if form == _LISTED and set(map(type, inputs)) == {list} and set(map(len, inputs)) == {len(features)}:
        return listed
    if any(_form(kind) != form for kind in set(map(type, inputs))):
        place, other = next(found for found in enumerate(map(_form, map(type, inputs)), first) if found[1] != form)
        raise InputError(Fault(f"{field}[{place}]", f"is {other}, where the first step is {form}"))
    if form == _NAMED:
        names = [feature.name for feature in features]
        wanted = set(names)
        if all(step.keys() == wanted for step in inputs):
            return [[step[name] for name in names] for step in inputs]
        return [_by_name(step, features, f"{field}[{place}]") for place, step in enumerate(inputs, first)]
    if form == _ONE:
        if len(features) != 1:
            raise InputError(Fault(f"{field}[0]", f"a step is {_said(features)}, not one value"))
        return [[value] for value in inputs]
    for place, row in enumerate(inputs, first):
        if len(row) != len(features):
            raise InputError(Fault(f"{field}[{place}]", f"a step is {_said(features)}; this one has {len(row)}"))
    return listed


def _form(kind: type) -> str:
    if issubclass(kind, Mapping):
        return _NAMED
    return _LISTED if issubclass(kind, (list, tuple)) else _ONE


def _column(values: Sequence[Value], feature: Feature, column: int, field: str, first: int) -> list[float]:
    """(steps,) of one feature."""
    found = []
    for step, value in enumerate(values, first):
        number = np.nan if value is None and feature.nullable else _number(value, feature)
        if number is None:
            raise InputError(Fault(f"{field}[{step}][{column}]", _refusal(value, feature)))
        found.append(number)
    return found


def _number(value: Value, feature: Feature) -> float | None:
    """A number, or a category's place; None where the value is neither.

    Where the categories are words a whole number is a place; where they are numbers it is one of them.
    """
    if feature.kind == "number":
        return value if type(value) in _PLAIN else None  # type: ignore[return-value]
    if type(value) is not str and type(value) is not int:
        return None
    if type(value) is int and isinstance(feature.categories[0], str):
        return value if 0 <= value < feature.category_count else None
    place = feature.category_index.get(value)
    if place is None and feature.unknown and isinstance(value, str) == isinstance(feature.categories[0], str):
        return len(feature.categories)
    return place


def _refusal(value: Value, feature: Feature) -> str:
    name, said = feature.name, "null" if value is None else repr(value)[:100]
    if value is None:
        return f"null ({name}): this value may not be missing"
    if feature.kind == "number":
        return f"{said} ({name}) is not a number"
    some = ", ".join(repr(category) for category in feature.categories[:5])
    more = ", ..." if len(feature.categories) > 5 else ""
    return f"{said} ({name}) is none of the {len(feature.categories):,} categories: {some}{more}"


def _text(text: str, features: Sequence[Feature], field: str) -> Sequence[Value]:
    """A value for each step."""
    (feature, *others) = features
    if feature.text is None or others:
        raise InputError(Fault(field, f"the model reads no text; a step is {_said(features)}"))
    if feature.text == "bytes":
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise InputError(Fault(f"{field}[{error.start}]", "half a surrogate pair is no character")) from None
    return list(text)


def _floats(data: bytes, features: Sequence[Feature], field: str, first: int) -> NDArray[np.float32]:
    array = np.frombuffer(data, "<f4").reshape(-1, len(features))
    if np.isfinite(array).all() and all(feature.kind == "number" for feature in features):
        return array
    rows = [
        [
            None if np.isnan(value) else int(value) if feature.kind == "category" and value == value // 1 else value
            for value, feature in zip(row, features, strict=True)
        ]
        for row in array.tolist()
    ]
    return _array(rows, features, field, first, _LISTED)


def _packed(values: Sequence[Any]) -> bytes | None:
    """A few numbers as 32-bit floats, for less than numpy does it; None where one is beyond them."""
    try:
        return None if any(map(math.isinf, values)) else struct.pack(f"<{len(values)}f", *values)
    except (OverflowError, struct.error):
        return None


def _wide(rows: Any) -> NDArray[np.float64]:
    """In double precision; whole numbers beyond it are infinite."""
    try:
        return np.array(rows, np.float64)
    except OverflowError:
        most = int(np.finfo(np.float64).max)
        return np.array([[np.inf if abs(value) > most else value for value in row] for row in rows], np.float64)


def _finite(wide: NDArray[np.float64], features: Sequence[Feature], field: str, first: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        array = wide.astype(np.float32)
    wrong = np.isinf(array)
    if wrong.any():
        place, column = (int(where[0]) for where in np.nonzero(wrong))
        raise InputError(
            Fault(
                f"{field}[{first + place}][{column}]",
                f"{wide[place, column]:g} ({features[column].name}) is no finite 32-bit number",
            )
        )
    return array


def _by_name(step: Mapping[str, Value], features: Sequence[Feature], field: str) -> list[Value]:
    names = [feature.name for feature in features]
    faults = [Fault(f"{field}.{name}", "missing") for name in names if name not in step]
    faults += [
        Fault(f"{field}.{name}", f"no such feature; a step is {_said(features)}") for name in step if name not in names
    ]
    if faults:
        raise InputError(*faults)
    return [step[name] for name in names]


def _said(features: Sequence[Feature]) -> str:
    what = "number" if all(feature.kind == "number" for feature in features) else "value"
    names = ", ".join(feature.name for feature in features)
    return f"{len(features)} {what}{'s' if len(features) > 1 else ''} ({names})"
