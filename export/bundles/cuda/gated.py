"""Gated layers: value · GELU(gate) as one product of both halves and one kernel.

The exporter cut the weight in two, because a CPU would copy the product to cut that. ``BiasSplitGelu`` reads both
halves where they lie, adds their biases and gives left · GELU(right), by the error function
(``bias_split_gelu_impl.cu``). It is compiled for the three widths of Stable Diffusion alone.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import (
    DOMAIN,
    Editor,
    close,
    known_sizes,
    made_by,
    sizes,
    split_operand,
)
from unibrain_rt.export.bundles.cuda.linear import linear

WIDTHS = frozenset({1280, 2560, 5120})
"""Of what comes out."""


def fuse_gates(editor: Editor) -> None:
    for node in list(editor.graph):
        if node.op_type == "Mul":
            _fuse(editor, node)


def _fuse(editor: Editor, node: ir.Node) -> None:
    shape = sizes(node.outputs[0])
    if shape is None or shape[-1] not in WIDTHS or len(shape) != 3:
        return
    operands = split_operand(node, lambda value: gelu_of(value) is not None)
    if operands is None:
        return
    gate, value = linear(gelu_of(operands[0])), linear(operands[1])
    if gate is None or value is None or gate.x is not value.x or gate.bias is None or value.bias is None:
        return
    weight = editor.joined(node, [value.weight, gate.weight], axis=1)
    bias = editor.joined(node, [value.bias, gate.bias], axis=0)
    product = editor.one(
        node, "MatMul", [value.x, weight], (*known_sizes(value.x)[:-1], known_sizes(weight)[1])
    )
    editor.replace(node.outputs[0], editor.one(node, "BiasSplitGelu", [product, bias], shape, domain=DOMAIN))


def gelu_of(value: ir.Value) -> ir.Value | None:
    """x, if the value is x (1 + erf(x / √2)) / 2 as `operators.gelu` writes it."""
    halved = made_by(value, "Mul")
    half = None if halved is None else split_operand(halved, lambda operand: close(operand, 0.5))
    product = None if half is None else made_by(half[1], "Mul")
    if product is None:
        return None
    x, shifted = product.inputs
    added = made_by(shifted, "Add")
    one = None if added is None else split_operand(added, lambda operand: close(operand, 1.0))
    error = None if one is None else made_by(one[1], "Erf")
    divided = None if error is None else made_by(error.inputs[0], "Div")
    if divided is None or divided.inputs[0] is not x or not close(divided.inputs[1], math.sqrt(2)):
        return None
    return x
