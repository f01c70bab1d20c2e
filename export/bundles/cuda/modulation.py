"""The time modulations of all residual blocks, joined with the biases of the layers that they are added to.

The graph splits one vector into a shift for every block and adds it to a layer that has a bias itself. Here the biases
are added to the whole vector at once; a block adds what it gets to a layer without one.
"""

from __future__ import annotations

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import Editor, known_sizes, made_by, sizes, sole_user
from unibrain_rt.export.bundles.cuda.pieces import cut

_LAYERS = ("NhwcConv", "Gemm")


def join_modulations(editor: Editor) -> None:
    for node in list(editor.graph):
        source = node.inputs[0] if node.op_type == "Split" else None
        if source is not None and source.is_graph_input() and source.name == "modulation":
            _join(editor, node, source)


def _join(editor: Editor, node: ir.Node, modulation: ir.Value) -> None:
    shape = sizes(modulation)
    used = [_use(output) for output in node.outputs]
    uses = [use for use in used if use is not None]
    if shape is None or shape[0] != 1 or len(uses) != len(used):
        return
    biases = [layer.inputs[2] for _, layer in uses]
    width = shape[1]
    flat = editor.reshape(node, modulation, (width,))
    together = editor.joined(node, [bias for bias in biases if bias is not None], axis=0)
    shifts = editor.one(node, "Add", [flat, together], (width,))
    widths = [known_sizes(output)[1] for output in node.outputs]
    for (added, layer), piece in zip(uses, cut(editor, node, shifts, widths), strict=True):
        layer.replace_input_with(2, None)
        shifted = editor.one(added, "Add", [layer.outputs[0], piece], known_sizes(added.outputs[0]))
        editor.replace(added.outputs[0], shifted)


def _use(shift: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """The node that adds the shift, and the layer that it is added to, of channels last."""
    view = sole_user(shift, "Reshape")
    value = shift if view is None else view.outputs[0]
    added = sole_user(value, "Add")
    if added is None:
        return None
    other = added.inputs[1] if added.inputs[0] is value else added.inputs[0]
    for operator in _LAYERS:
        layer = made_by(other, operator)
        if layer is not None and len(layer.inputs) == 3 and layer.inputs[2] is not None and other is not None:
            return (added, layer) if len(list(other.uses())) == 1 else None
    return None
