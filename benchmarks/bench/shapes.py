"""Shapes of all tensors of an ONNX graph, with its free axes set to a number; no library needed.

Files say most shapes. Where they have a name or nothing, the operators that our exports use are followed: their shapes,
and the values of small integers, by which shapes are computed within the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.engines import EngineError
from unibrain_rt.engines.onnx_file import Graph, Node, Tensor

Shape = tuple[int, ...]
Values = NDArray[Any]
_MOST_VALUES = 4096
_SAME = frozenset(
    [
        "Cast",
        "CastLike",
        "Identity",
        "Sigmoid",
        "Erf",
        "Tanh",
        "Sqrt",
        "Exp",
        "Neg",
        "Cos",
        "Sin",
        "Softmax",
        "LayerNormalization",
        "InstanceNormalization",
        "Clip",
        "Relu",
        "Reciprocal",
        "Abs",
        "Not",
        "Trilu",
    ]
)
_BROADCAST = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Where",
        "Equal",
        "Greater",
        "Less",
        "And",
        "Or",
        "GreaterOrEqual",
        "LessOrEqual",
    ]
)
_ARITHMETIC: Mapping[str, Callable[[Values, Values], Values]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.floor_divide,
    "Equal": np.equal,
}


class Shapes:
    """``shapes`` by tensor, ``types`` where the file tells them, and small integers' ``values``."""

    def __init__(self, graph: Graph, free: int) -> None:
        """``free``: the size of every free axis of the inputs. Raises EngineError: an operator is not known here."""
        self.shapes: dict[str, Shape] = {tensor.name: tensor.dims for tensor in graph.initializers}
        self.types: dict[str, str] = {tensor.name: tensor.dtype for tensor in graph.initializers}
        self.values: dict[str, Values] = {
            tensor.name: tensor.value for tensor in graph.initializers if tensor.value is not None
        }
        for info in graph.inputs:
            if info.shape is None:
                raise EngineError(f"graph {graph.name}: the shape of {info.name} is not known")
            self.shapes[info.name] = tuple(size if isinstance(size, int) else free for size in info.shape)
        for info in (*graph.inputs, *graph.values, *graph.outputs):
            if info.dtype is not None:
                self.types[info.name] = info.dtype
            if info.shape is not None and all(isinstance(size, int) for size in info.shape):
                self.shapes.setdefault(info.name, tuple(size for size in info.shape if isinstance(size, int)))
        for node in graph.nodes:
            self._follow(node)

    def _follow(self, node: Node) -> None:
        """Set the shapes of a node's outputs, where they are not known, and values that shapes may depend on."""
        value = self._value(node)
        if value is not None and value.size <= _MOST_VALUES:
            self.values[node.outputs[0]] = value
            self.shapes[node.outputs[0]] = value.shape
        for place, name in enumerate(node.outputs):
            if name and name not in self.shapes:
                try:
                    self.shapes[name] = self._shape(node, place)
                except (KeyError, ValueError, IndexError) as error:
                    problem = f"the shape that {node.op_type} gives ({name}) cannot be followed"
                    raise EngineError(f"{problem}: {error}") from error

    def _value(self, node: Node) -> Values | None:
        """What a node gives, if that is few integers known beforehand."""
        kind, attributes = node.op_type, node.attributes
        if kind == "Constant":
            value = attributes.get("value")
            if isinstance(value, Tensor):
                return value.value
            found = next(iter(attributes.values()), None)
            return np.array(found) if isinstance(found, (int, float, tuple)) else None
        if kind == "Shape":
            shape = self.shapes[node.inputs[0]]
            end = _integer(attributes, "end", len(shape))
            return np.array(list(shape[_integer(attributes, "start", 0) : end]))
        if not node.inputs or any(name not in self.values for name in node.inputs if name):
            return None
        given = [self.values[name] for name in node.inputs if name]
        if kind in _ARITHMETIC and all(each.dtype.kind in "iu" for each in given):
            return np.asarray(_ARITHMETIC[kind](given[0], given[1]))
        if kind in ("Cast", "Identity"):
            return given[0]
        if kind == "Gather":
            return np.take(given[0], given[1].astype(np.int64), axis=_integer(attributes, "axis", 0))
        if kind == "Concat":
            return np.concatenate(given, axis=_integer(attributes, "axis", 0))
        if kind in ("Unsqueeze", "Squeeze", "Reshape"):
            return given[0].reshape(self._shape(node, 0))
        if kind == "Slice":
            return given[0][self._slices(node)]
        if kind == "Range":
            return np.arange(*(each.item() for each in given))
        if kind == "Where":
            return np.where(*given)
        if kind == "ConstantOfShape" and prod(given[0].tolist()) <= _MOST_VALUES:
            fill = attributes.get("value")
            number = fill.value.item() if isinstance(fill, Tensor) and fill.value is not None else 0
            return np.full(given[0].tolist(), number)
        return None

    def _shape(self, node: Node, place: int) -> Shape:
        kind, attributes = node.op_type, node.attributes
        given = [self.shapes[name] if name else () for name in node.inputs]
        if kind in _SAME:
            return given[0]
        if kind in _BROADCAST:
            return np.broadcast_shapes(*given)
        if kind == "MatMul":
            return (*np.broadcast_shapes(given[0][:-2], given[1][:-2]), given[0][-2], given[1][-1])
        if kind == "MultiHeadAttention":
            return (*given[0][:-1], given[2][-1])
        if kind == "Gemm":
            rows = given[0][1 if attributes.get("transA") else 0]
            return (rows, given[1][0 if attributes.get("transB") else 1])
        if kind == "Transpose":
            order: Any = attributes.get("perm") or tuple(reversed(range(len(given[0]))))
            return tuple(given[0][axis] for axis in order)
        if kind == "Conv":
            return (given[0][0], given[1][0], *_windows(given[0][2:], given[1][2:], attributes))
        if kind == "Gather":
            axis = _integer(attributes, "axis", 0) % len(given[0])
            return (*given[0][:axis], *given[1], *given[0][axis + 1 :])
        if kind == "Concat":
            axis = _integer(attributes, "axis", 0) % len(given[0])
            return (*given[0][:axis], sum(shape[axis] for shape in given), *given[0][axis + 1 :])
        if kind == "Reshape":
            return _reshaped(given[0], [int(size) for size in self.values[node.inputs[1]]])
        if kind == "Expand":
            return np.broadcast_shapes(given[0], tuple(int(size) for size in self.values[node.inputs[1]]))
        if kind == "ConstantOfShape":
            return tuple(int(size) for size in self.values[node.inputs[0]])
        if kind == "Unsqueeze":
            axes = self.values[node.inputs[1]].ravel().tolist()
            rank = len(given[0]) + len(axes)
            rest = iter(given[0])
            added = {axis % rank for axis in axes}
            return tuple(1 if axis in added else next(rest) for axis in range(rank))
        if kind == "Squeeze":
            gone = {axis % len(given[0]) for axis in self.values[node.inputs[1]].ravel().tolist()}
            return tuple(size for axis, size in enumerate(given[0]) if axis not in gone)
        if kind == "Slice":
            return np.empty(given[0], np.bool_)[self._slices(node)].shape
        if kind in ("ArgMax", "ReduceL2", "ReduceMean", "ReduceSum"):
            return self._reduced(node, given[0])
        if kind == "Split":
            axis = _integer(attributes, "axis", 0) % len(given[0])
            given_sizes = self.values[node.inputs[1]].tolist() if len(node.inputs) > 1 else None
            part = -(-given[0][axis] // len(node.outputs))  # the last may be smaller
            left = given[0][axis] - part * (len(node.outputs) - 1)
            sizes = given_sizes or [part] * (len(node.outputs) - 1) + [left]
            return (*given[0][:axis], sizes[place], *given[0][axis + 1 :])
        raise EngineError(f"no rule for the shape that {node.domain or 'ai.onnx'} {kind} gives")

    def _slices(self, node: Node) -> tuple[slice, ...]:
        starts, ends, *more = (self.values[name].ravel().tolist() for name in node.inputs[1:] if name)
        axes = more[0] if more else list(range(len(starts)))
        steps = more[1] if len(more) > 1 else [1] * len(starts)
        rank = len(self.shapes[node.inputs[0]])
        found = [slice(None)] * rank
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            found[axis % rank] = slice(start, end, step)
        return tuple(found)

    def _reduced(self, node: Node, given: Shape) -> Shape:
        axes: Any = node.attributes.get("axes", node.attributes.get("axis", 0))
        if len(node.inputs) > 1 and node.inputs[1]:
            axes = self.values[node.inputs[1]].ravel().tolist()
        gone = {axis % len(given) for axis in (axes if isinstance(axes, (tuple, list)) else [axes])}
        kept = _integer(node.attributes, "keepdims", 1)
        return tuple(
            1 if axis in gone else size for axis, size in enumerate(given) if kept or axis not in gone
        )


def _integer(attributes: Mapping[str, Any], name: str, default: int) -> int:
    return int(attributes.get(name, default))


def _reshaped(given: Shape, wanted: list[int]) -> Shape:
    sizes = [given[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    if -1 in sizes:
        sizes[sizes.index(-1)] = prod(given) // prod(size for size in sizes if size != -1)
    return tuple(sizes)


def _windows(sizes: Shape, kernel: Shape, attributes: Mapping[str, Any]) -> Shape:
    """Of a convolution's output, as ONNX defines it for explicit padding."""
    rank = len(sizes)
    strides = attributes.get("strides") or (1,) * rank
    dilations = attributes.get("dilations") or (1,) * rank
    pads = attributes.get("pads") or (0,) * 2 * rank
    return tuple(
        (sizes[axis] + pads[axis] + pads[axis + rank] - dilations[axis] * (kernel[axis] - 1) - 1)
        // strides[axis]
        + 1
        for axis in range(rank)
    )
