"""What a graph's nodes read and write."""

from __future__ import annotations

from math import prod

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

_VIEWS = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
"""Operators that move nothing."""


def moved_bytes(model: ir.Model) -> int:
    """Bytes of all activations that nodes take and give, each node by itself; weights are not among them.

    The shapes of all activations have to be known, or to follow from the others.
    """
    ShapeInferencePass()(model)
    constants = set(model.graph.initializers.values())
    total = 0
    for node in model.graph:
        if all(value is None or value in constants for value in node.inputs):
            constants.update(node.outputs)
        elif node.op_type not in _VIEWS:
            total += sum(_bytes(value) for value in {*node.inputs, *node.outputs} if value not in constants)
    return total


def _bytes(value: ir.Value | None) -> int:
    if value is None or not value.name:
        return 0
    assert value.shape is not None, value.name
    assert value.dtype is not None, value.name
    return int(prod(int(size) for size in value.shape) * value.dtype.itemsize)
