from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from unibrain_rt.export.bundles.graphs import Graph, SamplerUpdate
from unibrain_rt.export.bundles.precision import Precision
from unibrain_rt.export.bundles.trace import export_graph


class Block(nn.Module):
    """A little of everything: a projection, a normalisation, a softmax and the sampler's update."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(64, 48)
        self.norm = nn.LayerNorm(48)
        self.sampler_update = SamplerUpdate()

    def forward(self, latent: Tensor, coefficients: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        attention = torch.softmax(self.norm(self.project(latent)) @ keys, dim=-1)
        noise = attention @ keys.T @ self.project.weight
        return self.sampler_update(latent, latent, torch.cat([noise, 2 * noise]), coefficients)


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    example = {"latent": torch.randn(1, 64), "coefficients": torch.rand(7), "keys": torch.randn(48, 40)}
    return Graph("block", Block(), example, ("next_latent", "x0"))


def run(path: Path, graph: Graph) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    types = {node.name: np.float16 if "float16" in node.type else np.float32 for node in session.get_inputs()}
    return session.run(
        None, {name: value.numpy().astype(types[name]) for name, value in graph.example.items()}
    )


@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 1e-5), ("fp32-half-weights", 2e-3), ("fp16", 1e-2)])
def test_every_precision_computes_the_module(
    graph: Graph, tmp_path: Path, precision: Precision, rtol: float
) -> None:
    path = export_graph(graph, tmp_path, precision)
    onnx.checker.check_model(str(path), full_check=True)
    with torch.no_grad():
        expected = graph.module(*graph.example.values())
    for found, reference in zip(run(path, graph), expected, strict=True):
        error = np.linalg.norm(found - reference.numpy()) / np.linalg.norm(reference.numpy())
        assert error < rtol


def test_fp16_graphs_state_the_type_of_everything(graph: Graph, tmp_path: Path) -> None:
    model = onnx.load(export_graph(graph, tmp_path, "fp16"))
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    }
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert types == {
        "latent": single,
        "coefficients": single,
        "keys": half,
        "next_latent": single,
        "x0": single,
    }
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    known = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    known |= {value.name: value.data_type for value in model.graph.initializer} | types
    for node in model.graph.node:
        floats = {known[name] for name in node.input if known.get(name) in (half, single)}
        if node.op_type in ("Softmax", "LayerNormalization"):
            assert floats == {single}, node.name
        if node.op_type in ("MatMul", "Gemm"):
            assert floats == {half}, node.name


def test_half_weights_halve_the_file(graph: Graph, tmp_path: Path) -> None:
    full = export_graph(graph, tmp_path, "fp32").stat().st_size
    assert export_graph(graph, tmp_path, "fp32-half-weights").stat().st_size < 0.75 * full


def test_no_path_of_the_exporting_machine_is_kept(graph: Graph, tmp_path: Path) -> None:
    content = export_graph(graph, tmp_path, "fp32").read_bytes()
    assert b".py" not in content
    assert str(Path.home()).encode() not in content
