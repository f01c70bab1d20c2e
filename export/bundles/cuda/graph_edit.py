"""What every rewriting of a graph needs: new nodes with the shapes of their outputs, and questions about old ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from unibrain_rt.export.bundles.precision import FP32_SCOPES

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
DOMAIN = "com.microsoft"
Shape = tuple[int, ...]
Attribute = int | float | str | Sequence[int]


class Editor:
    """Adds nodes and initializers to a graph. Names are counted, so that the same graph gives the same file."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._count = 0

    def node(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        shapes: Sequence[Shape | None],
        *,
        domain: str = "",
        attributes: Mapping[str, Attribute] | None = None,
        dtype: ir.DataType = FLOAT,
    ) -> list[ir.Value]:
        """A new node before another one. Returns its outputs; of shape None are those that nobody asks for."""
        self._count += 1
        name = f"cuda_{self._count}_{operator}"
        made = ir.Node(
            domain,
            operator,
            inputs,
            [_attribute(key, value) for key, value in (attributes or {}).items()],
            num_outputs=len(shapes),
            name=name,
        )
        for place, (output, shape) in enumerate(zip(made.outputs, shapes, strict=True)):
            # An optional output without a name is not there.
            output.name = "" if shape is None else f"{name}_{place}"
            if shape is not None:
                output.type, output.shape = ir.TensorType(dtype), ir.Shape(shape)
        self.graph.insert_before(before, made)
        return list(made.outputs)

    def one(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        shape: Shape,
        *,
        domain: str = "",
        attributes: Mapping[str, Attribute] | None = None,
        dtype: ir.DataType = FLOAT,
    ) -> ir.Value:
        """The output of a new node that has one."""
        return self.node(
            before, operator, inputs, [shape], domain=domain, attributes=attributes, dtype=dtype
        )[0]

    def reshape(self, before: ir.Node, value: ir.Value, shape: Shape) -> ir.Value:
        if sizes(value) == shape:
            return value
        return self.one(before, "Reshape", [value, self.whole(shape)], shape, dtype=value.dtype or FLOAT)

    def transpose(self, before: ir.Node, value: ir.Value, order: Sequence[int]) -> ir.Value:
        """The value with its axes in another order; without a copy where only axes of size 1 move."""
        have = known_sizes(value)
        shape = tuple(have[axis] for axis in order)
        moved = [axis for axis in order if have[axis] != 1]
        if moved == sorted(moved):
            return self.reshape(before, value, shape)
        return self.one(before, "Transpose", [value], shape, attributes={"perm": order})

    def whole(self, numbers: Sequence[int]) -> ir.Value:
        """A constant of integers, one for all who want the same."""
        name = "cuda_" + "_".join(["whole", *map(str, numbers)])
        return self._constant(name, np.array(numbers, np.int64))

    def zeros(self, shape: Shape) -> ir.Value:
        """Zeros that ONNX Runtime makes when it loads, one tensor for all who want the same."""
        name = "cuda_" + "_".join(["zeros", *map(str, shape)])
        for node in self.graph:
            if node.outputs[0].name == name:
                return node.outputs[0]
        small = self._constant("cuda_zero", np.zeros(1, np.float32))
        value = self.one(self.graph[0], "Expand", [small, self.whole(shape)], shape)
        value.name = name
        return value

    def no(self) -> ir.Value:
        """One False."""
        return self._constant("cuda_no", np.array([False]))

    def derived(
        self, name: str, shape: Shape, make: Callable[..., np.ndarray], sources: Sequence[ir.Value]
    ) -> ir.Value:
        """A small initializer computed from others when it is written."""
        if name not in self.graph.initializers:
            tensors = [value.const_value for value in sources if value.const_value is not None]
            size = ir.Shape(shape)
            lazy = ir.LazyTensor(partial(_derive, make, tensors), dtype=FLOAT, shape=size, name=name)
            value = ir.Value(name=name, shape=size, type=ir.TensorType(FLOAT), const_value=lazy)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def flat(self, value: ir.Value) -> ir.Value:
        """The initializer as a vector."""
        length = math.prod(known_sizes(value))
        if sizes(value) == (length,):
            return value
        return self.derived(f"{value.name}_flat", (length,), np.ravel, [value])

    def joined(self, before: ir.Node, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """Initializers beside each other. A node: ONNX Runtime joins them when it loads, so that no weight is twice in
        the file."""
        shape = list(known_sizes(values[0]))
        shape[axis] = sum(known_sizes(value)[axis] for value in values)
        return self.one(before, "Concat", list(values), tuple(shape), attributes={"axis": axis})

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everybody who used ``old`` use ``new``; as an output of the graph, it takes the name, too."""
        if old.is_graph_output():
            if new.producer() is None or new.is_graph_output():
                copy = ir.Node("", "Identity", [new], num_outputs=1, name=f"cuda_copy_{old.name}")
                self.graph.append(copy)
                copy.outputs[0].type, copy.outputs[0].shape = new.type, new.shape
                new = copy.outputs[0]
            new.name, old.name = old.name, f"{old.name}_before"
            place = next(place for place, value in enumerate(self.graph.outputs) if value is old)
            self.graph.outputs[place] = new
        ir.convenience.replace_all_uses_with(old, new)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[name]


def _derive(make: Callable[..., np.ndarray], tensors: Sequence[ir.TensorProtocol]) -> ir.TensorProtocol:
    made = make(*(tensor.numpy().astype(np.float32) for tensor in tensors))
    return ir.tensor(np.ascontiguousarray(made, np.float32))


def _attribute(name: str, value: Attribute) -> ir.Attr:
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    if isinstance(value, str):
        return ir.AttrString(name, value)
    return ir.AttrInt64s(name, tuple(value))


def is_kept(node: ir.Node) -> bool:
    """Whether a node is of a part that stays as it was exported, in fp32: the sampler's update."""
    return any(scope in node.metadata_props.get("scope", "") for scope in FP32_SCOPES)


def sizes(value: ir.Value | None) -> Shape | None:
    """The shape, if every size in it is known."""
    if value is None or value.shape is None:
        return None
    known = tuple(size for size in value.shape if isinstance(size, int))
    return known if len(known) == len(value.shape) else None


def known_sizes(value: ir.Value) -> Shape:
    """The shape of a value whose sizes were seen to be known before."""
    known = sizes(value)
    assert known is not None, f"{value.name} has sizes that are not known"
    return known


def made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that gives a value, if it is of this operator."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def sole_user(value: ir.Value, operator: str) -> ir.Node | None:
    """The only node that uses a value, if it is of this operator."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node if uses[0].node.op_type == operator else None


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is an initializer of the file."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def number(value: ir.Value | None) -> float | None:
    """The one number that a constant holds."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def close(value: ir.Value | None, wanted: float) -> bool:
    constant = number(value)
    return constant is not None and math.isclose(constant, wanted, rel_tol=1e-6)


def split_operand(node: ir.Node, accept: Callable[[ir.Value], object]) -> tuple[ir.Value, ir.Value] | None:
    """Of a node of two inputs that may change places: the accepted one, and the other."""
    first, second = node.inputs
    if first is None or second is None:
        return None
    if accept(first):
        return first, second
    return (second, first) if accept(second) else None
