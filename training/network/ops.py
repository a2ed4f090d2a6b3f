"""The operations in which the formulas of heads and input scaling are written: once for torch and for the ONNX graph.

A formula uses `+ - * /` and the functions of `Ops`. With `TorchOps` it computes tensors; with
`onward.training.export.onnx_ops.GraphOps` it emits ONNX nodes. So training and the exported graph cannot drift apart.

The restrictions on the graph's side are described in `onward.training.export.onnx_ops`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onward.model.transforms import TransformOps

Update = Callable[[Any, Any, Sequence[Any], Sequence[Any]], list[Any]]
"""Returns a state from operations (of `Recursive`), a step's value, constants and the state before."""


class Recursive(Protocol):
    """The elementwise functions that a recursion over the steps may use."""

    def above(self, a: Any, b: Any) -> Any:
        """Returns the condition that a is greater than b."""

    def same(self, a: Any, b: Any) -> Any:
        """Returns the condition that a equals b."""

    def choose(self, condition: Any, a: Any, b: Any) -> Any:
        """Returns a where the condition holds, and b elsewhere."""

    def unless_missing(self, x: Any, after: Sequence[Any], before: Sequence[Any]) -> list[Any]:
        """Returns the parts of `after` where x is present, and those of `before` where it is missing."""

    def abs(self, x: Any) -> Any: ...
    def sqrt(self, x: Any) -> Any: ...
    def greater(self, a: Any, b: Any) -> Any: ...
    def least(self, a: Any, b: Any) -> Any: ...


class Ops(TransformOps, Protocol):
    """The functions that formulas may use. Time is the first axis of every value."""

    def constant(self, name: str, value: Tensor) -> Any:
        """Returns a constant of the value's own dtype."""

    def greater(self, a: Any, b: Any) -> Any: ...

    def present(self, x: Any) -> Any:
        """Returns 1 where x is a number and 0 where it is missing (NaN)."""

    def fill_missing(self, x: Any, value: Any) -> Any:
        """Returns x with `value`, in the precision of x, where x is missing."""

    def recursion(self, name: str, x: Any, constants: Tensor, first: Tensor, update: Update) -> list[Any]:
        """Returns the parts of a state after each step of x (time, batch, features), carried from call to call.

        constants, first: (some, features), those of `update` and the state at a session's first step. All is in double
        precision.
        """

    def running_sums(self, name: str, terms: Sequence[Any]) -> list[Any]:
        """Returns the sums of the terms over all steps of the session so far, carried from call to call under `name`.

        The terms have one shape.
        """

    def previous(self, name: str, x: Any, first: Any) -> Any:
        """Returns x of the step before, carried from call to call under `name`; `first` at a session's first step."""

    def last_present(self, name: str, x: Any, first: Any) -> Any:
        """Returns x, forward-filled where it is missing: first with the value carried under `name`, or with `first`."""

    def element(self, x: Any, index: int) -> Any:
        """Returns one element of the last axis."""

    def join(self, terms: Sequence[Any]) -> Any:
        """Returns the terms concatenated on the last axis."""

    def split(self, x: Any, count: int) -> list[Any]:
        """Returns the last axis in `count` equal parts."""

    def columns(self, x: Any, indices: Sequence[int]) -> Any:
        """Returns these columns of the last axis."""

    def rows(self, x: Any, width: int) -> Any:
        """Returns x (time, rows, n) in the same order with `width` values in a row: (time, rows * n / width, width)."""

    def category_index(self, x: Any, count: int) -> Any:
        """Returns x (..., 1) as integers (...) from 0 to `count` - 1, and `count` where x is missing."""

    def gather_rows(self, table: Any, indices: Any) -> Any:
        """Returns the table's rows at the indices (...): (..., width)."""

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        """Maps x (..., n) to (..., m) by weight (m, n) and bias (m,)."""

    def fuse_linear(self, terms: Sequence[Any]) -> list[Any]:
        """Returns the terms, all of one shape; a graph may compute those of one linear map by a single product."""

    def weighted_sum(self, x: Any, weights: Any) -> Any:
        """Returns the sums of x (..., n) along the last axis, (...), weighted by the constant weights (n,)."""

    def dot(self, a: Any, b: Any) -> Any:
        """Returns the inner products along the last axis, (..., 1)."""

    def log_sum_exp(self, x: Any) -> Any:
        """Returns the log-sum-exp along the last axis, (..., 1)."""

    def top_k(self, x: Any, count: int) -> tuple[Any, Any]:
        """Returns the largest values along the last axis in falling order, and their indices."""


