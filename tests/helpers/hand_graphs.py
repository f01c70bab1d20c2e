"""Graphs written by hand, small enough to follow by hand, and what an engine is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from unibrain_rt.engines import GraphSpec, Session, TensorSpec

F, H, I = "float32", "float16", "int64"
ELEMENTS = {
    F: onnx.TensorProto.FLOAT,
    H: onnx.TensorProto.FLOAT16,
    I: onnx.TensorProto.INT64,
    "bool": onnx.TensorProto.BOOL,
    "float64": onnx.TensorProto.DOUBLE,
}
Specs = dict[str, tuple[str, tuple[int | str, ...]]]


def save(
    path: Path,
    nodes: list[tuple[str, list[str], list[str]]],
    inputs: Specs,
    outputs: Specs,
    constants: dict[str, Any] | None = None,
    feedback: dict[str, str] | None = None,
    attributes: dict[str, dict[str, Any]] | None = None,
) -> GraphSpec:
    """Write an ONNX file of ``nodes`` (operator, inputs, outputs), ``attributes`` by operator, and describe it."""
    helper = onnx.helper
    values = [
        [
            helper.make_tensor_value_info(name, ELEMENTS[dtype], shape)
            for name, (dtype, shape) in specs.items()
        ]
        for specs in (inputs, outputs)
    ]
    initializers = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    body = [helper.make_node(*node, **(attributes or {}).get(node[0], {})) for node in nodes]
    model = helper.make_model(
        helper.make_graph(body, path.stem, *values, initializer=initializers),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path.write_bytes(model.SerializeToString())
    specs = [
        tuple(TensorSpec(name, dtype, shape) for name, (dtype, shape) in part.items())
        for part in (inputs, outputs)
    ]
    return GraphSpec(path.stem, path, specs[0], specs[1], feedback or {})


def adder(folder: Path, shape: tuple[int | str, ...] = (2, 3), dtype: str = F) -> GraphSpec:
    """sum = a + b."""
    return save(
        folder / "adder.onnx",
        [("Add", ["a", "b"], ["sum"])],
        {"a": (dtype, shape), "b": (dtype, shape)},
        {"sum": (dtype, shape)},
    )


def walk(folder: Path) -> GraphSpec:
    """(x, before) → (2 x + before + row, x), fed back: what a step graph does, small enough to follow by hand."""
    return save(
        folder / "walk.onnx",
        [
            ("Mul", ["x", "two"], ["double"]),
            ("Add", ["double", "before"], ["sum"]),
            ("Add", ["sum", "row"], ["next_x"]),
            ("Identity", ["x"], ["next_before"]),
        ],
        {"x": (F, (1, 2)), "before": (F, (1, 2)), "row": (F, (2,))},
        {"next_x": (F, (1, 2)), "next_before": (F, (1, 2))},
        {"two": np.float32(2)},
        {"next_x": "x", "next_before": "before"},
    )


def bound(session: Session) -> dict[str, int]:
    """Address of every tensor's memory."""
    tensors = (*session.graph.inputs, *session.graph.outputs)
    buffers = {spec.name: session.buffer(spec.name) for spec in tensors}
    return {name: buffer.ctypes.data for name, buffer in buffers.items() if isinstance(buffer, np.ndarray)}


def counter(folder: Path) -> GraphSpec:
    """(token, total) → (token + step, total + token), fed back, and the total's double: what a caption graph does."""
    return save(
        folder / "counter.onnx",
        [
            ("Add", ["token", "step"], ["next_token"]),
            ("Cast", ["token"], ["number"]),
            ("Add", ["total", "number"], ["next_total"]),
            ("Add", ["next_total", "next_total"], ["double"]),
        ],
        {"token": (I, (1,)), "total": (F, (1, 2)), "step": (I, (1,))},
        {"next_token": (I, (1,)), "next_total": (F, (1, 2)), "double": (F, (1, 2))},
        feedback={"next_token": "token", "next_total": "total"},
        attributes={"Cast": {"to": onnx.TensorProto.FLOAT}},
    )
