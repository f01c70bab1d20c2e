"""How much memory a bundle's decode takes: the weights that each graph loads, buffers, and ridge heads."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import GraphSpec
from unibrain_rt.errors import BundleError
from unibrain_rt.subject import TENSOR_FILE

# Numbers of the fields of ONNX's messages, onnx.proto: ModelProto.graph, GraphProto.initializer,
# TensorProto.external_data, StringStringEntryProto.key and .value.
_GRAPH, _INITIALIZER, _EXTERNAL, _KEY, _VALUE = 7, 5, 13, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class DecodeMemory:
    """Bytes that a decode needs, by estimate. What a back end computes with comes on top.

    ``graphs`` are the weights of each graph: the ONNX file, and what it names of other files. ``buffers_bytes`` are
    all inputs and outputs. ``heads_bytes`` is the largest subject's file: mapped on the host, and where an engine
    applies the heads on a device, held there, too.
    """

    graphs: dict[str, int]
    buffers_bytes: int
    heads_bytes: int

    @property
    def weights_bytes(self) -> int:
        return sum(self.graphs.values())

    @property
    def largest_bytes(self) -> int:
        """Weights of the largest graph: what is loaded at a time with little memory."""
        return max(self.graphs.values(), default=0)

    def needed_bytes(self, *, low_memory: bool = False, heads: bool = True) -> int:
        """With ``heads`` wherever they are applied, which with low memory is the host."""
        weights = self.largest_bytes if low_memory else self.weights_bytes
        return weights + self.buffers_bytes + (self.heads_bytes if heads else 0)


def decode_memory(bundle: Bundle, graphs: Sequence[tuple[GraphSpec, int]]) -> DecodeMemory:
    """What ``graphs``, with the size of their free axes, and the bundle's subjects need. Raises BundleError."""
    names = [f"subjects/{name}/{TENSOR_FILE}" for name in bundle.subjects]
    weights: dict[str, int] = {}
    buffers: dict[str, int] = {}
    for graph, free in graphs:
        weights[graph.name] = weight_bytes(graph.path)
        sizes = [
            prod(spec.sized(free)) * np.dtype(spec.dtype).itemsize for spec in (*graph.inputs, *graph.outputs)
        ]
        buffers[graph.name] = max(sum(sizes), buffers.get(graph.name, 0))
    heads = max((bundle.files[name].size_bytes for name in names if name in bundle.files), default=0)
    return DecodeMemory(weights, sum(buffers.values()), heads)


def weight_bytes(path: Path) -> int:
    """Size of an ONNX file and of what its initializers name of other files, in bytes.

    Raises:
        BundleError: the file cannot be read, or is no ONNX.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return len(data) + sum(_external_lengths(data))
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{path}: cannot be read as ONNX ({error}); export the bundle again") from error


def _external_lengths(data: mmap.mmap) -> Iterator[int]:
    for graph in _fields(data, (0, len(data)), _GRAPH):
        for tensor in _fields(data, graph, _INITIALIZER):
            for entry in _fields(data, tensor, _EXTERNAL):
                key, value = (
                    b"".join(data[start:end] for start, end in _fields(data, entry, number))
                    for number in (_KEY, _VALUE)
                )
                if key == b"length":
                    yield int(value)


def _fields(data: mmap.mmap, span: tuple[int, int], wanted: int) -> Iterator[tuple[int, int]]:
    """Where the fields of bytes with that number lie in a message of protocol buffers. Raises ValueError."""
    place, end = span
    while place < end:
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == _VARINT:
            _, place = _varint(data, place)
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            length, place = _varint(data, place)
            if place + length > end:
                raise ValueError("a field ends after its message")
            if tag >> 3 == wanted:
                yield place, place + length
            place += length
        else:
            raise ValueError(f"no field is of kind {kind}")


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number has too many bytes")
