"""ONNX files of a single operator, written without the onnx library, which a machine that decodes does not have.

Wire format: https://protobuf.dev/programming-guides/encoding/; the numbers of the fields are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unibrain_rt.engines import GraphSpec, TensorSpec

_IR_VERSION, _OPSET, _FLOAT32 = 8, 17, 1
_INPUTS = {"MatMul": ("a", "b"), "Neg": ("a",)}
_DTYPE = "float32"


def write_graph(path: Path, operator: str, shape: Sequence[int]) -> GraphSpec:
    """Write a graph that gives ``y`` from ``a`` (and ``b``), all of ``shape`` in float32: MatMul of squares, or Neg."""
    names = _INPUTS[operator]
    node = (
        b"".join(_bytes(1, name.encode()) for name in names) + _bytes(2, b"y") + _bytes(4, operator.encode())
    )
    graph = _bytes(1, node) + _bytes(2, path.stem.encode())
    graph += b"".join(_bytes(11, _value(name, shape)) for name in names) + _bytes(12, _value("y", shape))
    model = _integer(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _integer(2, _OPSET))
    path.write_bytes(model)
    specs = [TensorSpec(name, _DTYPE, tuple(shape)) for name in (*names, "y")]
    return GraphSpec(path.stem, path, tuple(specs[:-1]), (specs[-1],))


def _value(name: str, shape: Sequence[int]) -> bytes:
    """A ``ValueInfoProto``."""
    sizes = b"".join(_bytes(1, _integer(1, size)) for size in shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _integer(1, _FLOAT32) + _bytes(2, sizes)))


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
