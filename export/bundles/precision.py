"""Precision of a graph: fp32, strongly typed fp16, or fp32 with weights stored in half.

An fp16 graph states the type of every tensor, so that an engine that honours types needs no flags. What fp16
cannot hold stays in fp32, with casts around it: normalisations and softmax (sums over many values), and the
guidance and sampler's update, whose errors would add up over the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir

Precision = Literal["fp32", "fp16", "fp32-half-weights"]

FP32_OPERATORS = frozenset(
    {
        "Softmax",
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "ReduceMean",
        "ReduceL2",
        "ReduceSum",
        "Sqrt",
        "Reciprocal",
        "Pow",
        "Exp",
        "Sin",
        "Cos",
        "Range",
    }
)
FP32_SCOPES = ("sampler_update",)
# Tensors that cross the border of the decode keep fp32; what passes between graphs (keys, values,
# modulations, caches) is fp16 there too.
FP32_TENSORS = frozenset(
    {
        "pixel_values",
        "image",
        "latent",
        "previous_x0",
        "coefficients",
        "next_latent",
        "x0",
        "image_context",
        "text_context",
        "logits",
        "context",
    }
)
FP32_GRAPHS = frozenset({"unet_time"})
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_SMALL = 1024
_UNTYPED_INPUTS = {"Resize": (1, 2), "GroupNorm": (1, 2), "SkipGroupNorm": (1, 2)}
"""Inputs that are fp32 whatever the type of the rest: Resize's region and scales, and what the kernels scale and shift
groups by."""


def set_precision(model: ir.Model, precision: Precision, *, in_fp32: frozenset[str] = FP32_OPERATORS) -> None:
    """Change an fp32 model in place. ``in_fp32`` names the operators that fp16 leaves as they are."""
    if precision == "fp16":
        _to_half(model, in_fp32)
    elif precision == "fp32-half-weights":
        _store_in_half(model)


def undo_half_weights(model: ir.Model) -> None:
    """Make an fp32 model in place of one whose weights are stored in half, as `read_from_half` leaves it."""
    graph = model.graph
    for node in list(graph):
        half = node.inputs[0] if node.op_type == "Cast" else None
        if half is None or half.const_value is None or half.dtype != _HALF or half.name is None:
            continue
        if node.attributes["to"].as_int() == _FLOAT.value:
            single = _initializer(graph, half, half.name.removesuffix("_half"), _FLOAT)
            ir.convenience.replace_all_uses_with(node.outputs[0], single)
            graph.remove(node, safe=True)
            if not half.uses():
                del graph.initializers[half.name]


def _store_in_half(model: ir.Model) -> None:
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    large = [
        name
        for name, tensor in tensors.items()
        if tensor is not None and tensor.dtype == _FLOAT and tensor.size >= _SMALL
    ]
    read_from_half(model.graph, large)


def read_from_half(graph: ir.Graph, names: Sequence[str]) -> None:
    """Replace these fp32 initializers by ones in half, called ``<name>_half``, that are cast before anything runs."""
    casts = []
    for name in names:
        value = graph.initializers[name]
        half = _initializer(graph, value, f"{name}_half", _HALF)
        cast = cast_node(half, _FLOAT, f"{name}_fp32")
        casts.append(cast)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[name]
    if casts:
        graph.insert_before(graph[0], casts)


def _to_half(model: ir.Model, in_fp32: frozenset[str]) -> None:
    graph = model.graph
    all_fp32 = graph.name in FP32_GRAPHS
    converted: dict[tuple[int, ir.DataType], ir.Value] = {}

    def cast(value: ir.Value, to: ir.DataType, before: ir.Node) -> ir.Value:
        key = (id(value), to)
        if key not in converted:
            if value.const_value is not None and to == _HALF:
                converted[key] = _initializer(graph, value, f"{value.name}_half", _HALF)
            else:
                node = cast_node(value, to, f"{value.name}_{'fp16' if to == _HALF else 'fp32'}")
                graph.insert_before(before, node)
                converted[key] = node.outputs[0]
        return converted[key]

    for value in graph.inputs:
        if value.dtype == _FLOAT and value.name not in FP32_TENSORS:
            value.type = ir.TensorType(_HALF)
    for node in list(graph):
        keep = all_fp32 or _keeps_fp32(node, in_fp32)
        wanted = _FLOAT if keep else _HALF
        for place, used in enumerate(node.inputs):
            if used is None or used.dtype not in (_FLOAT, _HALF):
                continue
            want = _FLOAT if place in _UNTYPED_INPUTS.get(node.op_type, ()) else wanted
            if used.dtype != want:
                node.replace_input_with(place, cast(used, want, node))
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _FLOAT.value and not keep:
            node.attributes["to"] = ir.AttrInt64("to", _HALF.value)
        if node.op_type in ("Constant", "ConstantOfShape") and not keep:
            _halve_constant(node)
        for value in node.outputs:
            if value.dtype == _FLOAT and node.op_type != "Constant":
                value.type = ir.TensorType(wanted)
    cast_outputs(graph, [_FLOAT if value.name in FP32_TENSORS else _HALF for value in graph.outputs])
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def _keeps_fp32(node: ir.Node, in_fp32: frozenset[str]) -> bool:
    return node.op_type in in_fp32 or any(
        scope in node.metadata_props.get("scope", "") for scope in FP32_SCOPES
    )


def cast_node(value: ir.Value, to: ir.DataType, name: str | None) -> ir.Node:
    """A node, in no graph yet, that casts ``value`` to its output ``name``."""
    # Named here, since names made up on saving count what was there before: the same graph would be another file.
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", to.value)], num_outputs=1, name=f"cast_{name}")
    output = node.outputs[0]
    output.name, output.type, output.shape = name, ir.TensorType(to), value.shape
    return node


def cast_outputs(graph: ir.Graph, wanted: Sequence[ir.DataType | None]) -> None:
    """Cast the outputs that are fp32 or fp16 to the types ``wanted``; their names stay."""
    for place, (value, want) in enumerate(zip(list(graph.outputs), wanted, strict=True)):
        if want is None or value.dtype not in (_FLOAT, _HALF) or value.dtype == want:
            continue
        name = value.name
        value.name = f"{name}_{'fp16' if want == _FLOAT else 'fp32'}"
        node = cast_node(value, want, name)
        graph.append(node)
        graph.outputs[place] = node.outputs[0]


def _initializer(graph: ir.Graph, value: ir.Value, name: str, dtype: ir.DataType) -> ir.Value:
    """The initializer ``value`` in another type, under another name; it is converted when it is written."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = value.const_value
    assert tensor is not None
    other = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
    shape = ir.Shape(tensor.shape.numpy())
    convert = _half_tensor if dtype == _HALF else _single_tensor
    other.const_value = ir.LazyTensor(partial(convert, tensor), dtype=dtype, shape=shape, name=name)
    graph.register_initializer(other)
    return other


def _half_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(_saturated(tensor.numpy()))


def _single_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32))


def _saturated(array: np.ndarray) -> np.ndarray:
    # Masks are written with the most negative fp32 number, which would become -inf, and NaN in a softmax.
    limit = np.finfo(np.float16).max
    return np.where(np.isinf(array), array, np.clip(array, -limit, limit)).astype(np.float16)


def _halve_constant(node: ir.Node) -> None:
    attribute = node.attributes.get("value")
    if attribute is not None and attribute.as_tensor().dtype == _FLOAT:
        node.attributes["value"] = ir.AttrTensor("value", _half_tensor(attribute.as_tensor()))
        node.outputs[0].type = ir.TensorType(_HALF)
