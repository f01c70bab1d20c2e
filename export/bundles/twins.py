"""Twins of fp16 graphs: they compute in fp32 from the very weights that the fp16 graph stores."""

from __future__ import annotations

import onnx_ir as ir

from unibrain_rt.export.bundles.precision import cast_node, cast_outputs, read_from_half

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def make_twin(single: ir.Model, half: ir.Model) -> None:
    """Turn an fp32 model in place into a stand-in for what ``set_precision(…, "fp16")`` made of its like.

    Inputs and outputs have the names, shapes and types of ``half``, and so do weights: what ``half`` holds in half is
    cast where the twin starts, so that both may refer to the same bytes.
    """
    graph = single.graph
    halves = {
        f"{name}_half": name for name in graph.initializers if f"{name}_half" in half.graph.initializers
    }
    read_from_half(graph, list(halves.values()))
    share_weights(single, half)
    for value, like in zip(graph.inputs, half.graph.inputs, strict=True):
        if (value.dtype, like.dtype) == (_FLOAT, _HALF):
            users = list(value.uses())
            value.type = ir.TensorType(_HALF)
            cast = cast_node(value, _FLOAT, f"{value.name}_fp32")
            for node, place in users:
                node.replace_input_with(place, cast.outputs[0])
            graph.insert_before(graph[0], cast)
    cast_outputs(graph, [value.dtype for value in half.graph.outputs])


def share_weights(other: ir.Model, half: ir.Model) -> None:
    """Let what both models call ``…_half`` be the tensor that ``half`` refers to, which may be written already."""
    for name, value in other.graph.initializers.items():
        if name.endswith("_half") and name in half.graph.initializers:
            value.const_value = half.graph.initializers[name].const_value
