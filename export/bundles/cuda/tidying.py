"""Nodes that move nothing: identities, and reshapes of what was reshaped just before."""

from __future__ import annotations

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import Editor, is_kept, is_weight, number, sizes

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze"})


def drop_needless_views(editor: Editor) -> None:
    """Take out identities; make one reshape, with its shape in numbers, of several, and none where shapes are equal."""
    for node in list(editor.graph):
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        if source is None or output.is_graph_output() or is_kept(node):
            continue
        if node.op_type == "Identity":
            editor.replace(output, source)
            editor.graph.remove(node, safe=True)
            continue
        shape = sizes(output)
        if shape is None or not _is_view(node, source):
            continue
        if is_weight(source):
            if sizes(source) == shape:
                editor.replace(output, source)
            continue
        origin = _origin(source)
        if sizes(origin) is None:
            continue
        editor.replace(output, editor.reshape(node, origin, shape))
        editor.graph.remove(node, safe=True)
    _share_views(editor)
    drop_unused(editor.graph)


def _share_views(editor: Editor) -> None:
    """Let those who want the same view, or the same transposition, of a value have one."""
    seen: dict[tuple[object, ...], ir.Value] = {}
    for node in list(editor.graph):
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        if source is None or node.op_type not in ("Reshape", "Transpose") or is_kept(node):
            continue
        order = tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()
        key = (source, sizes(output), order)
        if key not in seen:
            seen[key] = output
        elif sizes(output) is not None and not output.is_graph_output():
            editor.replace(output, seen[key])


def _origin(value: ir.Value) -> ir.Value:
    """What a chain of reshapes began with."""
    while (node := value.producer()) is not None and node.inputs and (source := node.inputs[0]) is not None:
        if not _is_view(node, source):
            break
        value = source
    return value


def _is_view(node: ir.Node, source: ir.Value) -> bool:
    """Whether a node gives the same numbers in the same order."""
    have = sizes(source)
    if node.op_type == "Transpose" and have is not None and not is_weight(source):
        moved = [axis for axis in node.attributes["perm"].as_ints() if have[axis] != 1]
        return moved == sorted(moved)
    if node.op_type == "Gather" and have is not None:
        # The only one of an axis.
        return have[node.attributes["axis"].as_int()] == 1 and number(node.inputs[1]) == 0
    return node.op_type in _VIEWS


def drop_unused(graph: ir.Graph) -> None:
    """Take out nodes whose outputs nobody uses, and initializers likewise."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
