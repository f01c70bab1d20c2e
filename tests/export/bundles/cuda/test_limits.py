"""What the kernels do not take stays as it was exported."""

from __future__ import annotations

import importlib
import math
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from unibrain_rt.export.bundles.cuda.flavour import fuse

flavours = importlib.import_module("flavours")
SINGLE = TensorProto.FLOAT


def built(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    given: dict[str, tuple[int, ...]],
    outputs: list[str],
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, SINGLE, shape) for name, shape in given.items()],
        [helper.make_tensor_value_info(name, SINGLE, None) for name in outputs],
        initializer=[numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def fused(model: ir.Model) -> Counter[str]:
    """What became of a model, which still gives the same numbers."""
    given = flavours.inputs(model)
    wanted = flavours.run(model, given)
    fuse(model)
    assert flavours.distance(flavours.run(model, given), wanted) < 1e-5
    return Counter(node.op_type for node in model.graph)


def normed(channels: int, groups: int, silu: bool = True) -> ir.Model:
    """Group normalisation of (2, channels, 4, 4) as torch's exporter writes it."""
    random = np.random.default_rng(0)
    constants = {
        "grouped": np.array([0, groups, -1]),
        "shape": np.array([2, channels, 4, 4]),
        "ones": np.ones(groups, np.float32),
        "noughts": np.zeros(groups, np.float32),
        "scale": random.standard_normal((channels, 1, 1)).astype(np.float32),
        "shift": random.standard_normal((channels, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "grouped"], ["rows"]),
        helper.make_node("InstanceNormalization", ["rows", "ones", "noughts"], ["even"], epsilon=1e-5),
        helper.make_node("Reshape", ["even", "shape"], ["whole"]),
        helper.make_node("Mul", ["whole", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["y"]),
        helper.make_node("Sigmoid", ["y"], ["gate"]),
        helper.make_node("Mul", ["y", "gate"], ["gated"]),
    ]
    if not silu:
        return built(nodes[:5], constants, {"x": (2, channels, 4, 4)}, ["y"])
    return built(nodes, constants, {"x": (2, channels, 4, 4)}, ["gated"])


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (12, 3), (1024, 2)])
@pytest.mark.parametrize("silu", [False, True])
def test_groups_that_the_kernel_takes(channels: int, groups: int, silu: bool) -> None:
    found = fused(normed(channels, groups, silu))
    assert found["GroupNorm"] == 1
    assert found["InstanceNormalization"] == found["Sigmoid"] == 0


@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        pytest.param(96, 32, id="an odd number of channels"),
        pytest.param(1028, 2, id="more than a block holds"),
    ],
)
def test_groups_that_the_kernel_does_not_take(channels: int, groups: int) -> None:
    found = fused(normed(channels, groups))
    assert (found["GroupNorm"], found["InstanceNormalization"]) == (0, 1)


def test_a_norm_that_is_used_before_its_gate_keeps_the_gate() -> None:
    model = normed(64, 32)
    shifted = next(node for node in model.graph if node.op_type == "Sigmoid").inputs[0]
    assert shifted is not None
    again = ir.Node("", "Neg", [shifted], num_outputs=1)
    again.outputs[0].name, again.outputs[0].type, again.outputs[0].shape = (
        "negated",
        shifted.type,
        shifted.shape,
    )
    model.graph.append(again)
    model.graph.outputs.append(again.outputs[0])
    found = fused(model)
    assert (found["GroupNorm"], found["Sigmoid"]) == (1, 1)


@pytest.mark.parametrize(("width", "fuses"), [(1280, True), (1281, False), (640, False)])
def test_gates_are_fused_at_the_kernels_widths(width: int, fuses: bool) -> None:
    random = np.random.default_rng(0)
    constants = {
        "value_weight": random.standard_normal((8, width)).astype(np.float32),
        "gate_weight": random.standard_normal((8, width)).astype(np.float32),
        "value_bias": random.standard_normal(width).astype(np.float32),
        "gate_bias": random.standard_normal(width).astype(np.float32),
        "root": np.array(math.sqrt(2), np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "value_weight"], ["value_product"]),
        helper.make_node("Add", ["value_product", "value_bias"], ["value"]),
        helper.make_node("MatMul", ["x", "gate_weight"], ["gate_product"]),
        helper.make_node("Add", ["gate_product", "gate_bias"], ["gate"]),
        helper.make_node("Div", ["gate", "root"], ["divided"]),
        helper.make_node("Erf", ["divided"], ["error"]),
        helper.make_node("Add", ["error", "one"], ["raised"]),
        helper.make_node("Mul", ["gate", "raised"], ["doubled"]),
        helper.make_node("Mul", ["doubled", "half"], ["gelu"]),
        helper.make_node("Mul", ["value", "gelu"], ["y"]),
    ]
    found = fused(built(nodes, constants, {"x": (2, 3, 8)}, ["y"]))
    assert (found["BiasSplitGelu"], found["Erf"], found["MatMul"]) == ((1, 0, 1) if fuses else (0, 1, 2))


def convolved(kernel: int, channels: int, group: int = 1) -> ir.Model:
    random = np.random.default_rng(0)
    constants = {
        "weight": random.standard_normal((6, channels // group, kernel, kernel)).astype(np.float32),
        "bias": random.standard_normal(6).astype(np.float32),
    }
    attributes = {
        "kernel_shape": [kernel] * 2,
        "pads": [kernel // 2] * 4,
        "strides": [1, 1],
        "dilations": [1, 1],
    }
    node = helper.make_node(
        "Conv", ["x", "weight", "bias"], ["y"], group=group, auto_pad="NOTSET", **attributes
    )
    return built(
        [node, helper.make_node("Neg", ["y"], ["negated"])],
        constants,
        {"x": (2, channels, 5, 5)},
        ["negated"],
    )


def test_convolutions_have_their_channels_last() -> None:
    assert fused(convolved(3, 4))["NhwcConv"] == 1
    # Of single pixels: a product, unless it is of a few channels.
    found = fused(convolved(1, 32))
    assert (found["MatMul"], found["NhwcConv"], found["Conv"]) == (1, 0, 0)
    assert fused(convolved(1, 4))["NhwcConv"] == 1
    assert fused(convolved(3, 4, group=2))["Conv"] == 1