class TorchOps:
    """Computes on whole sequences, from their beginning: nothing is carried between calls."""

    def constant(self, name: str, value: Tensor) -> Tensor:
        del name
        return value

    def numbers(self, name: str, values: NDArray[np.floating[Any]]) -> Tensor:
        del name
        return torch.from_numpy(values)

    def exp(self, x: Tensor) -> Tensor:
        return x.exp()

    def log(self, x: Tensor) -> Tensor:
        return x.log()

    def sqrt(self, x: Tensor) -> Tensor:
        return x.sqrt()

    def abs(self, x: Tensor) -> Tensor:
        return x.abs()

    def clip(self, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    def greater(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b)

    def double(self, x: Tensor) -> Tensor:
        return x.double()

    def single(self, x: Tensor) -> Tensor:
        return x.float()

    def like(self, x: Tensor, reference: Tensor) -> Tensor:
        return x.to(reference.dtype)

    def present(self, x: Tensor) -> Tensor:
        return (~x.isnan()).float()

    def fill_missing(self, x: Tensor, value: Tensor) -> Tensor:
        return torch.where(x.isnan(), value, x)

    def recursion(self, name: str, x: Tensor, constants: Tensor, first: Tensor, update: Update) -> list[Tensor]:
        """Computes with Python's numbers, one feature of one row at a time: tensors of one number are slower."""
        del name
        states = np.empty((len(first), *x.shape))
        for row, column in np.ndindex(*x.shape[1:]):
            fixed, state = constants[:, column].tolist(), first[:, column].tolist()
            after = [state := update(FLOATS, value, fixed, state) for value in x[:, row, column].tolist()]
            states[:, :, row, column] = np.array(after).T
        return list(torch.from_numpy(states).to(x.device))

    def running_sums(self, name: str, terms: Sequence[Tensor]) -> list[Tensor]:
        del name
        return [term.cumsum(0) for term in terms]

    def previous(self, name: str, x: Tensor, first: Tensor) -> Tensor:
        del name
        return torch.cat((first.expand(1, *x.shape[1:]), x[:-1]))

    def last_present(self, name: str, x: Tensor, first: Tensor) -> Tensor:
        del name
        steps = torch.arange(len(x), device=x.device).reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape)
        last = torch.where(x.isnan(), -1, steps).cummax(0).values
        return torch.where(last < 0, first.expand(x.shape), x.gather(0, last.clamp(min=0)))

    def stack(self, terms: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(terms), dim=-1)

    def element(self, x: Tensor, index: int) -> Tensor:
        return x[..., index]

    def join(self, terms: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(terms), dim=-1)

    def split(self, x: Tensor, count: int) -> list[Tensor]:
        return list(x.chunk(count, dim=-1))

    def columns(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        return x[..., list(indices)]

    def rows(self, x: Tensor, width: int) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2] // width, width)

    def category_index(self, x: Tensor, count: int) -> Tensor:
        return torch.where(x.isnan(), float(count), x.clamp(0, count - 1)).squeeze(-1).long()

    def gather_rows(self, table: Tensor, indices: Tensor) -> Tensor:
        return nn.functional.embedding(indices, table)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.linear(x, weight, bias)

    def fuse_linear(self, terms: Sequence[Tensor]) -> list[Tensor]:
        return list(terms)

    def weighted_sum(self, x: Tensor, weights: Tensor) -> Tensor:
        return x @ weights

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=-1, keepdim=True)

    def log_sum_exp(self, x: Tensor) -> Tensor:
        return x.logsumexp(dim=-1, keepdim=True)

    def top_k(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        largest = x.topk(count, dim=-1)
        return largest.values, largest.indices


class FloatOps:
    """The operations of a recursion on Python's numbers, which are in double precision."""

    def above(self, a: float, b: float) -> bool:
        return a > b

    def same(self, a: float, b: float) -> bool:
        return a == b

    def choose(self, condition: bool, a: float, b: float) -> float:
        return a if condition else b

    def unless_missing(self, x: float, after: Sequence[float], before: Sequence[float]) -> list[float]:
        return list(before if math.isnan(x) else after)

    def abs(self, x: float) -> float:
        return abs(x)

    def sqrt(self, x: float) -> float:
        return math.sqrt(x)

    def greater(self, a: float, b: float) -> float:
        return max(a, b)

    def least(self, a: float, b: float) -> float:
        return min(a, b)


FLOATS = FloatOps()
