"""What the contrib operators mean, against the arithmetic of ONNX Runtime's kernels in numpy."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from unibrain_rt.export.bundles.cuda.graph_edit import DOMAIN
from unibrain_rt.export.bundles.cuda.meanings import define_meanings

flavours = importlib.import_module("flavours")
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
RANDOM = np.random.default_rng(0)


def made(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def one(
    operator: str,
    given: list[np.ndarray | None],
    outputs: int = 1,
    *,
    half: bool = False,
    single: tuple[int, ...] = (),
    **attributes: Any,
) -> list[np.ndarray]:
    """The outputs of one node; ``single`` are its inputs that stay fp32 in half precision."""
    kind = HALF if half else FLOAT
    values = [
        None
        if array is None
        else ir.Value(
            name=f"in_{place}",
            shape=ir.Shape(array.shape),
            type=ir.TensorType(FLOAT if place in single else kind),
        )
        for place, array in enumerate(given)
    ]
    node = ir.Node(
        DOMAIN,
        operator,
        values,
        [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()],
        num_outputs=outputs,
    )
    for place, value in enumerate(node.outputs):
        value.name, value.type = f"out_{place}", ir.TensorType(kind)
    graph = ir.Graph(
        [value for value in values if value is not None],
        list(node.outputs),
        nodes=[node],
        opset_imports={"": 18, DOMAIN: 1},
        name="one",
    )
    model = ir.Model(graph, ir_version=10)
    define_meanings(model)
    feeds = {f"in_{place}": array for place, array in enumerate(given) if array is not None}
    found = flavours.run(model, feeds)
    return [found[f"out_{place}"] for place in range(outputs)]


def close(found: np.ndarray, wanted: np.ndarray, half: bool = False) -> None:
    np.testing.assert_allclose(
        found.astype(np.float64), wanted, atol=5e-3 if half else 1e-5, rtol=5e-3 if half else 1e-5
    )


def attended(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """Of (B, heads, N, width), as tokens."""
    scores = queries @ keys.swapaxes(2, 3) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ values
    batch, _, tokens, _ = mixed.shape
    return mixed.swapaxes(1, 2).reshape(batch, tokens, -1)


def by_head(tokens: np.ndarray, heads: int) -> np.ndarray:
    return tokens.reshape(*tokens.shape[:2], heads, -1).swapaxes(1, 2)


@pytest.mark.parametrize("half", [False, True])
def test_attention_of_tokens_and_of_keys_by_head(half: bool) -> None:
    q, k, v = made(2, 5, 12), made(2, 7, 12), made(2, 7, 12)
    keys, values = by_head(k, 3), by_head(v, 3)
    wanted = attended(by_head(q, 3), keys, values, 0.7)
    for given in ([q, k, v], [q, keys, values]):
        close(one("MultiHeadAttention", given, half=half, num_heads=3, scale=0.7)[0], wanted, half)


@pytest.mark.parametrize("half", [False, True])
def test_attention_with_its_product(half: bool) -> None:
    x, weight, bias = made(2, 5, 12), made(12, 36) / 4, made(36)
    q, k, v = np.split(x @ weight + bias, 3, axis=-1)
    wanted = attended(by_head(q, 3), by_head(k, 3), by_head(v, 3), 0.5)
    close(one("Attention", [x, weight, bias], half=half, num_heads=3, scale=0.5)[0], wanted, half)


def normed(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, groups: int, silu: bool) -> np.ndarray:
    batch, height, width = x.shape[:3]
    by_group = x.reshape(batch, height * width, groups, -1).astype(np.float64)
    mean = by_group.mean((1, 3), keepdims=True)
    deviation = np.sqrt(by_group.var((1, 3), keepdims=True) + 1e-5)
    y = ((by_group - mean) / deviation).reshape(x.shape) * scale + shift
    return y / (1 + np.exp(-y)) if silu else y


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_groups_are_normalised_with_channels_last(half: bool, silu: bool) -> None:
    x, scale, shift = made(2, 3, 4, 12), made(12), made(12)
    sizes = {"groups": 3, "epsilon": 1e-5, "activation": int(silu), "channels_last": 1}
    found = one("GroupNorm", [x, scale, shift], half=half, single=(1, 2), **sizes)
    close(found[0], normed(x, scale, shift, 3, silu), half)


@pytest.mark.parametrize("row", [False, True])
def test_groups_of_a_sum(row: bool) -> None:
    x, scale, shift, bias = made(2, 3, 4, 12), made(12), made(12), made(12)
    skip = made(2, 12) if row else made(2, 3, 4, 12)
    sizes = {"groups": 3, "epsilon": 1e-5, "activation": 1, "channels_last": 1}
    found, total = one("SkipGroupNorm", [x, scale, shift, skip, bias], 2, **sizes)
    wanted = x + bias + (skip[:, None, None] if row else skip)
    close(total, wanted)
    close(found, normed(wanted, scale, shift, 3, silu=True))


@pytest.mark.parametrize("rows", [2, 1])
def test_layer_normalisation_of_a_sum(rows: int) -> None:
    x, skip, scale, shift, bias = made(2, 5, 8), made(rows, 5, 8), made(8), made(8), made(8)
    found, mean, inverse, total = one(
        "SkipLayerNormalization", [x, skip, scale, shift, bias], 4, epsilon=1e-5
    )
    wanted = x + skip + bias
    close(total, wanted)
    close(mean, wanted.mean(-1, keepdims=True))
    close(inverse, 1 / np.sqrt(wanted.var(-1, keepdims=True) + 1e-5))
    close(found, (wanted - mean) * inverse * scale + shift)


def test_the_right_half_is_the_gate() -> None:
    """`bias_split_gelu_impl.cu`: value_left * gelu_right."""
    x, bias = made(2, 3, 8), made(8)
    left, right = np.split((x + bias).astype(np.float64), 2, axis=-1)
    gelu = right * 0.5 * (1 + np.vectorize(math.erf)(right / math.sqrt(2)))
    close(one("BiasSplitGelu", [x, bias])[0], left * gelu)


def test_bias_and_residual() -> None:
    x, bias, skip = made(2, 3, 8), made(8), made(2, 3, 8)
    close(one("BiasAdd", [x, bias, skip])[0], x + bias + skip)


@pytest.mark.parametrize("biased", [True, False])
def test_convolution_with_channels_last(biased: bool) -> None:
    torch = pytest.importorskip("torch")
    x, weight, bias = made(2, 5, 6, 4), made(7, 3, 3, 4), made(7)
    sizes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "dilations": [1, 1], "group": 1}
    found = one("NhwcConv", [x, weight, bias if biased else None], **sizes)[0]
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(weight.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(bias) if biased else None,
        stride=2,
        padding=1,
    )
    np.testing.assert_allclose(found, wanted.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_gelu_by_tanh() -> None:
    x, bias = made(3, 8), made(8)
    y = (x + bias).astype(np.float64)
    wanted = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    close(one("FastGelu", [x, bias])[0], wanted)


def test_product_with_turned_keys() -> None:
    queries, keys = made(3, 1, 8), made(3, 5, 8)
    close(one("FusedMatMul", [queries, keys], alpha=0.25, transB=1)[0], 0.25 * queries @ keys.swapaxes(1, 2))
