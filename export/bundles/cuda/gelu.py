"""GPT-2's GELU, by tanh, as one kernel that adds the bias of the layer before it."""

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


def fuse_tanh_gelus(editor: Editor) -> None:
    for node in list(editor.graph):
        x = _tanh_gelu_of(node) if node.op_type == "Mul" else None
        layer = made_by(x, "Gemm")
        if x is None or layer is None or len(layer.inputs) != 3 or sizes(x) is None:
            continue
        bias = layer.inputs[2]
        if bias is None or sizes(bias) != known_sizes(x)[-1:]:
            continue
        layer.replace_input_with(2, None)
        fused = editor.one(node, "FastGelu", [x, bias], known_sizes(x), domain=DOMAIN)
        editor.replace(node.outputs[0], fused)


def _tanh_gelu_of(node: ir.Node) -> ir.Value | None:
    """x, if the node gives (x / 2) (1 + tanh(√(2/π) (x + 0.044715 x³))), as transformers' ``NewGELUActivation``."""
    for halved, shifted in (node.inputs, reversed(node.inputs)):
        half = _scaled(halved, 0.5)
        added = made_by(shifted, "Add")
        one = None if added is None else split_operand(added, lambda operand: close(operand, 1.0))
        tanh = None if one is None else made_by(one[1], "Tanh")
        inner = None if tanh is None else _scaled(tanh.inputs[0], math.sqrt(2 / math.pi))
        if half is not None and inner is not None and _is_bent(inner, half):
            return half
    return None


def _is_bent(value: ir.Value, x: ir.Value) -> bool:
    """Whether the value is x + 0.044715 x³."""
    added = made_by(value, "Add")
    operands = None if added is None else split_operand(added, lambda operand: operand is x)
    cubed = None if operands is None else _scaled(operands[1], 0.044715)
    power = made_by(cubed, "Pow")
    return power is not None and power.inputs[0] is x and close(power.inputs[1], 3.0)


def _scaled(value: ir.Value | None, factor: float) -> ir.Value | None:
    """What is multiplied by a number to give the value."""
    node = made_by(value, "Mul")
    operands = None if node is None else split_operand(node, lambda operand: close(operand, factor))
    return None if operands is None else operands[1]
