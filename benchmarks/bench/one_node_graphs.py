"""ONNX files of a single operator, for a machine's rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unibrain_rt.engines import GraphSpec, TensorSpec
from unibrain_rt.engines.onnx_file import writing

_INPUTS = {"MatMul": ("a", "b"), "Neg": ("a",)}
_DTYPE = "float32"


def write_graph(path: Path, operator: str, shape: Sequence[int]) -> GraphSpec:
    """Write a graph that gives ``y`` from ``a`` (and ``b``), all of ``shape`` in float32: MatMul of squares, or Neg."""
    names = _INPUTS[operator]
    nodes = [writing.node(operator, names, "y")]
    path.write_bytes(writing.model(path.stem, nodes, dict.fromkeys(names, shape), {"y": shape}))
    specs = [TensorSpec(name, _DTYPE, tuple(shape)) for name in (*names, "y")]
    return GraphSpec(path.stem, path, tuple(specs[:-1]), (specs[-1],))
