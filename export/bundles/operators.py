"""How torch operators become ONNX where the exporter's own way is slow to run.

Self-attention becomes one node, ``com.microsoft.MultiHeadAttention``, and the file brings along what that
node means as an ONNX function of standard operators. An engine that has a kernel of that name (ONNX Runtime)
never writes the N × N matrix of scores to memory; any other engine puts the function's body in its place, so
the file stays standard ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnx import defs
from onnxscript import FLOAT, opset18, script
from onnxscript.values import Op, Opset

ATTENTION_DOMAIN = "com.microsoft"
ATTENTION = "MultiHeadAttention"
_attention_opset = Opset(ATTENTION_DOMAIN, 1)


@script(_attention_opset, default_opset=opset18)
def MultiHeadAttention(  # noqa: N802 - its name in ONNX
    query: FLOAT, key: FLOAT, value: FLOAT, num_heads: int, scale: float
) -> FLOAT:
    """Query, key and value (B, L, C) → (B, L, C). The softmax is in fp32, whatever the type of the rest."""
    heads = opset18.Constant(value_ints=[0, 0])
    width = opset18.Constant(value_ints=[-1])
    count = opset18.Reshape(opset18.Constant(value_int=num_heads), width)
    split = opset18.Concat(heads, count, width, axis=0)
    queries = opset18.Transpose(opset18.Reshape(query, split), perm=[0, 2, 1, 3])
    keys = opset18.Transpose(opset18.Reshape(key, split), perm=[0, 2, 3, 1])
    values = opset18.Transpose(opset18.Reshape(value, split), perm=[0, 2, 1, 3])
    factor = opset18.CastLike(opset18.Constant(value_float=scale), query)
    scores = opset18.Cast(opset18.MatMul(opset18.Mul(queries, factor), keys), to=FLOAT.dtype)
    weights = opset18.CastLike(opset18.Softmax(scores, axis=-1), query)
    mixed = opset18.Transpose(opset18.MatMul(weights, values), perm=[0, 2, 1, 3])
    return opset18.Reshape(mixed, opset18.Concat(heads, width, axis=0))


def _attention_schema() -> defs.OpSchema:
    def tensor(name: str) -> defs.OpSchema.FormalParameter:
        return defs.OpSchema.FormalParameter(name, "T")

    return defs.OpSchema(
        ATTENTION,
        ATTENTION_DOMAIN,
        1,
        inputs=[tensor("query"), tensor("key"), tensor("value")],
        outputs=[tensor("output")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
        attributes=[
            defs.OpSchema.Attribute("num_heads", defs.OpSchema.AttrType.INT),
            defs.OpSchema.Attribute("scale", defs.OpSchema.AttrType.FLOAT),
        ],
    )


_ATTENTION_SCHEMA = _attention_schema()


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``torch.nn.functional.scaled_dot_product_attention`` of (B, heads, L, width), without dropout."""
    if dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("attention with dropout, a causal flag or grouped queries")
    heads, width = query.shape[1], query.shape[3]
    factor = 1 / math.sqrt(width) if scale is None else scale
    if attn_mask is None and key.shape[2] == query.shape[2]:
        rows = [
            opset18.Reshape(opset18.Transpose(x, perm=[0, 2, 1, 3]), opset18.Constant(value_ints=[0, 0, -1]))
            for x in (query, key, value)
        ]
        mixed = Op(_attention_opset, ATTENTION, _ATTENTION_SCHEMA)(*rows, num_heads=heads, scale=factor)
        # Shape inference does not know this operator.
        mixed.type, mixed.shape = query.type, ir.Shape([query.shape[0], query.shape[2], heads * width])
        split = opset18.Reshape(mixed, opset18.Constant(value_ints=[0, 0, heads, width]))
        return opset18.Transpose(split, perm=[0, 2, 1, 3])
    # Few keys: their scores are small, and kernels that never write them do not pay.
    scaled = opset18.Mul(query, opset18.CastLike(opset18.Constant(value_float=factor), query))
    scores = opset18.MatMul(scaled, opset18.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        if attn_mask.dtype == ir.DataType.BOOL:
            seen = opset18.CastLike(opset18.Constant(value_float=0.0), query)
            unseen = opset18.CastLike(opset18.Constant(value_float=float("-inf")), query)
            attn_mask = opset18.Where(attn_mask, seen, unseen)
        scores = opset18.Add(scores, attn_mask)
    return opset18.MatMul(opset18.Softmax(scores, axis=-1), value)


def gelu(x: Any, approximate: str = "none") -> Any:
    """GELU by the error function, x (1 + erf(x / √2)) / 2, in the order that ONNX Runtime knows and fuses."""
    if approximate != "none":
        raise NotImplementedError("GELU by tanh")

    def constant(number: float) -> Any:
        return opset18.CastLike(opset18.Constant(value_float=number), x)

    error = opset18.Erf(opset18.Div(x, constant(math.sqrt(2))))
    return opset18.Mul(opset18.Mul(x, opset18.Add(error, constant(1.0))), constant(0.5))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.aten.gelu.default: gelu,
}


def define_functions(model: ir.Model) -> None:
    """Add the meaning of the nodes made here to the model that holds them."""
    if any((node.domain, node.op_type) == (ATTENTION_DOMAIN, ATTENTION) for node in model.graph):
        function = ir.serde.deserialize_function(MultiHeadAttention.to_function_proto())
        model.functions[function.identifier()] = function
        model.opset_imports[ATTENTION_DOMAIN] = 1
