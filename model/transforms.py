"""Monotone transforms of a feature: the network computes in transformed units, clients in the data's own.

Owns the formula of each transform, its inverse, its domain, and the mean of a normal distribution under the inverse.
The formulas are written over `TransformOps`, once for numpy, for torch and for the ONNX graph. They are computed in
double precision, so that graph and network round to the same number.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Array = NDArray[np.float64]

LARGEST = 80.0
"""Predictions lie within exp(80) and above exp(-80), so that they are finite in single precision and in the domain."""
LEAST_ABOVE_MINUS_ONE = -15.0
"""The logarithm of the least distance of a prediction from -1: single precision resolves it."""
_TINY, _MOST_TIMES = 1e-300, 1e30
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(16)
"""Nodes and weights of the Gauss-Hermite quadrature for a standard normal distribution."""
_SHARES = _WEIGHTS / _WEIGHTS.sum()


class TransformOps(Protocol):
    """The functions of which the formulas of transforms are made. `onward.training.network.ops` adds those of heads."""

    def numbers(self, name: str, values: NDArray[np.floating[Any]]) -> Any:
        """Returns a constant vector."""

    def exp(self, x: Any) -> Any: ...
    def log(self, x: Any) -> Any: ...
    def sqrt(self, x: Any) -> Any: ...
    def abs(self, x: Any) -> Any: ...
    def clip(self, x: Any, low: float, high: float) -> Any: ...
    def double(self, x: Any) -> Any: ...

    def single(self, x: Any) -> Any:
        """Returns x in single precision; x itself if it is."""

    def like(self, x: Any, reference: Any) -> Any:
        """Returns x in the precision of the reference; x itself if it is."""

    def stack(self, terms: Sequence[Any]) -> Any:
        """Returns the terms (...) stacked on a new last axis."""

    def join(self, terms: Sequence[Any]) -> Any: ...
    def columns(self, x: Any, indices: Sequence[int]) -> Any: ...
    def weighted_sum(self, x: Any, weights: Any) -> Any: ...


class Transform(BaseModel):
    """The transform of a feature. `exponent` is the lambda of a Box-Cox transform (Box and Cox 1964).

    It is positive: a variable whose transform with a negative exponent is normal has no finite mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["log", "log1p", "asinh", "box_cox"]
    exponent: Annotated[float, Field(gt=0, le=2)] | None = None

    @model_validator(mode="after")
    def _exponent_is_of_box_cox(self) -> Self:
        if (self.kind == "box_cox") != (self.exponent is not None):
            raise ValueError("an exponent belongs to the transform box_cox, and to no other")
        return self

    @property
    def label(self) -> str:
        """The transform as text."""
        return self.kind if self.exponent is None else f"box_cox({self.exponent:g})"

    @property
    def above(self) -> float:
        """The number that values must be above; minus infinity if all numbers have a transform."""
        return {"log": 0.0, "box_cox": 0.0, "log1p": -1.0}.get(self.kind, -math.inf)

    def forward(self, ops: TransformOps, x: Any) -> Any:
        """Returns the transformed values, in the precision of x."""
        wide = ops.double(x)
        match self.kind:
            case "log":
                result = ops.log(wide)
            case "log1p":
                result = ops.log(wide + 1.0)
            case "box_cox":
                result = (ops.exp(ops.log(wide) * self._exponent) - 1.0) / self._exponent
            case "asinh":  # of the positive and of the negative part, so that no digits cancel
                size = ops.abs(wide)
                result = self._arsinh(ops, (size + wide) * 0.5) - self._arsinh(ops, (size - wide) * 0.5)
        return ops.like(result, x)

    def inverse(self, ops: TransformOps, z: Any) -> Any:
        """Returns the values whose transforms are z, in the precision of z, within the domain and finite."""
        return ops.like(self._inverse(ops, ops.double(z)), z)

    def mean(self, ops: TransformOps, location: Any, std: Any) -> Any:
        """Returns the mean of the inverse of a normal variable, in the precision of its location (..., columns)."""
        centre, spread = ops.double(location), ops.double(std)
        half = spread * spread * 0.5
        match self.kind:
            case "log":
                result = ops.exp(ops.clip(centre + half, -LARGEST, LARGEST))
            case "log1p":
                result = ops.exp(ops.clip(centre + half, LEAST_ABOVE_MINUS_ONE, LARGEST)) - 1.0
            case "asinh":
                up, down = (ops.exp(ops.clip(term, -LARGEST, LARGEST)) for term in (half + centre, half - centre))
                result = (up - down) * 0.5
            case "box_cox":  # no closed form: the mean ratio to the median, by quadrature
                median = self._inverse(ops, centre)
                nodes = ops.stack([centre]) + ops.stack([spread]) * ops.numbers("normal_nodes", _NODES)
                ratios = ops.single(ops.clip(self._inverse(ops, nodes) / ops.stack([median]), 0.0, _MOST_TIMES) - 1.0)
                weights = ops.numbers("normal_weights", _SHARES.astype(np.float32))
                ratio = ops.double(ops.weighted_sum(ratios, weights)) + 1.0
                result = ops.clip(median * ratio, math.exp(-LARGEST), math.exp(LARGEST))
        return ops.like(result, location)

    def log_derivative(self, ops: TransformOps, z: Any) -> Any:
        """Returns the logarithm of the inverse's derivative at z: a density of z divided by it is one of the values."""
        wide = ops.double(z)
        match self.kind:
            case "log" | "log1p":
                return wide
            case "asinh":
                return ops.log((ops.exp(wide) + ops.exp(-wide)) * 0.5)
            case "box_cox":
                return self._log(ops, wide) * (1.0 - self._exponent)

    @property
    def _exponent(self) -> float:
        assert self.exponent is not None
        return self.exponent

    def _inverse(self, ops: TransformOps, z: Any) -> Any:
        match self.kind:
            case "log":
                return ops.exp(ops.clip(z, -LARGEST, LARGEST))
            case "log1p":
                return ops.exp(ops.clip(z, LEAST_ABOVE_MINUS_ONE, LARGEST)) - 1.0
            case "asinh":
                bounded = ops.clip(z, -LARGEST, LARGEST)
                return (ops.exp(bounded) - ops.exp(-bounded)) * 0.5
            case "box_cox":
                return ops.exp(ops.clip(self._log(ops, z), -LARGEST, LARGEST))

    def _log(self, ops: TransformOps, z: Any) -> Any:
        """Returns the logarithm of the values whose Box-Cox transforms are z."""
        return ops.log(ops.clip(z * self._exponent + 1.0, _TINY, math.inf)) / self._exponent

    @staticmethod
    def _arsinh(ops: TransformOps, positive: Any) -> Any:
        return ops.log(positive + ops.sqrt(positive * positive + 1.0))


