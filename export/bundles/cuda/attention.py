"""Attention in the forms that ONNX Runtime's CUDA kernels take without copies.

Self-attention of few tokens becomes ``Attention``: one product with the three weights beside each other, which a small
kernel then takes apart. Of many tokens the three products stay apart, because reading their result once more, to take
it apart, would cost more than two launches. Cross-attention, which the exporter writes as products and a softmax,
becomes ``MultiHeadAttention`` of tokens and of the keys and values that ``unet_context`` gives, (B, heads, L, width).
"""

from __future__ import annotations

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import (
    DOMAIN,
    Editor,
    known_sizes,
    made_by,
    number,
    sizes,
    sole_user,
    split_operand,
)
from unibrain_rt.export.bundles.cuda.linear import Linear, linear

_FEW_TOKENS = 256


def fuse_attention(editor: Editor) -> None:
    for node in list(editor.graph):
        if node.op_type == "MultiHeadAttention":
            _pack(editor, node)
        elif node.op_type == "Softmax":
            _fuse_cross(editor, node)


def _pack(editor: Editor, node: ir.Node) -> None:
    parts = [linear(value) for value in node.inputs]
    if len(parts) != 3 or not all(parts):
        return
    projections: list[Linear] = [part for part in parts if part is not None]
    x = projections[0].x
    shape = sizes(x)
    if any(each.x is not x for each in projections) or shape is None or len(shape) != 3:
        return
    biases = [each.bias for each in projections if each.bias is not None]
    if not biases and shape[1] > _FEW_TOKENS:
        return
    if biases and len(biases) != 3:
        return
    weight = editor.joined(node, [each.weight for each in projections], axis=1)
    width = known_sizes(weight)[1]
    bias = editor.joined(node, biases, axis=0) if biases else editor.zeros((width,))
    output = node.outputs[0]
    fused = editor.one(
        node,
        "Attention",
        [x, weight, bias],
        known_sizes(output),
        domain=DOMAIN,
        attributes={key: node.attributes[key].value for key in ("num_heads", "scale")},
    )
    editor.replace(output, fused)


def _fuse_cross(editor: Editor, softmax: ir.Node) -> None:
    """(B, heads, N, width) · (B, heads, width, L), softmax, · (B, heads, L, width), and back to tokens."""
    scores, weighed = made_by(softmax.inputs[0], "MatMul"), sole_user(softmax.outputs[0], "MatMul")
    if scores is None or weighed is None or weighed.inputs[0] is not softmax.outputs[0]:
        return
    turned, scaled = made_by(scores.inputs[1], "Transpose"), made_by(scores.inputs[0], "Mul")
    if turned is None or scaled is None or tuple(turned.attributes["perm"].as_ints()) != (0, 1, 3, 2):
        return
    keys, values = turned.inputs[0], weighed.inputs[1]
    operands = split_operand(scaled, lambda value: number(value) is not None)
    back = sole_user(weighed.outputs[0], "Transpose")
    if operands is None or back is None or not _swaps_heads(back):
        return
    factor, queries = number(operands[0]), operands[1]
    expanded = made_by(queries, "Expand")
    heads_first = made_by(queries if expanded is None else expanded.inputs[0], "Transpose")
    flattened = sole_user(back.outputs[0], "Reshape")
    if heads_first is None or flattened is None or not _swaps_heads(heads_first) or factor is None:
        return
    split = made_by(heads_first.inputs[0], "Reshape")
    tokens = flattened.outputs[0]
    if split is None or keys is None or values is None or sizes(keys) is None or sizes(tokens) is None:
        return
    x, shape = split.inputs[0], known_sizes(tokens)
    if x is None or (have := sizes(x)) is None or have[1:] != shape[1:]:
        return
    heads = known_sizes(keys)[1]
    if have != shape:  # one row of queries for several contexts
        x = editor.one(softmax, "Expand", [x, editor.whole(shape)], shape)
    fused = editor.one(
        softmax,
        "MultiHeadAttention",
        [x, keys, values],
        shape,
        domain=DOMAIN,
        attributes={"num_heads": heads, "scale": factor},
    )
    editor.replace(tokens, fused)


def _swaps_heads(node: ir.Node) -> bool:
    return tuple(node.attributes["perm"].as_ints()) == (0, 2, 1, 3)
