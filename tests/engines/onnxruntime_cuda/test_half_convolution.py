"""Which graphs may round fp32 products: those that convolve in fp16, and no others."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import EngineError, GraphSpec, Settings
from unibrain_rt.engines.onnxruntime_cuda import CudaEngine
from unibrain_rt.engines.onnxruntime_cuda.half_convolution import convolves_in_half
from unibrain_rt.sessions import decode_graphs

onnx = importlib.import_module("onnx")
hand = importlib.import_module("hand_graphs")
standin = importlib.import_module("cuda_as_cpu")


def convolution(folder: Path, dtype: str = hand.H) -> GraphSpec:
    """y = x convolved, then a matrix product in fp32."""
    weights = np.ones((1, 1, 1, 1), dtype)
    return hand.save(
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


def test_a_graph_that_convolves_in_half_does_so_whatever_else_it_holds(tmp_path: Path) -> None:
    assert convolves_in_half(convolution(tmp_path).path)
    assert not convolves_in_half(convolution(tmp_path, hand.F).path)


def test_without_a_convolution_half_is_no_reason(tmp_path: Path) -> None:
    graph = hand.save(
        tmp_path / "product.onnx",
        [("MatMul", ["x", "weights"], ["y"])],
        {"x": (hand.H, (2, 2))},
        {"y": (hand.H, (2, 2))},
        {"weights": np.ones((2, 2), hand.H)},
    )
    assert not convolves_in_half(graph.path)


@pytest.mark.parametrize("declared", ["initializer", "input", "value"])
def test_other_convolutions_and_other_places_of_weights(tmp_path: Path, declared: str) -> None:
    helper, half = onnx.helper, onnx.TensorProto.FLOAT16
    node = helper.make_node("NhwcConv", ["x", "weights"], ["y"], domain="com.microsoft")
    weights = helper.make_tensor_value_info("weights", half, [1, 1, 1, 1])
    x, y = (helper.make_tensor_value_info(name, half, [1, 1, 1, 1]) for name in "xy")
    held = [onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float16), "weights")]
    graph = helper.make_graph(
        [node],
        "nhwc",
        [x, weights] if declared == "input" else [x],
        [y],
        initializer=held if declared == "initializer" else [],
        value_info=[weights] if declared == "value" else [],
    )
    (tmp_path / "nhwc.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert convolves_in_half(tmp_path / "nhwc.onnx")


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"not onnx")
    with pytest.raises(EngineError, match=r"^damaged\.onnx: cannot be read as ONNX"):
        convolves_in_half(tmp_path / "damaged.onnx")


def test_graphs_of_the_phantom_keep_fp32(make_device: Any, phantom_bundle: Path) -> None:
    device = make_device()
    for graph, free in decode_graphs(Bundle.open(phantom_bundle), ["fast"]):
        device.engine.open(graph, free=free)
    assert {options["use_tf32"] for options in device.library.options} == {"0"}


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