Transforms = tuple[Transform | None, ...]
"""The transform of each column of an array's last axis; None where it has none."""


def forward(ops: TransformOps, transforms: Transforms, x: Any) -> Any:
    """Returns the transforms of x (..., columns)."""
    return _by_column(ops, transforms, lambda transform, part: transform.forward(ops, part), x)


def inverse(ops: TransformOps, transforms: Transforms, z: Any) -> Any:
    """Returns the values whose transforms are z (..., columns)."""
    return _by_column(ops, transforms, lambda transform, part: transform.inverse(ops, part), z)


def mean(ops: TransformOps, transforms: Transforms, location: Any, std: Any) -> Any:
    """Returns the means of values whose transforms are normal, (..., columns) each."""
    return _by_column(ops, transforms, lambda transform, *parts: transform.mean(ops, *parts), location, std)


def log_derivative(ops: TransformOps, transforms: Transforms, z: Any) -> Any:
    """Returns the logarithm of the inverse's derivative, in single precision; 0 where there is no transform."""
    zero = z * 0.0
    return _by_column(
        ops,
        transforms,
        lambda transform, _, part: ops.single(transform.log_derivative(ops, part)),
        ops.single(zero),
        z,
    )


def _by_column(ops: TransformOps, transforms: Transforms, function: Callable[..., Any], *values: Any) -> Any:
    """Applies a function of a transform and of values (..., columns) to each column; without one the first stays."""
    distinct = list(dict.fromkeys(transforms))
    if distinct in ([], [None]):
        return values[0]
    if len(distinct) == 1:
        return function(distinct[0], *values)
    order, parts = list[int](), list[Any]()
    for transform in distinct:
        columns = [column for column, own in enumerate(transforms) if own == transform]
        order += columns
        selected = [ops.columns(value, columns) for value in values]
        parts.append(selected[0] if transform is None else function(transform, *selected))
    return ops.columns(ops.join(parts), [order.index(column) for column in range(len(order))])


class NumpyOps:
    """The operations on numpy's arrays."""

    def numbers(self, name: str, values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        del name
        return values

    def exp(self, x: Array) -> Array:
        return np.exp(np.ascontiguousarray(x))  # so that strides do not change the bits

    def log(self, x: Array) -> Array:
        return np.log(np.ascontiguousarray(x))

    def sqrt(self, x: Array) -> Array:
        return np.sqrt(x)

    def abs(self, x: Array) -> Array:
        return np.abs(x)

    def clip(self, x: Array, low: float, high: float) -> Array:
        return np.minimum(np.maximum(x, low), high)  # at less cost than `clip`

    def double(self, x: NDArray[Any]) -> Array:
        return x.astype(np.float64, copy=False)

    def single(self, x: NDArray[Any]) -> NDArray[np.float32]:
        return x.astype(np.float32, copy=False)

    def like(self, x: Array, reference: NDArray[Any]) -> NDArray[Any]:
        return x.astype(reference.dtype, copy=False)

    def stack(self, terms: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.stack(terms, axis=-1)

    def join(self, terms: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(terms, axis=-1)

    def columns(self, x: NDArray[Any], indices: Sequence[int]) -> NDArray[Any]:
        return x[..., list(indices)]

    def weighted_sum(self, x: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(x @ weights)


NUMPY = NumpyOps()


def box_cox(values: NDArray[Any]) -> Transform:
    """Returns the Box-Cox transform of the largest likelihood for positive numbers, with its exponent in hundredths.

    The exponent lies between 0 and 2; at 0 the transform is log.
    """
    logs = np.log(values.astype(np.float64))
    logs = logs - logs.mean()  # of values divided by their geometric mean, so that the Jacobian is 1

    def spread(exponent: float) -> float:
        return float(np.var(np.expm1(exponent * logs) / exponent if exponent else logs))

    best = min((hundredths / 100 for hundredths in range(201)), key=spread)
    return Transform(kind="box_cox", exponent=best) if best else Transform(kind="log")
