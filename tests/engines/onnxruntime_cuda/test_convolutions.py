"""Which graphs may round fp32 products, as those that convolve in fp16, and which convolutions add biases."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

import onnx_ir as ir

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import GraphSpec, Settings
from unibrain_rt.engines.graph_costs import GraphCosts
from unibrain_rt.engines.onnxruntime_cuda import CudaEngine
from unibrain_rt.engines.onnxruntime_cuda.convolutions import adds_biases, convolves_in_half
from unibrain_rt.export.bundles.costs import count_costs
from unibrain_rt.sessions import decode_graphs

hand = importlib.import_module("hand_graphs")
standin = importlib.import_module("cuda_as_cpu")


def counted(graph: GraphSpec) -> GraphSpec:
    """With its costs, as the exporter counts them."""
    return replace(graph, costs=count_costs(ir.load(graph.path)))


def convolution(folder: Path, dtype: str = hand.H) -> GraphSpec:
    """y = x convolved, then a matrix product in fp32."""
    weights = np.ones((1, 1, 1, 1), dtype)
    graph = hand.save(
        folder / "convolution.onnx",
        [
            ("Conv", ["x", "weights"], ["folded"]),
            ("Transpose", ["folded"], ["turned"]),
            ("MatMul", ["float_x", "float_x"], ["product"]),
        ],
        {"x": (dtype, (1, 1, 2, 2)), "float_x": (hand.F, (2, 2))},
        {"turned": (dtype, (2, 2, 1, 1)), "product": (hand.F, (2, 2))},
        {"weights": weights},
    )
    return counted(graph)


def test_a_graph_that_convolves_in_half_does_so_whatever_else_it_holds(tmp_path: Path) -> None:
    assert convolves_in_half(convolution(tmp_path).costs)
    assert not convolves_in_half(convolution(tmp_path, hand.F).costs)


def test_without_a_convolution_half_is_no_reason(tmp_path: Path) -> None:
    graph = hand.save(
        tmp_path / "product.onnx",
        [("MatMul", ["x", "weights"], ["y"])],
        {"x": (hand.H, (2, 2))},
        {"y": (hand.H, (2, 2))},
        {"weights": np.ones((2, 2), hand.H)},
    )
    assert not convolves_in_half(counted(graph).costs)


@pytest.mark.parametrize("operator", ["NhwcConv", "FusedConv", "ConvTranspose"])
def test_other_convolutions(operator: str) -> None:
    costs = GraphCosts(1, 1, 1, 2, bytes_per_number=2, operators={operator: 1})
    assert convolves_in_half(costs)
    assert not convolves_in_half(replace(costs, bytes_per_number=4))


def test_what_nothing_is_known_of_stays_exact() -> None:
    assert not convolves_in_half(None)


@pytest.mark.parametrize(
    ("operators", "adds"),
    [
        ({"NhwcConv": 3, "MatMul": 1}, True),
        ({"NhwcConv": 3, "Conv": 1}, False),
        ({"Conv": 3}, False),
        ({"MatMul": 1}, False),
        ({}, False),
    ],
)
def test_biases_are_added_where_all_convolutions_are_channels_last(
    operators: dict[str, int], adds: bool
) -> None:
    assert adds_biases(GraphCosts(1, 1, 1, 2, bytes_per_number=2, operators=operators)) == adds
    assert not adds_biases(None)


def test_graphs_of_the_phantom_keep_fp32(make_device: Any, phantom_bundle: Path) -> None:
    device = make_device()
    for graph, free in decode_graphs(Bundle.open(phantom_bundle), ["fast"]):
        device.engine.open(graph, free=free)
    assert {options["use_tf32"] for options in device.library.options} == {"0"}
    assert {options["fuse_conv_bias"] for options in device.library.options} == {"0"}


@pytest.mark.parametrize(("dtype", "switch"), [(hand.H, "1"), (hand.F, "0")])
@pytest.mark.parametrize("graphs", [True, False])
def test_a_session_is_switched_by_its_graph(
    make_device: Any, tmp_path: Path, graphs: bool, dtype: str, switch: str
) -> None:
    device = make_device(graphs=graphs)
    device.engine.open(convolution(tmp_path, dtype))
    (options,) = device.library.options
    assert options["use_tf32"] == switch
    assert options["fuse_conv_bias"] == "0"


def test_a_benchmark_may_say_otherwise(tmp_path: Path) -> None:
    library = standin.Library()
    CudaEngine(Settings(), options={"use_tf32": "0", "prefer_nhwc": "1"}, onnxruntime=library).open(
        convolution(tmp_path)
    )
    (options,) = library.options
    assert (options["use_tf32"], options["prefer_nhwc"], options["enable_cuda_graph"]) == ("0", "1", "1")
