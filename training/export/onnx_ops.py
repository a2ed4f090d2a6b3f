"""A graph under construction, and the operations of `onward.training.network.ops.Ops` as its nodes.

Only operators whose answer for a row does not depend on the rows beside it are used, so that batches are bit-exact.
ONNX Runtime's Log treats the tail of an array differently from its vectorised part, so it is given whole vectors only;
its Softplus and long ReduceSum have no place here, and sums are products with a vector of ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

LAST = int(np.iinfo(np.int64).max)
"""As the end of a slice: all the rest."""

VECTOR = 16  # floats in the widest vector register


@dataclass(slots=True)
class Graph:
    """Nodes and constants under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    doubles: set[str] = field(default_factory=set)
    """Names of the values that are not in single precision."""

    def add(self, kind: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> None:
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """A constant under that name; the same name twice is the same constant."""
        if name not in {constant.name for constant in self.constants}:
            self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def made(self, name: str) -> bool:
        return any(name in node.output for node in self.nodes)

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

    def like(self, value: str, kind: str, *inputs: str, **attributes: Any) -> str:
        """The same, where the output has the precision of `value`."""
        name = self.op(kind, *inputs, **attributes)
        if value in self.doubles:
            self.doubles.add(name)
        return name

    def number(self, value: str, number: float) -> str:
        """A constant in the precision of `value`."""
        if value in self.doubles:
            return self.constant(f"double_{number!r}", np.array(number, np.float64))
        return self.constant(f"number_{number!r}", np.array(number, np.float32))

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
        return Value(
            self.graph, self.graph.like(self.name, kind, *((name, self.name) if swapped else (self.name, name)))
        )

    def _number(self, number: float) -> str:
        return self.graph.number(self.name, number)

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

    def __rsub__(self, other: float) -> "Value":
        return self._with("Sub", other, swapped=True)


@dataclass(frozen=True, slots=True)
class GraphOps:
    """Emits nodes."""

    graph: Graph

    def value(self, name: str) -> Value:
        return Value(self.graph, name)

    def constant(self, name: str, value: Tensor) -> Value:
        array = value.detach().cpu().numpy()
        if array.dtype == np.float64:
            self.graph.doubles.add(name)
        return self.value(self.graph.constant(name, array))

    def _each(self, kind: str, x: Value, *more: str) -> Value:
        return self.value(self.graph.like(x.name, kind, x.name, *more))

    def exp(self, x: Value) -> Value:
        return self._each("Exp", x)

    def log(self, x: Value) -> Value:
        """Of vectors that hold each number over and over, so that every number lies in a whole vector."""
        wide = self.graph.op("Unsqueeze", x.name, self.graph.integers(-1))
        wide = self.graph.op("Expand", wide, self.graph.integers(VECTOR))
        logs = self.graph.op("Log", wide)
        return self.value(self.graph.op("Gather", logs, self.graph.constant("first", np.array(0, np.int64)), axis=-1))

    def sqrt(self, x: Value) -> Value:
        return self._each("Sqrt", x)

    def abs(self, x: Value) -> Value:
        return self._each("Abs", x)

    def clip(self, x: Value, low: float, high: float) -> Value:
        return self._each("Clip", x, *(self.graph.number(x.name, bound) for bound in (low, high)))

    def greater(self, a: Value, b: Value) -> Value:
        return self._each("Max", a, b.name)

    def double(self, x: Value) -> Value:
        name = self.graph.op("Cast", x.name, to=onnx.TensorProto.DOUBLE)
        self.graph.doubles.add(name)
        return self.value(name)

    def single(self, x: Value) -> Value:
        return self.value(self.graph.op("Cast", x.name, to=onnx.TensorProto.FLOAT))

    def present(self, x: Value) -> Value:
        there = self.graph.op("Not", self.graph.op("IsNaN", x.name))
        return self.value(self.graph.op("Cast", there, to=onnx.TensorProto.FLOAT))

    def fill_missing(self, x: Value, value: Value) -> Value:
        return self.value(self.graph.like(x.name, "Where", self.graph.op("IsNaN", x.name), value.name, x.name))

    def running_sum(self, name: str, x: Value) -> Value:
        """Summed in order from the carried sum on: the same bits in any chunks."""
        axis = self.graph.constant("time_axis", np.array(0, np.int64))
        sums = self.graph.op("CumSum", self._after_state(name, x), axis)
        self._keep(name, sums)
        later = self.graph.op("Slice", sums, *(self.graph.integers(n) for n in (1, LAST, 0)))
        self.graph.doubles.add(later)
        return self.value(later)

    def previous(self, name: str, x: Value, first: Any = None) -> Value:
        """(time, batch, ...) x of the step before; and the last of each row, kept as state.

        With the one kept from before in front, what came before input t is at t, and a row's last at its length. The
        first one of all is the state's own first value.
        """
        del first
        both = self._after_state(name, x)
        self._keep(name, both)
        return self.value(self.graph.op("Slice", both, *(self.graph.integers(n) for n in (0, -1, 0))))

    def last_present(self, name: str, x: Value, first: Any) -> Value:
        """Step by step: no operator fills forward."""
        del first
        step = [
            helper.make_node("IsNaN", ["fill_now"], ["fill_missing"]),
            helper.make_node("Where", ["fill_missing", "fill_kept", "fill_now"], ["fill_last"]),
            helper.make_node("Identity", ["fill_last"], ["fill_seen"]),
        ]
        into, out = (
            [helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, None) for one in names]
            for names in (("fill_kept", "fill_now"), ("fill_last", "fill_seen"))
        )
        filled, end = self.graph.fresh("last_seen"), self.graph.fresh("last_of_all")
        body = helper.make_graph(step, "fill forward", into, out)
        self.graph.add("Scan", [f"{name}_in", x.name], [end, filled], body=body, num_scan_inputs=1)
        return self.value(filled)

    def _after_state(self, name: str, x: Value) -> str:
        """(time + 1, batch, ...)"""
        kept = self.graph.op("Unsqueeze", f"{name}_in", self.graph.integers(0))
        return self.graph.op("Concat", kept, x.name, axis=0)

    def _keep(self, name: str, values: str) -> None:
        """Of values (time + 1, batch, ...) each row's at its length, as the state that the session keeps."""
        if not self.graph.made("row_ends"):
            lengths = self.graph.op("Cast", "lengths", to=onnx.TensorProto.INT64)
            bounds = [self.graph.constant(f"range_{n}", np.array(n, np.int64)) for n in (0, 1)]
            count = self.graph.op("Squeeze", self.graph.op("Shape", "lengths"))
            each = self.graph.op("Range", bounds[0], count, bounds[1])
            wide = [self.graph.op("Unsqueeze", one, self.graph.integers(1)) for one in (lengths, each)]
            self.graph.add("Concat", wide, "row_ends", axis=1)  # (batch, 2): length and row
        self.graph.add("GatherND", [values, "row_ends"], f"{name}_out")

    def stack(self, terms: Sequence[Value]) -> Value:
        wide = [self.graph.op("Unsqueeze", term.name, self.graph.integers(-1)) for term in terms]
        return self.value(self.graph.op("Concat", *wide, axis=-1))

    def unstack(self, term: Value, count: int) -> list[Value]:
        places = [self.graph.constant(f"place_{place}", np.array(place, np.int64)) for place in range(count)]
        return [self.value(self.graph.op("Gather", term.name, place, axis=-1)) for place in places]

    def join(self, terms: Sequence[Value]) -> Value:
        if len(terms) == 1:
            return terms[0]
        return self.value(self.graph.op("Concat", *(term.name for term in terms), axis=-1))

    def split(self, x: Value, count: int) -> list[Value]:
        if count == 1:
            return [x]
        names = [self.graph.fresh(f"part_{part}") for part in range(count)]
        self.graph.add("Split", [x.name], names, axis=-1, num_outputs=count)
        return [self.value(name) for name in names]

    def columns(self, x: Value, indices: Sequence[int]) -> Value:
        taken = self.graph.constant("columns_" + "_".join(map(str, indices)), np.array(indices, np.int64))
        return self.value(self.graph.like(x.name, "Gather", x.name, taken, axis=-1))

    def category_index(self, x: Value, count: int) -> Value:
        """Returns x as indices. Steps beyond a row's length may hold any number, so x is clipped to the valid range."""
        within = self.clip(x, 0.0, count - 1.0)
        missing = self.fill_missing(x, self.value(self.graph.number(x.name, float(count))))
        found = self.graph.op("Where", self.graph.op("IsNaN", x.name), missing.name, within.name)
        whole = self.graph.op("Cast", found, to=onnx.TensorProto.INT64)
        return self.value(self.graph.op("Squeeze", whole, self.graph.integers(-1)))

    def gather_rows(self, table: Value, indices: Value) -> Value:
        return self.value(self.graph.op("Gather", table.name, indices.name, axis=0))

    def linear(self, x: Value, weight: Value, bias: Value) -> Value:
        turned = self.graph.op("Transpose", weight.name, perm=[1, 0])  # of a constant: done once, when it is opened
        return self.value(self.graph.op("MatMul", x.name, turned)) + bias

    def dot(self, a: Value, b: Value) -> Value:
        """As a product of matrices: a ReduceSum depends on the rows beside it."""
        row = self.graph.op("Unsqueeze", a.name, self.graph.integers(-2))
        column = self.graph.op("Unsqueeze", b.name, self.graph.integers(-1))
        product = self.graph.op("MatMul", row, column)
        return self.value(self.graph.op("Squeeze", product, self.graph.integers(-1)))

    def log_sum_exp(self, x: Value) -> Value:
        return self.value(self.graph.op("ReduceLogSumExp", x.name, self.graph.integers(-1), keepdims=1))

    def top_k(self, x: Value, count: int) -> tuple[Value, Value]:
        scores, places = self.graph.fresh("top_scores"), self.graph.fresh("top_places")
        self.graph.add("TopK", [x.name, self.graph.integers(count)], [scores, places], axis=-1, largest=1, sorted=1)
        return self.value(scores), self.value(places)
