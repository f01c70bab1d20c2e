"""FLOPs, bytes and operators of one run of a graph, counted where its shapes are at hand: when it is exported.

FLOPs are those of matrix products, convolutions and attention, two for each multiplication and its addition, as torch's
own counter has them (``torch.utils.flop_counter``). Everything else is far below one part in a hundred of them.

Bytes are those that have to move where nothing is kept from one run to the next: weights, once; and activations, as
they go into matrix products, convolutions and attention and come out of them. What stands between those (norms,
activation functions, additions) is counted as if it were fused into them.

What is held at once is counted in the order of the file, each result by itself. At the published size ONNX Runtime's
arenas for a GPU take a quarter more, all flavours together (`tests/gpu_fake`): they hold kernels' own room, too.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnxscript.optimizer import optimize_ir

from unibrain_rt.engines.graph_costs import GraphCosts

FREE_AXIS = "N"
_ATTENTION = "MultiHeadAttention"
_MATRICES = frozenset({"MatMul", "Gemm", "Conv", _ATTENTION})


def count_costs(model: ir.Model) -> GraphCosts:
    """Of a model whose operators are ONNX's, or have a body in the model; it stays as it is.

    Raises:
        ValueError: the shape of an operator's tensor cannot be told beforehand.
    """
    counted = _Count(_with_shapes(model))
    return GraphCosts(
        flops=counted.flops(),
        weight_numbers=counted.weight_numbers(),
        activation_numbers=counted.activation_numbers(),
        stored_bytes=_stored_bytes(model),
        bytes_per_number=counted.bytes_per_number(),
        operators=operator_counts(model),
        held_numbers=counted.held_numbers(),
    )


def operator_counts(model: ir.Model) -> dict[str, int]:
    """How many nodes of each operator a graph has, by name; nodes within an operator's body are not counted."""
    return dict(sorted(Counter(node.op_type for node in model.graph).items()))


def _with_shapes(model: ir.Model) -> ir.Model:
    """A copy with all shapes, free axes of size 1.

    What was traced is kept, since inference does not see through the body of attention; the rest is inferred, where
    need be once what is computed of shapes within the graph is folded into constants.
    """
    copy = model.clone()
    for value in (*copy.graph.inputs, *(value for node in copy.graph for value in node.outputs)):
        value.shape = _bound(value.shape)
    ShapeInferencePass()(copy)
    if not all(_is_known(value) for node in copy.graph for value in node.outputs):
        optimize_ir(copy, inline=False, should_fold=lambda node: node.op_type == "ConstantOfShape" or None)
        ShapeInferencePass()(copy)
    return copy


def _bound(shape: ir.Shape | None) -> ir.Shape | None:
    """With the free axis at 1; nothing where another size is not known."""
    if shape is None:
        return None
    sizes = [1 if not isinstance(size, int) and size.value == FREE_AXIS else size for size in shape]
    return ir.Shape(sizes) if all(isinstance(size, int) for size in sizes) else None


def _is_known(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


class _Count:
    """The numbers of a graph all of whose shapes are known."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._constants = self._constant_values()
        self._moving = [
            node for node in self._graph if node.op_type in _MATRICES and not self._is_constant(node)
        ]

    def flops(self) -> int:
        return sum(_flops(node) for node in self._moving)

    def activation_numbers(self) -> int:
        return sum(prod(_shape(value)) for node in self._moving for value in self._moved(node))

    def bytes_per_number(self) -> int:
        """The width that most matrix products, convolutions and attention compute in."""
        widths = Counter(node.outputs[0].dtype.itemsize for node in self._moving if node.outputs[0].dtype)
        return int(widths.most_common(1)[0][0]) if widths else 4

    def _constant_values(self) -> set[ir.Value]:
        """Values that no input changes: weights, and what a back end computes of them once."""
        known = set(self._graph.initializers.values())
        for node in self._graph:
            # A shape is known although its tensor is not.
            if node.op_type == "Shape" or all(value is None or value in known for value in node.inputs):
                known.update(node.outputs)
        return known

    def _is_constant(self, node: ir.Node) -> bool:
        return all(value in self._constants for value in node.outputs)

    def weight_numbers(self) -> int:
        """Numbers that a run reads of constants: whole ones, but of a table the rows that are looked up."""
        read: dict[ir.Value, int] = {}
        for node in self._graph:
            if self._is_constant(node):
                continue
            for place, value in enumerate(node.inputs):
                if value is None or value not in self._constants or not _is_floating(value):
                    continue
                looked_up = node.op_type == "Gather" and place == 0
                numbers = prod(_shape(node.outputs[0] if looked_up else value))
                read[value] = max(numbers, read.get(value, 0))
        return sum(read.values())

    def held_numbers(self) -> int:
        """The most numbers of activations at once, beside inputs and outputs: each is there from its node to its last.

        What only looks at others' memory in another shape is counted like the rest; what has a shape that cannot be
        told beforehand is not counted.
        """
        outside = {*self._graph.inputs, *self._graph.outputs, *self._constants}
        last = {value: place for place, node in enumerate(self._graph) for value in node.inputs}
        held = most = 0
        for place, node in enumerate(self._graph):
            given = [value for value in node.outputs if value not in outside and value.name]
            held += sum(_numbers(value) for value in given)
            most = max(most, held)
            done = {value for value in (*node.inputs, *given) if last.get(value, place) == place}
            held -= sum(_numbers(value) for value in done if value is not None and value not in outside)
        return most

    def _moved(self, node: ir.Node) -> list[ir.Value]:
        inputs = [value for value in node.inputs if value is not None and value not in self._constants]
        return [*inputs, *node.outputs]


def _stored_bytes(model: ir.Model) -> int:
    """Weights as they are stored, each once: two may lie at one place of a file."""
    places: dict[Any, int] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None:
            place = (tensor.location, tensor.offset) if isinstance(tensor, ir.ExternalTensor) else name
            places[place] = tensor.nbytes
    return sum(places.values())


def _flops(node: ir.Node) -> int:
    given = [_shape(value) for value in node.inputs if value is not None]
    out = _shape(node.outputs[0])
    if node.op_type == "Conv":
        return 2 * prod(out) * prod(given[1][1:])
    if node.op_type == _ATTENTION:
        # (batch, tokens, heads x width): the products of queries and keys, and of their weights and values.
        (batch, queries, width), (_, keys, _), (*_, values) = given[:3]
        return 2 * batch * queries * keys * (width + values)
    transposed = node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int()
    return 2 * prod(out) * (given[0][0] if transposed else given[0][-1])


def _shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not _is_known(value):
        raise ValueError(f"the shape of {value.name} cannot be told beforehand")
    return tuple(size for size in value.shape if isinstance(size, int))


def _numbers(value: ir.Value) -> int:
    return prod(_shape(value)) if _is_known(value) else 0


def _is_floating(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
