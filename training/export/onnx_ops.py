"""An ONNX graph under construction, and the operations of `onward.training.network.ops.Ops` as its nodes.

Only operators are used whose result for a row does not depend on the other rows of the batch, so that batches are bit-
exact. ONNX Runtime's Log, and its Exp in double precision, may compute the tail of an array differently from its
vectorised part, so they are applied to whole vectors only. Softplus and a long ReduceSum depend on the other rows and
are not used; sums are products with a vector of ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from onward.training.network.ops import Update

LAST = int(np.iinfo(np.int64).max)
"""The end of a slice that extends to the end of the axis."""

VECTOR = 16
"""The number of floats in the widest vector register."""


@dataclass(frozen=True, slots=True)
class LinearMap:
    """The map x -> x . weight + bias of a value of the graph; weight (n, m), bias (m,). It is folded in doubles."""

    x: str
    weight: NDArray[np.floating[Any]]
    bias: NDArray[np.floating[Any]]

    def then(self, kind: str, operand: NDArray[Any]) -> "LinearMap | None":
        """Returns the map followed by an arithmetic operation with a constant; None if it is no map to (m,)."""
        if np.broadcast_shapes(operand.shape, self.bias.shape) != self.bias.shape:
            return None
        operand = operand.astype(np.float64)
        match kind:
            case "Add":
                return LinearMap(self.x, self.weight, self.bias + operand)
            case "Sub":
                return LinearMap(self.x, self.weight, self.bias - operand)
            case "Mul":
                return LinearMap(self.x, self.weight * operand, self.bias * operand)
            case "Div":
                return LinearMap(self.x, self.weight / operand, self.bias / operand)
        return None


@dataclass(slots=True)
class Graph:
    """The nodes and constants of a graph under construction."""

    prefix: str = ""
    """Begins every name that the graph makes; that of a body within another graph must be its own."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    doubles: set[str] = field(default_factory=set)
    """The names of the values in double precision; all other numbers are in single precision."""
    linear: dict[str, LinearMap] = field(default_factory=dict)
    """The values that are linear in another value."""
    divided: dict[str, tuple[str, NDArray[Any]]] = field(default_factory=dict)
    """The values that are another value divided by a constant, with both."""
    whole: dict[tuple[str, ...], str] = field(default_factory=dict)
    """The values that were split, by the names of all their parts."""
    widths: dict[str, int] = field(default_factory=dict)
    """The lengths of the last axis of some values."""

    def add(self, kind: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> None:
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Adds a constant unless its name exists already, and returns the name, with the graph's prefix."""
        name = f"{self.prefix}{name}"
        self.constants.setdefault(name, value)
        if value.dtype == np.float64:
            self.doubles.add(name)
        return name

    def has(self, name: str) -> bool:
        """True if a node computes the value `name`."""
        return any(name in node.output for node in self.nodes)

    def integers(self, *values: int) -> str:
        """Adds a constant vector of int64, such as axes, indices or counts."""
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def unique_name(self, kind: str) -> str:
        return f"{self.prefix}{kind.lower()}_{len(self.nodes)}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with a single output, and returns the name of the output."""
        name = self.unique_name(kind)
        self.add(kind, inputs, name, **attributes)
        return name

    def op_like(self, value: str, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node like `op` whose output has the precision of `value`."""
        name = self.op(kind, *inputs, **attributes)
        if value in self.doubles:
            self.doubles.add(name)
        return name

    def number(self, value: str, number: float) -> str:
        """Adds a scalar constant in the precision of `value`."""
        if value in self.doubles:
            return self.constant(f"double_{number!r}", np.array(number, np.float64))
        return self.constant(f"number_{number!r}", np.array(number, np.float32))

    def prune(self, outputs: Sequence[str]) -> None:
        """Removes the nodes and constants that no output depends on: a head need not use all of the scaling."""
        needed, nodes = set(outputs), list[onnx.NodeProto]()
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.output):
                nodes.insert(0, node)
                needed.update(node.input)
        self.nodes = nodes
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def initializers(self) -> list[onnx.TensorProto]:
        """Returns the constants as ONNX stores them."""
        return [numpy_helper.from_array(np.asarray(value, order="C"), name) for name, value in self.constants.items()]

    def rename(self, value: str, name: str) -> None:
        """Names a value as the contract does, wherever it is computed and read."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [name if found == value else found for found in names]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the graph; its arithmetic operators add nodes."""

    graph: Graph
    name: str

    def _binary(self, kind: str, operand: "Value | float", *, swapped: bool = False) -> "Value":
        name = operand.name if isinstance(operand, Value) else self.graph.number(self.name, operand)
        inputs = (name, self.name) if swapped else (self.name, name)
        result = Value(self.graph, self.graph.op_like(self.name, kind, *inputs))
        before, constant = self.graph.linear.get(self.name), self.graph.constants.get(name)
        if swapped or constant is None:
            return result
        if before is not None and (after := before.then(kind, constant)):
            self.graph.linear[result.name] = after
        if kind == "Div":
            self.graph.divided[result.name] = self.name, constant
        return result

    def __add__(self, operand: "Value | float") -> "Value":
        return self._binary("Add", operand)

    __radd__ = __add__

    def __sub__(self, operand: "Value | float") -> "Value":
        return self._binary("Sub", operand)

    def __mul__(self, operand: "Value | float") -> "Value":
        return self._binary("Mul", operand)

    __rmul__ = __mul__

    def __truediv__(self, operand: "Value | float") -> "Value":
        return self._binary("Div", operand)

    def __rsub__(self, operand: float) -> "Value":
        return self._binary("Sub", operand, swapped=True)

    def __rtruediv__(self, operand: float) -> "Value":
        return self._binary("Div", operand, swapped=True)

    def __neg__(self) -> "Value":
        return Value(self.graph, self.graph.op_like(self.name, "Neg", self.name))


@dataclass(frozen=True, slots=True)
class GraphOps:
    """The operations of formulas, which add nodes to the graph instead of computing."""

    graph: Graph

    def value(self, name: str) -> Value:
        return Value(self.graph, name)

    def constant(self, name: str, value: Tensor) -> Value:
        return self.value(self.graph.constant(name, value.detach().cpu().numpy()))

    def numbers(self, name: str, values: NDArray[np.floating[Any]]) -> Value:
        return self.value(self.graph.constant(name, values))

    def _zero(self) -> Value:
        return self.constant("zero", torch.zeros((), dtype=torch.float64))

    def _operand(self, like: Value, operand: Value | float) -> str:
        return operand.name if isinstance(operand, Value) else self.graph.number(like.name, operand)

    def _elementwise(self, kind: str, x: Value, *operands: str) -> Value:
        return self.value(self.graph.op_like(x.name, kind, x.name, *operands))

    def exp(self, x: Value) -> Value:
        return self._in_whole_vectors("Exp", x) if x.name in self.graph.doubles else self._elementwise("Exp", x)

    def log(self, x: Value) -> Value:
        return self._in_whole_vectors("Log", x)

    def _in_whole_vectors(self, kind: str, x: Value) -> Value:
        """Adds a function of each number repeated to a whole vector, of which the first element is taken."""
        wide = self.graph.op("Unsqueeze", x.name, self.graph.integers(-1))
        wide = self.graph.op("Expand", wide, self.graph.integers(VECTOR))
        results = self.graph.op(kind, wide)
        first = self.graph.constant("first", np.array(0, np.int64))
        return self.value(self.graph.op_like(x.name, "Gather", results, first, axis=-1))

    def sqrt(self, x: Value) -> Value:
        return self._elementwise("Sqrt", x)

    def abs(self, x: Value) -> Value:
        return self._elementwise("Abs", x)

    def clip(self, x: Value, low: float, high: float) -> Value:
        return self._elementwise("Clip", x, *(self.graph.number(x.name, bound) for bound in (low, high)))

    def greater(self, a: Value, b: Value) -> Value:
        return self._elementwise("Max", a, b.name)

    def least(self, a: Value, b: Value | float) -> Value:
        return self._elementwise("Min", a, self._operand(a, b))

    def double(self, x: Value) -> Value:
        if x.name in self.graph.doubles:
            return x
        name = self.graph.op("Cast", x.name, to=onnx.TensorProto.DOUBLE)
        self.graph.doubles.add(name)
        return self.value(name)

    def single(self, x: Value) -> Value:
        if x.name not in self.graph.doubles:
            return x
        return self.value(self.graph.op("Cast", x.name, to=onnx.TensorProto.FLOAT))

    def like(self, x: Value, reference: Value) -> Value:
        return self.double(x) if reference.name in self.graph.doubles else self.single(x)

    def present(self, x: Value) -> Value:
        is_present = self.graph.op("Not", self.graph.op("IsNaN", x.name))
        return self.value(self.graph.op("Cast", is_present, to=onnx.TensorProto.FLOAT))

    def above(self, a: Value, b: Value | float) -> Value:
        return self.value(self.graph.op("Greater", a.name, self._operand(a, b)))

    def same(self, a: Value, b: Value) -> Value:
        return self.value(self.graph.op("Equal", a.name, b.name))

    def choose(self, condition: Value, a: Value | float, b: Value | float) -> Value:
        like = next((operand for operand in (a, b) if isinstance(operand, Value)), None) or self._zero()
        names = (self._operand(like, operand) for operand in (a, b))
        return self.value(self.graph.op_like(like.name, "Where", condition.name, *names))

    def unless_missing(self, x: Value, after: Sequence[Value], before: Sequence[Value]) -> list[Value]:
        """Adds one Where for all parts."""
        missing = self.graph.op("IsNaN", self.join([x] * len(after)).name)
        new, old = self.join(after), self.join(before)
        return self.split(self.value(self.graph.op_like(new.name, "Where", missing, old.name, new.name)), len(after))

    def fill_missing(self, x: Value, value: Value) -> Value:
        missing, value = self.graph.op("IsNaN", x.name), self.like(value, x)
        return self.value(self.graph.op_like(x.name, "Where", missing, value.name, x.name))

    def running_sums(self, name: str, terms: Sequence[Value]) -> list[Value]:
        """Adds a cumulative sum that continues the carried sums in order, so that chunks do not change its bits."""
        axis = self.graph.constant("time_axis", np.array(0, np.int64))
        stored = self.graph.op("Unsqueeze", f"{name}_in", self.graph.integers(0))
        values = self.join(terms)
        sums = self.graph.op("CumSum", self.graph.op("Concat", stored, values.name, axis=0), axis)
        later = self.value(self.graph.op("Slice", sums, *(self.graph.integers(n) for n in (1, LAST, 0))))
        self.graph.doubles.add(later.name)
        self.store(name, later)
        return self.split(later, len(terms))

    def previous(self, name: str, x: Value, first: Any = None) -> Value:
        """Returns (time, batch, ...) x of the previous step, and stores the last x of each row as state.

        The first value of a session is the state's initial value.
        """
        del first
        self.store(name, x)
        stored = self.graph.op_like(x.name, "Unsqueeze", f"{name}_in", self.graph.integers(0))
        return self.shift(self.value(stored), x)

    def shift(self, first: Value, x: Value) -> Value:
        """Returns (time, batch, ...) x of the step before; first: (1, batch, ...)."""
        values = self.graph.op_like(x.name, "Concat", first.name, x.name, axis=0)
        return self.value(self.graph.op_like(x.name, "Slice", values, *(self.graph.integers(n) for n in (0, -1, 0))))

    def last_present(self, name: str, x: Value, first: Any) -> Value:
        """Adds a Scan over the steps, because no ONNX operator fills forward."""
        del first
        step = [
            helper.make_node("IsNaN", ["fill_now"], ["fill_missing"]),
            helper.make_node("Where", ["fill_missing", "fill_previous", "fill_now"], ["fill_last"]),
            helper.make_node("Identity", ["fill_last"], ["fill_seen"]),
        ]
        kind = onnx.TensorProto.DOUBLE if x.name in self.graph.doubles else onnx.TensorProto.FLOAT
        inputs, outputs = (
            [helper.make_tensor_value_info(value, kind, None) for value in names]
            for names in (("fill_previous", "fill_now"), ("fill_last", "fill_seen"))
        )
        filled, final = self.graph.unique_name("last_seen"), self.graph.unique_name("last_of_all")
        body = helper.make_graph(step, "fill forward", inputs, outputs)
        self.graph.add("Scan", [f"{name}_in", x.name], [final, filled], body=body, num_scan_inputs=1)
        if x.name in self.graph.doubles:
            self.graph.doubles.add(filled)
        return self.value(filled)

    def recursion(self, name: str, x: Value, constants: Tensor, first: Tensor, update: Update) -> list[Value]:
        """Adds a Scan over the steps, whose state is a single tensor: each tensor takes time, however small it is."""
        body = Graph(prefix=f"{name}_step_")
        ops, (before, now, after, every) = (
            GraphOps(body),
            (f"{name}_{when}" for when in ("before", "now", "after", "every")),
        )
        body.doubles.update((before, now))
        fixed = [ops.constant(f"constant_{index}", constant) for index, constant in enumerate(constants)]
        parts = update(ops, ops.value(now), fixed, ops.split(ops.value(before), len(first)))
        body.rename(ops.join(parts).name, after)
        body.add("Identity", [after], every)
        body.prune([after, every])
        inputs, outputs = (
            [helper.make_tensor_value_info(value, onnx.TensorProto.DOUBLE, None) for value in names]
            for names in ((before, now), (after, every))
        )
        scanned = helper.make_graph(body.nodes, f"a step of {name}", inputs, outputs, body.initializers())
        states, final = self.graph.unique_name("states"), self.graph.unique_name("final_state")
        self.graph.add("Scan", [f"{name}_in", x.name], [final, states], body=scanned, num_scan_inputs=1)
        self.graph.doubles.add(states)
        self.store(name, self.value(states))
        return self.split(self.value(states), len(first))

    def store(self, name: str, x: Value) -> None:
        """Stores, of x (time, batch, ...), each row's value at the row's last step as state (batch, ...)."""
        first = self.graph.constant("first", np.array(0, np.int64))
        self.graph.add("Gather", [self._reversed(x), first], f"{name}_out", axis=0)

    def final(self, x: Value) -> Value:
        """Returns (1, batch, ...) each row's value at the row's last step."""
        return self.value(self.graph.op("Gather", self._reversed(x), self.graph.integers(0), axis=0))

    def _reversed(self, x: Value) -> str:
        """Returns each row's steps in reversed order, so that the last one, wherever it is, comes first."""
        if not self.graph.has("row_lengths"):
            self.graph.add("Cast", ["lengths"], "row_lengths", to=onnx.TensorProto.INT64)
        return self.graph.op("ReverseSequence", x.name, "row_lengths", time_axis=0, batch_axis=1)

    def stack(self, terms: Sequence[Value]) -> Value:
        """Adds three nodes for any number of terms (time, batch, n), one for a single term, and none for a constant."""
        if len(terms) == 1 and (constant := self.graph.constants.get(terms[0].name)) is not None:
            return self.value(self.graph.constant(f"{terms[0].name}_column", constant[..., np.newaxis]))
        if len(terms) == 1:
            return self.value(self.graph.op_like(terms[0].name, "Unsqueeze", terms[0].name, self.graph.integers(-1)))
        whole = self.join(terms).name
        wide = self.graph.op_like(whole, "Reshape", whole, self.graph.integers(0, 0, len(terms), -1))
        return self.value(self.graph.op_like(whole, "Transpose", wide, perm=[0, 1, 3, 2]))

    def element(self, x: Value, index: int) -> Value:
        taken = self.graph.constant(f"index_{index}", np.array(index, np.int64))
        return self.value(self.graph.op_like(x.name, "Gather", x.name, taken, axis=-1))

    def join(self, terms: Sequence[Value]) -> Value:
        names = tuple(term.name for term in terms)
        if len(names) == 1:
            return terms[0]
        if (whole := self.graph.whole.get(names)) is not None:
            return self.value(whole)
        return self.value(self.graph.op_like(names[0], "Concat", *names, axis=-1))

    def split(self, x: Value, count: int) -> list[Value]:
        if count == 1:
            return [x]
        names = tuple(self.graph.unique_name(f"part_{part}") for part in range(count))
        self.graph.add("Split", [x.name], names, axis=-1, num_outputs=count)
        self.graph.whole[names] = x.name
        if x.name in self.graph.doubles:
            self.graph.doubles.update(names)
        if (found := self.graph.linear.get(x.name)) is not None:
            weights, biases = (np.split(array, count, axis=-1) for array in (found.weight, found.bias))
            for name, weight, bias in zip(names, weights, biases, strict=True):
                self.graph.linear[name] = LinearMap(found.x, weight, bias)
        return [self.value(name) for name in names]

    def split_at(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        """Returns consecutive parts of the last axis, of these sizes."""
        if len(set(sizes)) == 1:
            return self.split(x, len(sizes))
        names = [self.graph.unique_name(f"part_{part}") for part in range(len(sizes))]
        self.graph.add("Split", [x.name, self.graph.integers(*sizes)], names, axis=-1)
        return [self.value(name) for name in names]

    def flatten(self, x: Value, inner: Sequence[int]) -> Value:
        """Returns x (time, batch, *inner) with one axis after time and batch."""
        return x if len(inner) == 1 else self.value(self.graph.op("Reshape", x.name, self.graph.integers(0, 0, -1)))

    def unflatten(self, x: Value, inner: Sequence[int]) -> Value:
        """Returns x (time, batch, size) as (time, batch, *inner)."""
        return x if len(inner) == 1 else self.value(self.graph.op("Reshape", x.name, self.graph.integers(0, 0, *inner)))

    def columns(self, x: Value, indices: Sequence[int]) -> Value:
        if list(indices) == list(range(self.graph.widths.get(x.name, 0))):
            return x
        taken = self.graph.constant("columns_" + "_".join(map(str, indices)), np.array(indices, np.int64))
        return self.value(self.graph.op_like(x.name, "Gather", x.name, taken, axis=-1))

    def rows(self, x: Value, width: int) -> Value:
        name = self.graph.op_like(x.name, "Reshape", x.name, self.graph.integers(0, -1, width))
        self.graph.widths[name] = width
        return self.value(name)

    def category_index(self, x: Value, count: int) -> Value:
        """Returns x as indices. Steps beyond a row's length may hold any number, so x is clipped to the valid range."""
        within = self.clip(x, 0.0, count - 1.0)
        missing = self.fill_missing(x, self.value(self.graph.number(x.name, float(count))))
        index = self.graph.op("Where", self.graph.op("IsNaN", x.name), missing.name, within.name)
        whole = self.graph.op("Cast", index, to=onnx.TensorProto.INT64)
        return self.value(self.graph.op("Squeeze", whole, self.graph.integers(-1)))

    def gather_rows(self, table: Value, indices: Value) -> Value:
        return self.value(self.graph.op("Gather", table.name, indices.name, axis=0))

    def linear(self, x: Value, weight: Value, bias: Value) -> Value:
        # ONNX Runtime transposes a constant once, when it opens the graph.
        transposed = self.graph.op("Transpose", weight.name, perm=[1, 0])
        result = self.value(self.graph.op("MatMul", x.name, transposed)) + bias
        matrix, offset = (self.graph.constants[constant.name] for constant in (weight, bias))
        self.graph.linear[result.name] = LinearMap(x.name, matrix.T, offset)
        return result

    def fuse_linear(self, terms: Sequence[Value]) -> list[Value]:
        """Computes terms that are linear in one value by one product; otherwise returns them as they are.

        The scaling of a prediction is folded into the weights in double precision, and rounded once.
        """
        maps = [self.graph.linear.get(term.name) for term in terms]
        linear = [found for found in maps if found is not None]
        if len(linear) < len(maps) or len({found.x for found in linear}) > 1:
            return list(terms)
        weight, bias = (
            self.graph.constant(
                self.graph.unique_name(f"fused_{name}"),
                np.concatenate([getattr(found, name) for found in linear], axis=-1).astype(np.float32),
            )
            for name in ("weight", "bias")
        )
        product = self.graph.op("MatMul", linear[0].x, weight)
        return self.split(self.value(self.graph.op("Add", product, bias)), len(terms))

    def weighted_sum(self, x: Value, weights: Value) -> Value:
        """Adds a product, because a ReduceSum depends on the other rows of the batch."""
        return self.value(self.graph.op("MatMul", x.name, weights.name))

    def dot(self, a: Value, b: Value) -> Value:
        """Adds a product of matrices, because a ReduceSum depends on the other rows of the batch."""
        row = self.graph.op("Unsqueeze", a.name, self.graph.integers(-2))
        column = self.graph.op("Unsqueeze", b.name, self.graph.integers(-1))
        product = self.graph.op("MatMul", row, column)
        return self.value(self.graph.op("Squeeze", product, self.graph.integers(-1)))

    def log_sum_exp(self, x: Value) -> Value:
        return self.value(self.graph.op("ReduceLogSumExp", x.name, self.graph.integers(-1), keepdims=1))

    def top_k(self, x: Value, count: int) -> tuple[Value, Value]:
        scores, indices = self.graph.unique_name("top_scores"), self.graph.unique_name("top_indices")
        self.graph.add("TopK", [x.name, self.graph.integers(count)], [scores, indices], axis=-1, largest=1, sorted=1)
        return self.value(scores), self.value(indices)
