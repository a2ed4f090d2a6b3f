"""One way to write a formula, for torch and for the graph.

A head's and a scaling's arithmetic is written once, over `+ - * /` and the functions of `Ops`; with `TorchOps` it
computes, with `onward.training.export.onnx_ops.GraphOps` it emits nodes. So training and graph cannot drift apart.

What the graph's side must keep to is in `onward.training.export.onnx_ops`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Ops(Protocol):
    """The functions that formulas may use. The first are elementwise; time is the first axis of all."""

    def constant(self, name: str, value: Tensor) -> Any:
        """Of the value's own type."""

    def exp(self, x: Any) -> Any: ...
    def log(self, x: Any) -> Any: ...
    def sqrt(self, x: Any) -> Any: ...
    def abs(self, x: Any) -> Any: ...
    def clip(self, x: Any, low: float, high: float) -> Any: ...
    def greater(self, a: Any, b: Any) -> Any: ...
    def double(self, x: Any) -> Any: ...
    def single(self, x: Any) -> Any: ...

    def present(self, x: Any) -> Any:
        """1 where there is a number, 0 where it is missing."""

    def filled(self, x: Any, value: Any) -> Any:
        """`value` where x is missing."""

    def running(self, name: str, x: Any) -> Any:
        """The sum of x so far, over all that the session has seen: carried from call to call under `name`."""

    def before(self, name: str, x: Any, first: Any) -> Any:
        """What x was a step before, carried from call to call under `name`; at a session's first step `first`."""

    def last_seen(self, name: str, x: Any, first: Any) -> Any:
        """x, or where it is missing the last one seen; what `before` carries under `name`, or `first`."""

    def stack(self, terms: Sequence[Any]) -> Any:
        """Terms (...) side by side on a new last axis."""

    def unstack(self, term: Any, count: int) -> list[Any]:
        """The `count` slices of the last axis."""

    def join(self, terms: Sequence[Any]) -> Any:
        """Terms one after another on the last axis."""

    def split(self, x: Any, count: int) -> list[Any]:
        """The last axis in `count` equal parts."""

    def columns(self, x: Any, places: Sequence[int]) -> Any:
        """These places of the last axis."""

    def place(self, x: Any, places: int) -> Any:
        """X (..., 1) as places (...), whole numbers from 0 to `places` - 1, one more where x is missing."""

    def rows(self, table: Any, places: Any) -> Any:
        """The table's rows at places (...): (..., width)."""

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        """X (..., n) -> (..., m) by weight (m, n) and bias (m,)."""

    def dot(self, a: Any, b: Any) -> Any:
        """(..., 1) the inner products along the last axis."""

    def log_sum_exp(self, x: Any) -> Any:
        """(..., 1) along the last axis."""

    def top(self, x: Any, count: int) -> tuple[Any, Any]:
        """The largest along the last axis, falling, and their places."""


class TorchOps:
    """Computes, from a sequence's beginning on."""

    def constant(self, name: str, value: Tensor) -> Tensor:
        del name
        return value

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

    def present(self, x: Tensor) -> Tensor:
        return (~x.isnan()).float()

    def filled(self, x: Tensor, value: Tensor) -> Tensor:
        return torch.where(x.isnan(), value, x)

    def running(self, name: str, x: Tensor) -> Tensor:
        del name
        return x.cumsum(0)

    def before(self, name: str, x: Tensor, first: Tensor) -> Tensor:
        del name
        return torch.cat((first.expand(1, *x.shape[1:]), x[:-1]))

    def last_seen(self, name: str, x: Tensor, first: Tensor) -> Tensor:
        del name
        steps = torch.arange(len(x), device=x.device).reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape)
        last = torch.where(x.isnan(), -1, steps).cummax(0).values
        return torch.where(last < 0, first.expand(x.shape), x.gather(0, last.clamp(min=0)))

    def stack(self, terms: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(terms), dim=-1)

    def unstack(self, term: Tensor, count: int) -> list[Tensor]:
        assert term.shape[-1] == count
        return list(term.unbind(-1))

    def join(self, terms: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(terms), dim=-1)

    def split(self, x: Tensor, count: int) -> list[Tensor]:
        return list(x.chunk(count, dim=-1))

    def columns(self, x: Tensor, places: Sequence[int]) -> Tensor:
        return x[..., list(places)]

    def place(self, x: Tensor, places: int) -> Tensor:
        return torch.where(x.isnan(), float(places), x.clamp(0, places - 1)).squeeze(-1).long()

    def rows(self, table: Tensor, places: Tensor) -> Tensor:
        return nn.functional.embedding(places, table)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.linear(x, weight, bias)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=-1, keepdim=True)

    def log_sum_exp(self, x: Tensor) -> Tensor:
        return x.logsumexp(dim=-1, keepdim=True)

    def top(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        found = x.topk(count, dim=-1)
        return found.values, found.indices
