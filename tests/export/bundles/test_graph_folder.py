"""The graphs of a bundle as they are written: shared weights, and the fp32 twins of fp16 graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from unibrain_rt.export.bundles.graph_folder import GraphFolder, WeightFile, save_graph

SINGLE, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def model(name: str, scale: float = 1.0) -> ir.Model:
    """keys = LayerNormalization(latent @ matrix), squared: (1, 64) → (1, 256); the matrix is times ``scale``."""
    random = np.random.default_rng(0)
    constants = {
        "matrix": (scale * random.standard_normal((64, 256))).astype(np.float32),
        "weight": random.standard_normal(256).astype(np.float32),
        "bias": random.standard_normal(256).astype(np.float32),
        "shift": random.standard_normal(256).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["latent", "matrix"], ["product"]),
        helper.make_node("Mul", ["product", "product"], ["square"]),
        helper.make_node("LayerNormalization", ["square", "weight", "bias"], ["normal"], axis=-1),
        helper.make_node("Add", ["normal", "values"], ["sum"]),
        helper.make_node("Add", ["sum", "shift"], ["keys"]),
    ]
    inputs = [
        helper.make_tensor_value_info("latent", SINGLE, [1, 64]),
        helper.make_tensor_value_info("values", SINGLE, [1, 256]),
    ]
    outputs = [helper.make_tensor_value_info("keys", SINGLE, [1, 256])]
    between = [
        helper.make_tensor_value_info(x, SINGLE, [1, 256]) for x in ("product", "square", "normal", "sum")
    ]
    tensors = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializer=tensors, value_info=between)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ir.serde.deserialize_model(made)


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    latent = random.standard_normal((1, 64)).astype(np.float32)
    values = random.standard_normal((1, 256)).astype(np.float16)
    types = {node.name: node.type for node in session.get_inputs()}
    if types["values"] == "tensor(float)":
        values = values.astype(np.float32)
    found: np.ndarray = session.run(None, {"latent": latent, "values": values})[0]
    return found


def borders(path: Path) -> list[tuple[Any, ...]]:
    graph = onnx.load(path, load_external_data=False).graph
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    ]


def places(path: Path) -> dict[str, tuple[str, str]]:
    """File and offset of every tensor that lies outside the graph."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        about = {entry.key: entry.value for entry in tensor.external_data}
        if about:
            found[tensor.name] = (about["location"], about["offset"])
    return found


@pytest.mark.parametrize("name", ["unet_context", "autokl_decode"])
def test_a_twin_computes_in_fp32_from_the_same_weights(tmp_path: Path, name: str) -> None:
    with GraphFolder(tmp_path / "fp32", "fp32") as single:
        single.add(model(name), {})
    with GraphFolder(tmp_path / "graphs", "fp16") as half:
        half.add(model(name), {})
    record = half.records[name]
    weights = "unet.weights" if name.startswith("unet_") else f"{name}.weights"
    assert record["fallback"] == f"graphs/{name}.fp32.onnx"
    assert record["weights"] == [f"graphs/{weights}"]
    graph, twin = tmp_path / "graphs" / f"{name}.onnx", tmp_path / "graphs" / f"{name}.fp32.onnx"
    onnx.checker.check_model(str(twin), full_check=True)
    assert borders(twin) == borders(graph) == [
        ("latent", SINGLE, [1, 64]), ("values", HALF, [1, 256]), ("keys", HALF, [1, 256])
    ]  # fmt: skip
    assert places(twin) == places(graph)
    assert set(places(graph)) == {"matrix_half", "weight", "bias"}
    types = {node.op_type for node in onnx.load(twin).graph.node}
    assert types == {"Cast", "MatMul", "Mul", "LayerNormalization", "Add"}
    expected = run(tmp_path / "fp32" / f"{name}.onnx")
    for path, bound in ((graph, 5e-3), (twin, 1e-3)):
        found = run(path).astype(np.float64)
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < bound


