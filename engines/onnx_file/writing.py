"""Small ONNX files written without the onnx library, which a machine that decodes does not have.

Tensors are in fp32. Wire format: https://protobuf.dev/programming-guides/encoding/; the numbers of the fields are those
of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_IR_VERSION, _OPSET, _FLOAT32 = 8, 17, 1


def node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    """A ``NodeProto`` without attributes."""
    names = b"".join(_bytes(1, name.encode()) for name in inputs)
    return names + _bytes(2, output.encode()) + _bytes(4, operator.encode())


def model(
    name: str,
    nodes: Sequence[bytes],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
) -> bytes:
    """A ``ModelProto`` of nodes, and of its inputs' and outputs' shapes by name."""
    graph = b"".join(_bytes(1, each) for each in nodes) + _bytes(2, name.encode())
    graph += b"".join(_bytes(11, _value(*each)) for each in inputs.items())
    graph += b"".join(_bytes(12, _value(*each)) for each in outputs.items())
    return _integer(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _integer(2, _OPSET))


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
