"""Group normalisation as one node, with the SiLU that follows it.

The exporter writes it as an instance normalisation of (N, groups, all the rest), scaled and shifted by channel. Here it
becomes a draft: a node of channels first, which `channels_last` turns into ONNX Runtime's own, or, for shapes that its
kernel does not take, it stays what it was.

The kernel's limits, from ONNX Runtime's ``group_norm_common_base.h`` and ``group_norm_impl.cu``: a thread reads two
channels of one group, so that a group has an even number of them, and a block holds whole groups of at most 512
channels together.
"""

from __future__ import annotations

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import (
    Editor,
    close,
    is_weight,
    known_sizes,
    made_by,
    sizes,
    sole_user,
    split_operand,
)

DRAFT = "unibrain_rt.draft"
"""Domain of nodes that live between two passes."""
_MOST_CHANNELS_OF_A_GROUP = 512
_MOST_BATCH = 32


def fuse_group_norms(editor: Editor) -> None:
    """Put drafts ``GroupNorm(x, scale, bias)`` of attributes groups, epsilon and activation in the patterns' place."""
    for node in list(editor.graph):
        if node.op_type == "InstanceNormalization":
            _fuse(editor, node)


def _fuse(editor: Editor, node: ir.Node) -> None:
    source, scale, bias = node.inputs
    rows = sizes(source)
    if source is None or rows is None or not (_all(scale, 1.0) and _all(bias, 0.0)):
        return
    groups = rows[1]
    into = made_by(source, "Reshape")
    out_of = sole_user(node.outputs[0], "Reshape")
    if into is None or out_of is None:
        return
    x, shape = into.inputs[0], sizes(out_of.outputs[0])
    if x is None or shape is None or not _taken(shape, groups):
        return
    # What two transformers normalise alike is normalised once, and scaled twice.
    for use in list(out_of.outputs[0].uses()):
        _fuse_scaled(editor, use.node, x, shape, groups, node.attributes["epsilon"].as_float())


def _taken(shape: tuple[int, ...], groups: int) -> bool:
    batch, channels = shape[:2]
    each = channels // groups
    fits = channels % groups == 0 and each % 2 == 0 and each <= _MOST_CHANNELS_OF_A_GROUP
    return fits and batch <= _MOST_BATCH and len(shape) in (2, 3, 4)


def _fuse_scaled(
    editor: Editor, scaling: ir.Node, x: ir.Value, shape: tuple[int, ...], groups: int, epsilon: float
) -> None:
    channels = shape[1]

    def per_channel(value: ir.Value) -> bool:
        return is_weight(value) and known_sizes(value) == (channels, *(1,) * (len(shape) - 2))

    if scaling.op_type != "Mul" or (scaled := split_operand(scaling, per_channel)) is None:
        return
    shifting = sole_user(scaling.outputs[0], "Add")
    if shifting is None or (shifted := split_operand(shifting, per_channel)) is None:
        return
    last, silu = shifting, _silu(shifting.outputs[0])
    if silu is not None:
        last = silu
    draft = editor.one(
        last,
        "GroupNorm",
        [editor.reshape(last, x, shape), editor.flat(scaled[0]), editor.flat(shifted[0])],
        shape,
        domain=DRAFT,
        attributes={"groups": groups, "epsilon": epsilon, "activation": int(silu is not None)},
    )
    editor.replace(last.outputs[0], draft)


def _silu(value: ir.Value) -> ir.Node | None:
    """The node that gives x · sigmoid(x), if that is all that becomes of ``value``."""
    users = {use.node for use in value.uses()}
    sigmoid = next((node for node in users if node.op_type == "Sigmoid"), None)
    if sigmoid is None or len(users) != 2 or value.is_graph_output():
        return None
    product = sole_user(sigmoid.outputs[0], "Mul")
    return product if product in users else None


def _all(value: ir.Value | None, wanted: float) -> bool:
    if value is None or value.const_value is None:
        return False
    return bool((value.const_value.numpy() == wanted).all()) or close(value, wanted)
