"""Conversion of a caller's inputs to their JSON form, for a service and for a session in this process alike.

Owns the notations that a caller may use: values, lists, texts, mappings, arrays, tensors, data frames and their rows.
Knows no model and no transport. Objects of pandas, polars and torch are recognised by what they provide, so that none
of these libraries is imported.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onward.errors import InvalidRequest

Value = float | int | str | Decimal | np.generic | None
Step = Value | Sequence[Value] | Mapping[str, Value] | ArrayLike
"""A step: a value of each feature, in order or by name, or the value alone if there is one feature."""
Steps = str | Sequence[Any] | ArrayLike
"""Steps, oldest first: a text, a data frame, or a list or an array (steps, features) or (steps,)."""

_LEAST, _GREATEST = -(2**63), 2**64 - 1
"""The ends of the whole numbers that are written to JSON as they are."""
_PLAIN = frozenset({float, int, str, type(None)})


class _UnfitError(Exception):
    """An input has no JSON form. field: its path inside the inputs, such as `[3].temperature`."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message, self.field = message, field


def json_steps(inputs: Steps, field: str = "inputs", *, least: int = 1) -> Any:
    """Returns the steps for JSON: a text, or a list of values, of lists, or of dicts by feature name.

    Missing values (None, NaN, and NA and NaT of pandas) become null, True and False the numbers 1 and 0. Raises
    InvalidRequest, which names the value, for an infinity, for anything that is neither a number nor a text, and for
    fewer steps than `least`.
    """
    converted = _as_request(_steps, inputs, field)
    if len(converted) < least:
        message = "needs at least one step"
        raise InvalidRequest.with_detail(f"{field}: {message}", [(field, message)])
    return converted


def json_step(value: Step, field: str = "inputs") -> Any:
    """Returns a list of this single step for JSON, as `json_steps` does."""
    return _as_request(_listed_step, value, field)


def json_sequences(inputs: Iterable[Steps], field: str = "inputs") -> list[Any]:
    """Returns the sequences of steps for JSON, as `json_steps` does."""
    if isinstance(inputs, (str, Mapping)) or _is_frame(inputs):
        message = f"expected a list of sequences of steps, and not one {_kind(inputs)}"
        raise InvalidRequest.with_detail(f"{field}: {message}", [(field, message)])
    return [json_steps(sequence, f"{field}[{index}]") for index, sequence in enumerate(inputs)]


def each_step(inputs: Iterable[Step] | Steps) -> Iterable[Any]:
    """Returns the steps as the caller has them, so that `json_step` converts each; an iterator is returned as it is."""
    return _as_request(_rows, inputs, "inputs") if is_complete(inputs) else inputs  # type: ignore[return-value]


def is_complete(inputs: Any) -> bool:
    """Returns False for an iterator, whose steps may be still to come."""
    return (
        not isinstance(inputs, Iterable)
        or isinstance(inputs, (Sequence, Mapping, AbstractSet))
        or hasattr(inputs, "shape")
    )


def _as_request(convert: Callable[[Any], Any], inputs: Any, field: str) -> Any:
    try:
        return convert(inputs)
    except _UnfitError as error:
        field += error.field
        raise InvalidRequest.with_detail(f"{field}: {error.message}", [(field, error.message)]) from None


# Several steps


def _steps(inputs: Any) -> Any:
    rows = _rows(inputs)
    if isinstance(rows, str):
        return rows
    return _array(rows, _step) if isinstance(rows, np.ndarray) else _each(rows, _step)


def _rows(inputs: Any) -> Any:
    """Returns a text, an array (steps, ...), or a sequence of steps."""
    if isinstance(inputs, (str, list, tuple)):
        return inputs
    if _is_frame(inputs):
        return _frame_rows(inputs)
    if (values := _values_of_series(inputs)) is not None:
        return values
    if (array := _array_of(inputs)) is not None:
        if array.ndim not in {1, 2}:
            raise _UnfitError(f"expected an array (steps,) or (steps, features), and not one of {array.ndim} axes")
        return array
    if isinstance(inputs, (Mapping, AbstractSet)) or not isinstance(inputs, Iterable):
        raise _UnfitError(f"expected a list of steps, and not one {_kind(inputs)}")
    return list(inputs)


def _is_frame(value: Any) -> bool:
    return len(getattr(value, "shape", ())) == 2 and hasattr(value, "columns")


def _frame_rows(frame: Any) -> list[dict[str, Any]]:
    """Returns the rows by column name. The columns of pandas and polars are series, those of pyarrow have names."""
    names = list(getattr(frame, "column_names", frame.columns))
    texts = list(map(str, names))
    if repeated := sorted({name for name in texts if texts.count(name) > 1}):
        raise _UnfitError(f"the data frame has more than one column {', '.join(repeated)}")
    columns = [_values_of_series(frame[name]) for name in names]
    return [dict(zip(texts, row, strict=True)) for row in zip(*columns, strict=True)]


def _values_of_series(value: Any) -> list[Any] | None:
    """Returns the values of a series, which keep their types and null; None for anything else."""
    for name in ("to_list", "to_pylist"):
        if callable(convert := getattr(value, name, None)):
            values: list[Any] = convert()
            return values
    return None


