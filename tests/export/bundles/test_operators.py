from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unibrain_rt.export.bundles.graphs import Graph
from unibrain_rt.export.bundles.operators import ATTENTION, ATTENTION_DOMAIN
from unibrain_rt.export.bundles.precision import Precision
from unibrain_rt.export.bundles.trace import export_graph

HEADS, WIDTH = 4, 8


class Attention(nn.Module):
    """Attention of queries (B, HEADS, L, WIDTH) to keys and values, with or without a mask."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)


class Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


def attention_graph(queries: int, keys: int, mask: Tensor | None = None) -> Graph:
    torch.manual_seed(0)
    example = {
        "query": 3 * torch.randn(2, HEADS, queries, WIDTH),
        "key": torch.randn(2, HEADS, keys, WIDTH),
        "value": torch.randn(2, HEADS, keys, WIDTH),
    }
    if mask is not None:
        example["mask"] = mask
    return Graph("attention", Attention(), example, ("mixed",))


def run(model: onnx.ModelProto, graph: Graph) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    half = {node.name for node in session.get_inputs() if "float16" in node.type}
    feed = {
        name: value.numpy().astype(np.float16) if name in half else value.numpy()
        for name, value in graph.example.items()
    }
    return np.asarray(session.run(None, feed)[0], dtype=np.float32)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def relative_error(found: np.ndarray, expected: Tensor) -> float:
    return float(np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected.numpy()))


@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_self_attention_is_one_node_with_its_meaning(
    tmp_path: Path, precision: Precision, rtol: float
) -> None:
    graph = attention_graph(33, 33)
    model = onnx.load(export_graph(graph, tmp_path, precision))
    onnx.checker.check_model(model, full_check=True)
    expected = graph.module(*graph.example.values())
    assert operators(model).count(ATTENTION) == 1
    assert "Softmax" not in operators(model)
    assert relative_error(run(model, graph), expected) < rtol
    # An engine without such a kernel replaces the node by the function's body, standard operators alone.
    plain = onnx.inliner.inline_local_functions(model)
    assert {node.domain for node in plain.graph.node} <= {"", "ai.onnx"}
    assert relative_error(run(plain, graph), expected) < rtol


def test_onnx_runtime_runs_its_own_kernel_for_it(tmp_path: Path) -> None:
    graph = attention_graph(33, 33)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(
        str(export_graph(graph, tmp_path, "fp32")), options, providers=["CPUExecutionProvider"]
    )
    session.run(None, {name: value.numpy() for name, value in graph.example.items()})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {event["args"]["op_name"] for event in events if event.get("args", {}).get("op_name")}
    assert ATTENTION in ran
    assert "Softmax" not in ran


@pytest.mark.parametrize(
    "mask",
    [
        None,
        torch.linspace(-2, 0, 7).expand(2, 1, 33, 7).contiguous(),
        (torch.arange(7) < 5).expand(2, 1, 33, 7).contiguous(),
    ],
    ids=["no mask", "added", "seen or not"],
)
def test_attention_to_other_keys_is_standard(tmp_path: Path, mask: Tensor | None) -> None:
    graph = attention_graph(33, 7, mask)
    model = onnx.load(export_graph(graph, tmp_path, "fp32"))
    assert not model.functions
    assert ATTENTION_DOMAIN not in {entry.domain for entry in model.opset_import}
    assert relative_error(run(model, graph), graph.module(*graph.example.values())) < 1e-5


def test_gelu_is_fused_by_onnx_runtime(tmp_path: Path) -> None:
    graph = Graph("gelu", Gelu(), {"x": torch.linspace(-6, 6, 64)[None]}, ("y",))
    model = onnx.load(export_graph(graph, tmp_path, "fp32"))
    assert relative_error(run(model, graph), graph.module(*graph.example.values())) < 1e-6
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert operators(onnx.load(tmp_path / "optimised.onnx")) == ["Gelu"]
