"""Biases and residuals added where the next kernel reads them anyway.

A norm's kernel that takes a second tensor and a bias (``SkipLayerNormalization``, ``SkipGroupNorm``) gives their sum,
too; ``BiasAdd`` is left for sums that no norm follows. What it saves is not arithmetic but reading and writing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import (
    DOMAIN,
    Editor,
    Shape,
    is_kept,
    is_weight,
    known_sizes,
    made_by,
    sizes,
)

BIAS_ADD_WIDTHS = frozenset({320, 640, 1280})
"""What `bias_add.cc` takes."""
_LAYERS = frozenset({"NhwcConv", "Gemm"})


class Sum(NamedTuple):
    """A value as a sum of tensors of its shape, or of one row of them, and of vectors along its last axis."""

    tensors: list[ir.Value]
    vectors: list[ir.Value]
    layers: list[ir.Node]
    """Those whose bias is among the vectors, and has to be taken from them."""


def add_in_norms(editor: Editor) -> None:
    for node in list(editor.graph):
        if node.op_type == "LayerNormalization":
            _layer_norm(editor, node)
        elif (node.domain, node.op_type) == (DOMAIN, "GroupNorm"):
            _group_norm(editor, node)


def add_biases_with_residuals(editor: Editor) -> None:
    """What no norm follows: rows of tokens or pixels by ``BiasAdd``, flat ones, as texts have them, by the sum that
    ``SkipLayerNormalization`` gives besides a norm, which nobody reads: it takes every width."""
    for node in list(editor.graph):
        shape = sizes(node.outputs[0]) if node.op_type == "Add" else None
        if shape is None or len(shape) < 2 or is_kept(node):
            continue
        if len(shape) > 2 and shape[-1] not in BIAS_ADD_WIDTHS:
            continue
        total = _sum(node.outputs[0])
        if len(total.tensors) != 2 or any(known_sizes(tensor) != shape for tensor in total.tensors):
            continue
        vector = _one_vector(editor, total.vectors)
        if vector is None:
            continue
        _take_biases(total)
        rows: Shape = (shape[0], math.prod(shape[1:-1]), shape[-1])
        first, second = (
            tensor if len(shape) == 2 else editor.reshape(node, tensor, rows) for tensor in total.tensors
        )
        if len(shape) == 2:
            none = editor.zeros((shape[-1],))
            inputs = [first, second, none, none, vector]
            added = _skip_layer_norm(editor, node, inputs, shape, {"epsilon": 1.0})[1]
        else:
            added = editor.one(node, "BiasAdd", [first, vector, second], rows, domain=DOMAIN)
        editor.replace(node.outputs[0], editor.reshape(node, added, shape))


def _skip_layer_norm(
    editor: Editor,
    before: ir.Node,
    inputs: Sequence[ir.Value | None],
    shape: Shape,
    attributes: dict[str, float],
) -> tuple[ir.Value, ir.Value]:
    """The norm of a sum, and the sum."""
    shapes = [shape, None, None, shape]
    normed, _, _, added = editor.node(
        before, "SkipLayerNormalization", inputs, shapes, domain=DOMAIN, attributes=attributes
    )
    return normed, added


def _layer_norm(editor: Editor, node: ir.Node) -> None:
    x, scale, bias = node.inputs
    shape = sizes(x)
    if x is None or shape is None or len(shape) not in (2, 3):
        return
    adding, total = x.producer(), _sum(x)
    last = node.attributes["axis"].as_int() in (-1, len(shape) - 1)
    if adding is None or adding.op_type != "Add" or not last or len(total.vectors) != 1:
        return
    vector = total.vectors[0]
    epsilon = {"epsilon": node.attributes["epsilon"].as_float()}
    if len(total.tensors) == 2:
        # The kernel lets one row of the second serve all.
        first, second = sorted(total.tensors, key=lambda tensor: -known_sizes(tensor)[0])
        inputs, form = [first, second, scale, bias, vector], shape
        if known_sizes(first) != shape or known_sizes(second)[1:] != shape[1:]:
            return
        if len(shape) == 2 and known_sizes(second) != shape:
            return
    elif len(total.tensors) == 1 and len(shape) == 3:
        # The kernel wants a second tensor, and lets one row of it serve all.
        form = (shape[0] * shape[1], 1, shape[2])
        zero = editor.zeros((1, 1, shape[2]))
        inputs = [editor.reshape(adding, total.tensors[0], form), zero, scale, bias, vector]
    else:
        return
    _take_biases(total)
    normed, added = _skip_layer_norm(editor, adding, inputs, form, epsilon)
    editor.replace(node.outputs[0], editor.reshape(adding, normed, shape))
    editor.replace(x, editor.reshape(adding, added, shape))


def _group_norm(editor: Editor, node: ir.Node) -> None:
    given, scale, bias = node.inputs
    assert given is not None, "a norm has something to norm"
    view = made_by(given, "Reshape")
    x = given if view is None or view.inputs[0] is None else view.inputs[0]
    image, shape = known_sizes(given), sizes(x)
    if shape is None or shape[-1] != image[-1]:
        return
    total, adding = _sum(x), x.producer()
    if adding is None or len(total.tensors) not in (1, 2):
        return
    vector = _one_vector(editor, total.vectors)
    if vector is None or any(known_sizes(tensor) != shape for tensor in total.tensors):
        return
    shared = len(list(x.uses())) > 1 or x.is_graph_output()
    if shared and adding.op_type != "Add":
        return
    before = adding if adding.op_type == "Add" else node
    _take_biases(total)
    first, *rest = (editor.reshape(before, tensor, image) for tensor in total.tensors)
    # Whatever has no residual gets zeros for one, of a row: the kernel wants it.
    skip = rest[0] if rest else editor.zeros((image[0], image[-1]))
    normed, added = editor.node(
        before,
        "SkipGroupNorm",
        [first, scale, bias, skip, vector],
        [image, image],
        domain=DOMAIN,
        attributes={key: attribute.value for key, attribute in node.attributes.items()},
    )
    editor.replace(node.outputs[0], normed)
    if shared:
        editor.replace(x, editor.reshape(before, added, shape))


def _sum(value: ir.Value) -> Sum:
    """What a value is the sum of; sums that others use too are not taken apart."""
    total = Sum([], [], [])
    _collect(value, total, width=known_sizes(value)[-1], root=True)
    return total


def _collect(value: ir.Value, total: Sum, *, width: int, root: bool) -> None:
    node, own = value.producer(), root or len(list(value.uses())) == 1
    if node is not None and node.op_type == "Add" and own and sizes(value) != (width,):
        for operand in node.inputs:
            if operand is not None:
                _collect(operand, total, width=width, root=False)
    elif sizes(value) == (width,):
        total.vectors.append(value)
    else:
        total.tensors.append(value)
        if node is not None and node.op_type in _LAYERS and own and len(node.inputs) == 3:
            bias = node.inputs[2]
            if bias is not None:
                total.vectors.append(bias)
                total.layers.append(node)


def _take_biases(total: Sum) -> None:
    for layer in total.layers:
        layer.replace_input_with(2, None)


def _one_vector(editor: Editor, vectors: list[ir.Value]) -> ir.Value | None:
    if len(vectors) < 2:
        return vectors[0] if vectors else None
    if len(vectors) > 2 or not all(is_weight(vector) for vector in vectors):
        return None
    first, second = vectors
    name = f"{first.name}_plus_{second.name}"
    return editor.derived(name, known_sizes(first), lambda one, other: one + other, vectors)
