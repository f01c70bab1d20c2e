"""The sampler's coefficients, cut apart by one kernel instead of one each.

They stay fp32 with the update that they are for, and so does what the noise's two halves are cut from.
"""

from __future__ import annotations

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import Editor, is_kept, known_sizes, sizes
from unibrain_rt.export.bundles.cuda.pieces import MOST_EQUAL


def read_coefficients_once(editor: Editor) -> None:
    source = next((value for value in editor.graph.inputs if value.name == "coefficients"), None)
    shape = sizes(source)
    if source is None or shape is None or len(shape) != 1 or shape[0] > MOST_EQUAL:
        return
    readers = [node for use in source.uses() if (node := use.node) is not None and _place(node) is not None]
    scope = next((node.metadata_props["scope"] for node in editor.graph if is_kept(node)), None)
    if len(readers) < 2 or scope is None:
        return
    pieces = editor.node(
        editor.graph[0], "Split", [source], [(1,)] * shape[0], attributes={"axis": 0, "num_outputs": shape[0]}
    )
    cutting = pieces[0].producer()
    assert cutting is not None, "it was just made"
    cutting.metadata_props["scope"] = scope
    for node in readers:
        place = _place(node)
        assert place is not None, "readers have one"
        # A number without axes and a vector of one are multiplied alike.
        editor.replace(node.outputs[0], pieces[place])
    for node in editor.graph:
        users = {use.node for output in node.outputs for use in output.uses()}
        if node.op_type == "Split" and users and all(map(is_kept, users)):
            node.metadata_props["scope"] = scope


def _place(node: ir.Node) -> int | None:
    """Which of the vector's numbers a node reads."""
    if any(value is None or value.const_value is None for value in node.inputs[1:]):
        return None
    constants = [
        value.const_value.numpy().reshape(-1) for value in node.inputs[1:] if value and value.const_value
    ]
    if node.op_type == "Gather" and known_sizes(node.outputs[0]) == ():
        return int(constants[0][0])
    if node.op_type != "Slice" or known_sizes(node.outputs[0]) != (1,):
        return None
    return int(constants[0][0])
