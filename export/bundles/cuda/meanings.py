"""What the contrib operators of a flavour mean, as ONNX functions of standard operators.

An engine that has a kernel of an operator's name takes that; another puts the function in its place. (ONNX Runtime's
CPU provider does neither for operators whose names it knows: what runs there, a test say, puts the functions in place
first.) Tensors are of one type, but scales and shifts of groups, which are fp32. What the kernels sum in fp32, the
functions do. Sources: ONNX Runtime's ``docs/ContribOperators.md``, and the kernels in its ``contrib_ops/cuda``.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx import parser

from unibrain_rt.export.bundles.cuda.graph_edit import DOMAIN

_HEADS = """
    same = Constant <value_ints = [0, 0]> ()
    rest = Constant <value_ints = [-1]> ()
    heads = Constant <value_int : int = @num_heads> ()
    count = Reshape (heads, rest)
"""
_MIX = """
    factor_fp32 = Constant <value_float : float = @scale> ()
    factor = CastLike (factor_fp32, queries)
    scaled = Mul (queries, factor)
    turned = Transpose <perm = [0, 1, 3, 2]> (keys)
    scores = MatMul (scaled, turned)
    scores_fp32 = Cast <to = 1> (scores)
    weights_fp32 = Softmax <axis = -1> (scores_fp32)
    probabilities = CastLike (weights_fp32, queries)
    weighed = MatMul (probabilities, values)
    mixed = Transpose <perm = [0, 2, 1, 3]> (weighed)
    flat = Concat <axis = 0> (same, rest)
    output = Reshape (mixed, flat)
"""
_GROUPS = """
    first = Transpose <perm = [0, 3, 1, 2]> (x)
    single = Cast <to = 1> (first)
    shape = Shape (single)
    same = Constant <value_ints = [0]> ()
    rest = Constant <value_ints = [-1]> ()
    number = Constant <value_int : int = @groups> ()
    count = Reshape (number, rest)
    by_group = Concat <axis = 0> (same, count, rest)
    grouped = Reshape (single, by_group)
    one = Constant <value_floats = [1.0]> ()
    nought = Constant <value_floats = [0.0]> ()
    ones = Expand (one, count)
    noughts = Expand (nought, count)
    even = InstanceNormalization <epsilon : float = @epsilon> (grouped, ones, noughts)
    whole = Reshape (even, shape)
    last = Transpose <perm = [0, 2, 3, 1]> (whole)
    stretched = Mul (last, scale)
    shifted = Add (stretched, shift)
    activated = Constant <value_int : int = @activation> ()
    share = Cast <to = 1> (activated)
    left_out = Sub (one, share)
    gate = Sigmoid (shifted)
    gated = Mul (gate, share)
    factor = Add (gated, left_out)
    output_fp32 = Mul (shifted, factor)
    output = CastLike (output_fp32, x)
"""
_FUNCTIONS = {
    "MultiHeadAttention": f"""
MultiHeadAttention <num_heads, scale> (query, key, value) => (output) {{
    {_HEADS}
    split = Concat <axis = 0> (same, count, rest)
    split_queries = Reshape (query, split)
    queries = Transpose <perm = [0, 2, 1, 3]> (split_queries)
    key_shape = Shape (key)
    rank = Size (key_shape)
    four = Constant <value_int = 4> ()
    apart = Equal (rank, four)
    keys, values = If (apart) <
        then_branch = given () => (given_keys, given_values) {{
            given_keys = Identity (key)
            given_values = Identity (value)
        }},
        else_branch = taken_apart () => (own_keys, own_values) {{
            split_keys = Reshape (key, split)
            own_keys = Transpose <perm = [0, 2, 1, 3]> (split_keys)
            split_values = Reshape (value, split)
            own_values = Transpose <perm = [0, 2, 1, 3]> (split_values)
        }}
    >
    {_MIX}
}}""",
    "Attention": f"""
Attention <num_heads, scale> (x, weight, bias) => (output) {{
    {_HEADS}
    three = Constant <value_ints = [3]> ()
    product = MatMul (x, weight)
    together = Add (product, bias)
    split = Concat <axis = 0> (same, three, count, rest)
    parts = Reshape (together, split)
    by_part = Transpose <perm = [2, 0, 3, 1, 4]> (parts)
    number_0 = Constant <value_int = 0> ()
    number_1 = Constant <value_int = 1> ()
    number_2 = Constant <value_int = 2> ()
    queries = Gather <axis = 0> (by_part, number_0)
    keys = Gather <axis = 0> (by_part, number_1)
    values = Gather <axis = 0> (by_part, number_2)
    {_MIX}
}}""",
    "GroupNorm": f"""
