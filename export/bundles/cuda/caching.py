"""The key/value caches of all of GPT-2's layers, joined and cut at once.

The exporter's graph picks a layer's cache, writes the new token's key into it, and puts the latent's slot before it,
each by a kernel, for keys and for values, in every layer; in the end it stacks what the layers have. Here slots are put
before the caches of all layers at once, one kernel cuts them apart, and a layer only writes its token; the next caches
are the old ones with the tokens of all layers written at once. A layer's scores are one product, scaling included.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import (
    DOMAIN,
    Editor,
    Shape,
    known_sizes,
    made_by,
    number,
    sizes,
    sole_user,
    split_operand,
)
from unibrain_rt.export.bundles.cuda.pieces import MOST_EQUAL


class _Layer(NamedTuple):
    """``joined`` = slot, then the cache with ``token`` where ``here`` is true, (heads, 1 + slots, width)."""

    joined: ir.Node
    written: ir.Node
    slots: ir.Value
    cache: ir.Value
    here: ir.Value
    token: ir.Value
    place: int


def cache_all_layers(editor: Editor) -> None:
    cached = [layer for node in list(editor.graph) if node.op_type == "Concat" and (layer := _layer(node))]
    for cache in dict.fromkeys(layer.cache for layer in cached):
        layers = sorted((layer for layer in cached if layer.cache is cache), key=lambda layer: layer.place)
        shape = known_sizes(cache)
        count = shape[0]
        if [layer.place for layer in layers] == list(range(count)) and 1 < count <= MOST_EQUAL:
            _rewrite(editor, layers, shape)
    _score_in_one(editor)


def _rewrite(editor: Editor, layers: list[_Layer], shape: Shape) -> None:
    count, heads, slots, width = shape
    first, cache = layers[0], layers[0].cache
    before = first.joined
    whole = editor.one(
        before, "Concat", [first.slots, cache], (count, heads, 1 + slots, width), attributes={"axis": 2}
    )
    parts = editor.node(
        before,
        "Split",
        [whole],
        [(1, heads, 1 + slots, width)] * count,
        attributes={"axis": 0, "num_outputs": count},
    )
    flags = editor.reshape(before, first.here, (slots,))
    boolean = ir.DataType.BOOL
    flags = editor.one(
        before, "Concat", [editor.no(), flags], (1 + slots,), attributes={"axis": 0}, dtype=boolean
    )
    here = editor.reshape(before, flags, (1, 1 + slots, 1))
    for layer, part in zip(layers, parts, strict=True):
        own = editor.reshape(layer.joined, part, (heads, 1 + slots, width))
        written = editor.one(layer.joined, "Where", [here, layer.token, own], (heads, 1 + slots, width))
        editor.replace(layer.joined.outputs[0], written)
    stacked = _stacked(first.written.outputs[0])
    if stacked is not None:
        _stack(editor, stacked, layers, shape)


def _stack(editor: Editor, stacked: ir.Node, layers: list[_Layer], shape: Shape) -> None:
    count, heads, slots, width = shape
    tokens = [editor.reshape(stacked, layer.token, (1, heads, 1, width)) for layer in layers]
    together = editor.one(stacked, "Concat", tokens, (count, heads, 1, width), attributes={"axis": 0})
    here = editor.reshape(stacked, layers[0].here, (1, 1, slots, 1))
    made = editor.one(stacked, "Where", [here, together, layers[0].cache], shape)
    editor.replace(stacked.outputs[0], made)


def _layer(node: ir.Node) -> _Layer | None:
    if len(node.inputs) != 2 or node.attributes["axis"].as_int() != 1:
        return None
    slot, written = _picked(node.inputs[0]), made_by(node.inputs[1], "Where")
    if slot is None or written is None:
        return None
    here, token, old = written.inputs
    cache = _picked(old)
    if cache is None or here is None or token is None or cache[1] != slot[1]:
        return None
    shape = sizes(cache[0])
    if shape is None or len(shape) != 4 or not cache[0].is_graph_input():
        return None
    heads, slots, width = shape[1:]
    if sizes(token) != (heads, 1, width) or sizes(here) != (1, slots, 1):
        return None
    if sizes(slot[0]) != (shape[0], heads, 1, width):
        return None
    return _Layer(node, written, slot[0], cache[0], here, token, cache[1])


def _picked(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """Of what along its first axis the value is which."""
    node = made_by(value, "Gather")
    index = None if node is None else number(node.inputs[1])
    if node is None or index is None or node.inputs[0] is None or node.attributes["axis"].as_int() != 0:
        return None
    return node.inputs[0], int(index)


def _stacked(value: ir.Value) -> ir.Node | None:
    """The node that stacks the layers' caches, of one layer's."""
    for use in value.uses():
        if use.node.op_type == "Reshape" and (stack := sole_user(use.node.outputs[0], "Concat")):
            return stack
    return None


def _score_in_one(editor: Editor) -> None:
    """(queries · keysᵀ) times a number as one product."""
    for node in list(editor.graph):
        operands = (
            split_operand(node, lambda value: number(value) is not None) if node.op_type == "Mul" else None
        )
        product = None if operands is None else made_by(operands[1], "MatMul")
        turned = None if product is None else made_by(product.inputs[1], "Transpose")
        if operands is None or product is None or turned is None:
            continue
        shape = sizes(node.outputs[0])
        if shape is None or len(shape) != 3 or tuple(turned.attributes["perm"].as_ints()) != (0, 2, 1):
            continue
        factor = number(operands[0])
        assert factor is not None, "it was asked for"
        scores = editor.one(
            node,
            "FusedMatMul",
            [product.inputs[0], turned.inputs[0]],
            shape,
            domain=DOMAIN,
            attributes={"alpha": factor, "transB": 1},
        )
        editor.replace(node.outputs[0], scores)
