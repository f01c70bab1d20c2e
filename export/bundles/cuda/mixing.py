"""The mix of two contexts' transformers, whose last biases are mixed once for all places.

At each place the graph has h + t + r (i − t), where i and t are layers with a bias of their own. The biases' mix,
b_t + r (b_i − b_t), does not depend on the tokens: it is computed for all places by two small kernels and cut into
pieces, so that a place adds its piece with the residual.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import Editor, known_sizes, made_by, sizes, split_operand
from unibrain_rt.export.bundles.cuda.linear import Linear, linear
from unibrain_rt.export.bundles.cuda.pieces import cut


class _Place(NamedTuple):
    total: ir.Node
    residual: ir.Value
    image: Linear
    text: Linear
    ratio: ir.Value

    @property
    def width(self) -> int:
        return known_sizes(self.text.weight)[1]


def mix_biases_once(editor: Editor) -> None:
    places = [place for node in list(editor.graph) if node.op_type == "Add" and (place := _place(node))]
    if not places or any(place.ratio is not places[0].ratio for place in places):
        return
    # Pieces of one width lie beside each other: they are cut together.
    places.sort(key=lambda place: place.width)
    first = editor.graph[0] if (made := places[0].ratio.producer()) is None else _next(editor.graph, made)
    ratio, width = places[0].ratio, sum(place.width for place in places)
    differences, texts = [], []
    for place in places:
        image, text = place.image.bias, place.text.bias
        assert image is not None, "a place has a bias of each"
        assert text is not None, "a place has a bias of each"
        name = f"{text.name}_to_image"
        differences.append(editor.derived(name, (place.width,), lambda i, t: i - t, [image, text]))
        texts.append(text)
    scaled = editor.one(first, "Mul", [ratio, editor.joined(first, differences, axis=0)], (width,))
    mixed = editor.one(first, "Add", [scaled, editor.joined(first, texts, axis=0)], (width,))
    pieces = cut(editor, first, mixed, [place.width for place in places])
    for place, piece in zip(places, pieces, strict=True):
        _mix(editor, place, piece)


def _mix(editor: Editor, place: _Place, bias: ir.Value) -> None:
    node, shape = place.total, known_sizes(place.text.product)
    difference = editor.one(node, "Sub", [place.image.product, place.text.product], shape)
    scaled = editor.one(node, "Mul", [place.ratio, difference], shape)
    mixed = editor.one(node, "Add", [place.text.product, scaled], shape)
    whole = known_sizes(node.outputs[0])
    biased = editor.one(node, "Add", [editor.reshape(node, mixed, whole), bias], whole)
    editor.replace(node.outputs[0], editor.one(node, "Add", [place.residual, biased], whole))


def _place(node: ir.Node) -> _Place | None:
    """h + (t + r (i − t)), as `models.unet` has it."""
    for residual, mixed in (node.inputs, reversed(node.inputs)):
        added = made_by(mixed, "Add")
        if residual is None or added is None:
            continue
        for text, scaled in (added.inputs, reversed(added.inputs)):
            product = made_by(scaled, "Mul")
            operands = (
                None if product is None else split_operand(product, lambda value: sizes(value) in ((), (1,)))
            )
            difference = None if operands is None else made_by(operands[1], "Sub")
            if operands is None or difference is None or difference.inputs[1] is not text:
                continue
            image_layer, text_layer = (linear(_unshaped(value)) for value in (difference.inputs[0], text))
            if image_layer is None or text_layer is None or not (image_layer.bias and text_layer.bias):
                continue
            if known_sizes(image_layer.product) != known_sizes(text_layer.product):
                continue
            return _Place(node, residual, image_layer, text_layer, operands[0])
    return None


def _unshaped(value: ir.Value | None) -> ir.Value | None:
    """Before a reshape that keeps the channels last."""
    node = made_by(value, "Reshape")
    if node is None or value is None or (have := sizes(node.inputs[0])) is None:
        return value
    return node.inputs[0] if have[-1] == known_sizes(value)[-1] else value


def _next(graph: ir.Graph, node: ir.Node) -> ir.Node:
    nodes: list[ir.Node] = list(graph)
    return nodes[nodes.index(node) + 1]
