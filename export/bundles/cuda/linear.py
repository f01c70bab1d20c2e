"""Fully connected layers as the exporter writes them, with what is added to their product."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import is_weight, known_sizes, made_by, sizes, split_operand


class Linear(NamedTuple):
    """``product`` = x · weight, to which ``bias`` is added if there is one."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    product: ir.Value


def linear(value: ir.Value | None) -> Linear | None:
    """The layer of weights (in, out) that gives ``value``, bias included."""
    if value is None:
        return None
    bias, product = None, value
    if (added := made_by(value, "Add")) is not None:
        operands = split_operand(added, is_bias)
        if operands is None:
            return None
        bias, product = operands
    multiplied = made_by(product, "MatMul")
    if multiplied is None:
        return None
    x, weight = multiplied.inputs
    shape = sizes(weight)
    if x is None or weight is None or shape is None or len(shape) != 2 or not is_weight(weight):
        return None
    return Linear(x, weight, bias, product)


def is_bias(value: ir.Value) -> bool:
    """Whether a value is a vector of weights."""
    return is_weight(value) and len(known_sizes(value)) == 1 and known_sizes(value) != (1,)