GroupNorm <groups, epsilon, activation, channels_last> (x, scale, shift) => (output) {{
    {_GROUPS}
}}""",
    "SkipGroupNorm": f"""
SkipGroupNorm <groups, epsilon, activation, channels_last> (input, scale, shift, skip, bias) => (output, x) {{
    whole_shape = Shape (input)
    batch = Shape <start = 0, end = 1> (input)
    unit = Constant <value_ints = [1, 1]> ()
    width = Shape <start = 3, end = 4> (input)
    row_shape = Concat <axis = 0> (batch, unit, width)
    skip_shape = Shape (skip)
    rank = Size (skip_shape)
    two = Constant <value_int = 2> ()
    is_row = Equal (rank, two)
    wanted = Where (is_row, row_shape, whole_shape)
    residual = Reshape (skip, wanted)
    biased = Add (input, bias)
    x = Add (biased, residual)
    {_GROUPS}
}}""",
    "NhwcConv": """
NhwcConv <kernel_shape, pads, strides, dilations, group> (x, weight, bias) => (output) {
    first = Transpose <perm = [0, 3, 1, 2]> (x)
    kernels = Transpose <perm = [0, 3, 1, 2]> (weight)
    y = Conv <
        kernel_shape : ints = @kernel_shape, pads : ints = @pads, strides : ints = @strides,
        dilations : ints = @dilations, group : int = @group
    > (first, kernels, bias)
    output = Transpose <perm = [0, 2, 3, 1]> (y)
}""",
    "BiasSplitGelu": """
BiasSplitGelu (x, bias) => (output) {
    biased = Add (x, bias)
    single = Cast <to = 1> (biased)
    left, right = Split <axis = -1, num_outputs = 2> (single)
    root = Constant <value_float = 1.4142135623730951> ()
    half = Constant <value_float = 0.5> ()
    one = Constant <value_float = 1.0> ()
    divided = Div (right, root)
    error = Erf (divided)
    halved = Mul (right, half)
    raised = Add (error, one)
    gelu = Mul (halved, raised)
    gated = Mul (left, gelu)
    output = CastLike (gated, x)
}""",
    "FastGelu": """
FastGelu (x, bias) => (output) {
    biased = Add (x, bias)
    single = Cast <to = 1> (biased)
    half = Constant <value_float = 0.5> ()
    one = Constant <value_float = 1.0> ()
    slope = Constant <value_float = 0.7978845608028654> ()
    bend = Constant <value_float = 0.044715> ()
    squared = Mul (single, single)
    bent = Mul (squared, bend)
    raised = Add (bent, one)
    curved = Mul (single, raised)
    inner = Mul (curved, slope)
    turned = Tanh (inner)
    shifted = Add (turned, one)
    halved = Mul (single, half)
    output_fp32 = Mul (halved, shifted)
    output = CastLike (output_fp32, x)
}""",
    "FusedMatMul": """
FusedMatMul <alpha, transB> (queries, keys) => (scores) {
    turned = Transpose <perm = [0, 2, 1]> (keys)
    factor_fp32 = Constant <value_float : float = @alpha> ()
    factor = CastLike (factor_fp32, queries)
    scaled = Mul (queries, factor)
    scores = MatMul (scaled, turned)
}""",
    "BiasAdd": """
BiasAdd (x, bias, skip) => (output) {
    biased = Add (x, bias)
    output = Add (biased, skip)
}""",
    "SkipLayerNormalization": """
SkipLayerNormalization <epsilon> (input, skip, gamma, beta, bias) => (output, mean, deviation, total) {
    biased = Add (input, bias)
    total = Add (biased, skip)
    single = Cast <to = 1> (total)
    last = Constant <value_ints = [-1]> ()
    mean = ReduceMean (single, last)
    centred = Sub (single, mean)
    squared = Mul (centred, centred)
    variance = ReduceMean (squared, last)
    least = Constant <value_float : float = @epsilon> ()
    raised = Add (variance, least)
    root = Sqrt (raised)
    deviation = Reciprocal (root)
    even = Mul (centred, deviation)
    gamma_fp32 = Cast <to = 1> (gamma)
    beta_fp32 = Cast <to = 1> (beta)
    stretched = Mul (even, gamma_fp32)
    shifted = Add (stretched, beta_fp32)
    output = CastLike (shifted, input)
}""",
}


def define_meanings(model: ir.Model) -> None:
    """Give the model the functions of the operators that it holds, instead of those that it had."""
    model.functions.clear()
    held = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for operator in sorted(held):
        text = f'<domain: "{DOMAIN}", opset_import: ["" : 18]>' + _FUNCTIONS[operator]
        function = ir.serde.deserialize_function(parser.parse_function(text))
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = 1