def _array_of(value: Any) -> NDArray[Any] | None:
    """Returns an array, a tensor, or what else can be read as an array; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__array__") or isinstance(value, np.generic):
        return None
    try:
        if hasattr(value, "detach"):  # of torch: also on a device, with a gradient, or of a type that numpy lacks
            value = value.detach().cpu()
            value = value.double() if value.is_floating_point() else value
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _UnfitError(f"this {_kind(value)} cannot be read as an array: {error}") from None


def _array(values: NDArray[Any], convert: Callable[[Any], Any]) -> Any:
    """Returns an array (items, ...) for JSON: its finite numbers at once, and other items each by `convert`."""
    kind = values.dtype.kind
    if kind in "fb":
        with np.errstate(over="ignore"):
            values = values.astype(np.float64, copy=False)
    if kind in "iu" or (kind in "fb" and np.isfinite(values).all()):
        return values.tolist()
    return _each(values.tolist() if kind in "fb" else values, convert)


def _each(items: Iterable[Any], convert: Callable[[Any], Any]) -> list[Any]:
    """Returns the converted items. Only a failure costs the time to find its path."""
    try:
        return [convert(item) for item in items]
    except _UnfitError:
        for index, item in enumerate(items):
            try:
                convert(item)
            except _UnfitError as error:
                raise _UnfitError(error.message, f"[{index}]{error.field}") from None
        raise


# One step


def _listed_step(value: Any) -> list[Any]:
    return _each([value], _step)


def _step(value: Any) -> Any:
    """Returns a step for JSON: one value, a list of values, or a dict of values by feature name."""
    kind = type(value)
    if kind is list or kind is tuple:
        return _each(value, _value)
    if kind in _PLAIN:
        return _value(value)
    if (items := _items(value)) is not None:
        return _by_name(items)
    if (values := _values_of_series(value)) is not None:
        return _each(values, _value)
    if (array := _array_of(value)) is not None and array.ndim:
        if array.ndim > 1:
            raise _UnfitError(f"expected one step, and not an array of {array.ndim} axes")
        return _array(array, _value)
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))
    return _each(value, _value) if is_list else _value(value)


def _items(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Returns the names and values of a step that has names: of a mapping, a named tuple, a row of a structured array,
    a data frame of one row, or a row that pandas has as a series with texts as labels. Returns None for anything else.
    """
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, np.void) and value.dtype.names:
        return ((name, value[name]) for name in value.dtype.names)
    if _is_frame(value):
        rows = _frame_rows(value)
        if len(rows) != 1:
            raise _UnfitError(f"expected one step, and not a data frame of {len(rows)} rows")
        return rows[0].items()
    if hasattr(value, "to_list") and hasattr(value, "keys"):
        labels = list(value.keys())
        if labels and all(isinstance(label, str) for label in labels):
            return zip(labels, value.to_list(), strict=True)
    return None


def _by_name(items: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in items:
        field = str(name)
        if field in values:
            raise _UnfitError(f"{field} occurs more than once")
        try:
            values[field] = _value(value)
        except _UnfitError as error:
            raise _UnfitError(error.message, f".{field}{error.field}") from None
    return values


def _value(value: Any) -> float | int | str | None:
    """Returns a value for JSON."""
    kind = type(value)
    if value is None or kind is str or (kind is int and _LEAST <= value <= _GREATEST):
        return value  # type: ignore[no-any-return]
    if kind is not float:
        if isinstance(value, str):
            return str.__str__(value)  # of a subclass, such as numpy's or an enumeration
        if _is_missing(value):
            return None
        if (array := _array_of(value)) is not None and not array.ndim:
            return _value(array[()])
        value = _number(value)
    if math.isfinite(value):
        return value  # type: ignore[no-any-return]
    if math.isnan(value):
        return None
    raise _UnfitError("an input cannot be infinite; write a missing value as None or NaN")


def _number(value: Any) -> float | int:
    """Returns a number of another type. Whole numbers remain whole, since they may be categories."""
    is_number = isinstance(value, (Real, Decimal, np.bool_)) and not isinstance(value, np.timedelta64)
    if not is_number:
        raise _UnfitError(f"a value of type {_kind(value)} is neither a number, a text nor a missing value")
    is_whole = _is_whole(value) if isinstance(value, Decimal) else isinstance(value, Integral)
    try:
        if is_whole and not isinstance(value, bool) and _LEAST <= (whole := int(value)) <= _GREATEST:
            return whole
        return float(value)
    except OverflowError:
        return math.inf


def _is_whole(value: Decimal) -> bool:
    """Returns True for a number that is written without decimal places."""
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and exponent >= 0 and value.adjusted() < 20


def _is_missing(value: Any) -> bool:
    """Returns True for a missing value of another type than None and float."""
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    pandas = sys.modules.get("pandas")
    return any(value is getattr(pandas, name, None) for name in ("NA", "NaT"))


def _kind(value: Any) -> str:
    return type(value).__name__
