from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unibrain_rt.export.bundles.graphs import Graph
from unibrain_rt.export.bundles.trace import export_graph


class Parts(nn.Module):
    """A weight of which parts are used apart, and the first of them once more, transposed."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.layer = nn.Linear(64, sum(sizes))

    def forward(self, x: Tensor) -> Tensor:
        weights, biases = self.layer.weight.split(self.sizes), self.layer.bias.split(self.sizes)
        given = [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        return torch.cat([*given, given[0] @ weights[0]], dim=-1)


@pytest.mark.parametrize("sizes", [(48, 48), (40, 40, 16)], ids=["halves", "a smaller rest"])
def test_parts_of_a_weight_are_stored_apart(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = Parts(sizes).eval()
    graph = Graph("parts", module, {"x": torch.randn(1, 3, 64)}, ("y",))
    path = export_graph(graph, tmp_path, "fp32")
    model = onnx.load(path)
    assert not {"Split", "Slice", "Transpose"} & {node.op_type for node in model.graph.node}
    shapes = sorted(tuple(tensor.dims) for tensor in model.graph.initializer)
    expected = [*((size,) for size in sizes), *((64, size) for size in sizes), (sizes[0], 64)]
    assert shapes == sorted(expected)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": graph.example["x"].numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, module(graph.example["x"]).numpy(), rtol=1e-4, atol=1e-5)
