"""One way to write a formula, for torch and for the graph.

A head's and a scaling's arithmetic is written once, over `+ - * /` and the functions of `Ops`; with `TorchOps` it
computes, with `GraphOps` it emits nodes. So training and graph cannot drift apart.

Only operations whose answer for a row does not depend on the rows beside it are used, so that batches are bit-exact.
ONNX Runtime's Log treats the tail of an array differently from its vectorised part, so it is given whole vectors only;
its Softplus and long ReduceSum have no place here, and sums are products with a vector of ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

VECTOR = 16  # floats in the widest vector register


class Ops(Protocol):
    """The functions that formulas may use; all elementwise but the last three."""

    def constant(self, name: str, value: Tensor) -> Any: ...
    def exp(self, x: Any) -> Any: ...
    def log(self, x: Any) -> Any: ...
    def abs(self, x: Any) -> Any: ...
    def clip(self, x: Any, low: float, high: float) -> Any: ...
    def greater(self, a: Any, b: Any) -> Any: ...

    def stack(self, terms: Sequence[Any]) -> Any:
        """Terms (...) side by side on a new last axis."""

    def unstack(self, term: Any, count: int) -> list[Any]:
        """The `count` slices of the last axis."""


class TorchOps:
    """Computes."""

    def constant(self, name: str, value: Tensor) -> Tensor:
        del name
        return value

    def exp(self, x: Tensor) -> Tensor:
        return x.exp()

    def log(self, x: Tensor) -> Tensor:
        return x.log()

    def abs(self, x: Tensor) -> Tensor:
        return x.abs()

    def clip(self, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    def greater(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b)

    def stack(self, terms: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(terms), dim=-1)

    def unstack(self, term: Tensor, count: int) -> list[Tensor]:
        assert term.shape[-1] == count
        return list(term.unbind(-1))


@dataclass(slots=True)
class Graph:
    """Nodes and constants under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, kind: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> None:
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """A constant under that name; the same name twice is the same constant."""
        if name not in {constant.name for constant in self.constants}:
            self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def integers(self, *values: int) -> str:
        """A constant vector of whole numbers: axes, places, counts."""
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def fresh(self, kind: str) -> str:
        return f"{kind.lower()}_{len(self.nodes)}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output; returns its name."""
        name = self.fresh(kind)
        self.add(kind, inputs, name, **attributes)
        return name

    def used_constants(self) -> list[onnx.TensorProto]:
        """The constants that some node reads: a head need not use all of its scaling."""
        read = {name for node in self.nodes for name in node.input}
        return [constant for constant in self.constants if constant.name in read]

    def rename(self, value: str, name: str) -> None:
        """Gives a value the name that the contract has for it."""
        self.add("Identity", [value], name)


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the graph, with arithmetic."""

    graph: Graph
    name: str

    def _with(self, kind: str, other: "Value | float", *, swapped: bool = False) -> "Value":
        name = other.name if isinstance(other, Value) else self._number(other)
        return Value(self.graph, self.graph.op(kind, *((name, self.name) if swapped else (self.name, name))))

    def _number(self, number: float) -> str:
        return self.graph.constant(f"number_{number!r}", np.array(number, np.float32))

    def __add__(self, other: "Value | float") -> "Value":
        return self._with("Add", other)

    __radd__ = __add__

    def __sub__(self, other: "Value | float") -> "Value":
        return self._with("Sub", other)

    def __mul__(self, other: "Value | float") -> "Value":
        return self._with("Mul", other)

    __rmul__ = __mul__

    def __truediv__(self, other: "Value | float") -> "Value":
        return self._with("Div", other)


@dataclass(frozen=True, slots=True)
class GraphOps:
    """Emits nodes."""

    graph: Graph

    def value(self, name: str) -> Value:
        return Value(self.graph, name)

    def constant(self, name: str, value: Tensor) -> Value:
        return self.value(self.graph.constant(name, value.detach().cpu().numpy().astype(np.float32)))

    def exp(self, x: Value) -> Value:
        return self.value(self.graph.op("Exp", x.name))

    def log(self, x: Value) -> Value:
        """Of vectors that hold each number over and over, so that every number lies in a whole vector."""
        wide = self.graph.op("Unsqueeze", x.name, self.graph.integers(-1))
        wide = self.graph.op("Expand", wide, self.graph.integers(VECTOR))
        logs = self.graph.op("Log", wide)
        return self.value(self.graph.op("Gather", logs, self.graph.constant("first", np.array(0, np.int64)), axis=-1))

    def abs(self, x: Value) -> Value:
        return self.value(self.graph.op("Abs", x.name))

    def clip(self, x: Value, low: float, high: float) -> Value:
        bounds = [self.graph.constant(f"bound_{bound!r}", np.array(bound, np.float32)) for bound in (low, high)]
        return self.value(self.graph.op("Clip", x.name, *bounds))

    def greater(self, a: Value, b: Value) -> Value:
        return self.value(self.graph.op("Max", a.name, b.name))

    def stack(self, terms: Sequence[Value]) -> Value:
        wide = [self.graph.op("Unsqueeze", term.name, self.graph.integers(-1)) for term in terms]
        return self.value(self.graph.op("Concat", *wide, axis=-1))

    def unstack(self, term: Value, count: int) -> list[Value]:
        places = [self.graph.constant(f"place_{place}", np.array(place, np.int64)) for place in range(count)]
        return [self.value(self.graph.op("Gather", term.name, place, axis=-1)) for place in places]
