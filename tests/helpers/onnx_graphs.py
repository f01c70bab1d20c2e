"""Graphs for the stand-in of TensorRT that are really computed: ONNX Runtime runs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from stand_in_graphs import Tensor

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class OnnxGraph:
    """A file's graph, computed on the CPU."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        # As our own engine: products with int8 weights in fp32, not in int8.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {node.name: _tensor(node) for node in self._session.get_inputs()}
        self.outputs = {node.name: _tensor(node) for node in self._session.get_outputs()}

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        results: list[np.ndarray[Any, Any]] = self._session.run(None, dict(feeds))
        return results


class OnnxGraphs:
    def operators(self, path: str) -> Iterable[tuple[str, str]]:
        model = onnx.load(path, load_external_data=False)
        return [(node.op_type, node.name) for node in model.graph.node]

    def open(self, path: str) -> OnnxGraph:
        return OnnxGraph(path)


def _tensor(node: Any) -> Tensor:
    return Tensor(_DTYPES[node.type], tuple(size if isinstance(size, int) else -1 for size in node.shape))