def test_a_flavour_lies_beside_its_graph_and_reads_its_weights(tmp_path: Path) -> None:
    with GraphFolder(tmp_path / "graphs", "fp16") as half:
        half.add(model("autokl_decode"), {})
        half.add(model("unet_context"), {})
    assert half.records["autokl_decode"]["flavours"] == {"cuda": "graphs/autokl_decode.cuda.onnx"}
    assert "flavours" not in half.records["unet_context"], "it runs once a decode"
    graph, flavour = (tmp_path / "graphs" / f"autokl_decode{kind}.onnx" for kind in ("", ".cuda"))
    assert borders(flavour) == borders(graph)
    assert places(flavour)["matrix_half"] == places(graph)["matrix_half"]
    assert places(graph)["matrix_half"][0] == "autokl_decode.weights"
    # Kernels sum in fp32 what they normalise: no casts are needed for that.
    norm = next(node for node in onnx.load(flavour).graph.node if node.op_type == "LayerNormalization")
    assert norm.input[1] == "weight_half"
    expected = run(graph).astype(np.float64)
    assert np.linalg.norm(run(flavour) - expected) / np.linalg.norm(expected) < 5e-3


def test_a_twin_holds_what_fp16_cannot(tmp_path: Path) -> None:
    """Squares above 65504 in the middle, normalised in the end. (On a CPU they would not show: it computes in fp32.)"""
    from onnx.reference import ReferenceEvaluator

    with GraphFolder(tmp_path / "graphs", "fp16") as half:
        half.add(model("unet_context", scale=50.0), {})
    given = {
        "latent": np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32),
        "values": np.zeros((1, 256), np.float16),
    }
    with np.errstate(all="ignore"):
        graph, twin = (
            ReferenceEvaluator(onnx.load(tmp_path / "graphs" / name)).run(None, given)[0]
            for name in ("unet_context.onnx", "unet_context.fp32.onnx")
        )
    assert not np.isfinite(graph).all()
    assert np.isfinite(twin).all()


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("unet_context", "fp32"),
        ("unet_context", "fp32-half-weights"),
        ("unet_time", "fp16"),
        ("clip_text", "fp16"),
    ],
)
def test_no_other_graph_has_a_twin(tmp_path: Path, name: str, precision: Any) -> None:
    with GraphFolder(tmp_path / "graphs", precision) as written:
        written.add(model(name), {"keys": "values"})
    assert not {"fallback", "flavours"} & written.records[name].keys()
    assert written.records[name]["feedback"] == {"keys": "values"}
    shared = ["graphs/unet.weights"] if name.startswith("unet_") else []
    assert written.records[name]["weights"] == shared
    assert {path.name for path in (tmp_path / "graphs").iterdir()} == {f"{name}.onnx", "unet.weights"}


def test_graphs_share_equal_weights_in_one_file(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "all.weights") as weights:
        save_graph(model("block"), tmp_path / "block.onnx", weights)
        once = (tmp_path / "all.weights").stat().st_size
        assert save_graph(model("again"), tmp_path / "again.onnx", weights) == ["all.weights"]
        assert (tmp_path / "all.weights").stat().st_size == once
    np.testing.assert_array_equal(run(tmp_path / "block.onnx"), run(tmp_path / "again.onnx"))


def test_large_weights_lie_beside_their_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert save_graph(model("block"), tmp_path / "inside.onnx") == []
    monkeypatch.setattr("unibrain_rt.export.bundles.graph_folder.EXTERNAL_BYTES", 1000)
    assert save_graph(model("block"), tmp_path / "block.onnx") == ["block.weights"]
    assert (tmp_path / "block.onnx").stat().st_size < 3000 < (tmp_path / "inside.onnx").stat().st_size
    np.testing.assert_array_equal(run(tmp_path / "block.onnx"), run(tmp_path / "inside.onnx"))


def test_weights_of_another_folder_are_not_referred_to(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with WeightFile(tmp_path / "old" / "all.weights") as weights:
        save_graph(model("block"), tmp_path / "old" / "block.onnx", weights)
    expected = run(tmp_path / "old" / "block.onnx")
    assert save_graph(ir.load(tmp_path / "old" / "block.onnx"), tmp_path / "new" / "block.onnx") == []
    np.testing.assert_array_equal(run(tmp_path / "new" / "block.onnx"), expected)


def test_equal_bytes_of_another_type_are_stored_apart(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "all.weights") as weights:
        single = weights.store(ir.tensor(np.zeros(320, np.float32)))
        again = weights.store(ir.tensor(np.zeros((20, 16), np.float32)))
        half = weights.store(ir.tensor(np.zeros(640, np.float16)))
    assert single.offset == again.offset
    assert single.offset != half.offset
