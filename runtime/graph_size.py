"""How much memory a bundle's decode takes: the weights that each graph loads, buffers, and ridge heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import EngineError, GraphSpec
from unibrain_rt.engines.onnx_file import read_onnx
from unibrain_rt.errors import BundleError
from unibrain_rt.subject_files import TENSOR_FILE


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
        tensors = read_onnx(path).graph.initializers
        return path.stat().st_size + sum(tensor.external.length for tensor in tensors if tensor.external)
    except EngineError as error:
        raise BundleError(str(error)) from error
