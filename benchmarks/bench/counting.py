"""FLOPs and bytes of one run of a graph, counted from its ONNX file.

FLOPs are those of matrix products, convolutions and attention, two for each multiplication and its addition, as torch's
own counter has them (``torch.utils.flop_counter``). Everything else is far below one part in a hundred of them.

Bytes are those that have to move where nothing is kept from one run to the next: weights, once; and activations, as
they go into matrix products, convolutions and attention and come out of them. What stands between those (norms,
activation functions, additions) is counted as if it were fused into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from unibrain_rt.benchmarks.bench.shapes import Shapes
from unibrain_rt.engines import EngineError
from unibrain_rt.engines.onnx_file import Graph, Node, read_onnx

_ATTENTION = "MultiHeadAttention"
_MATRICES = frozenset({"MatMul", "Gemm", "Conv", _ATTENTION})
_FLOATS = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True)
class Work:
    """Of one run. ``stored_bytes`` are the weights as they lie in files, of whatever type.

    ``weight_numbers`` and ``activation_numbers`` are read and written as ``bytes_per_number`` each, which is the width
    that the graph computes in; weights that are stored in half are widened when a graph is loaded.
    """

    flops: int
    weight_numbers: int
    activation_numbers: int
    stored_bytes: int
    bytes_per_number: int

    @property
    def weight_bytes(self) -> int:
        return self.weight_numbers * self.bytes_per_number

    @property
    def activation_bytes(self) -> int:
        return self.activation_numbers * self.bytes_per_number

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


def count_work(path: Path, free: int = 1) -> Work:
    """Count a graph's work, its free axes set to ``free``.

    Raises:
        EngineError: the file cannot be read, or has operators that are not known here.
    """
    return _Count(read_onnx(path).graph, free).work


class _Count:
    def __init__(self, graph: Graph, free: int) -> None:
        self._graph = graph
        if subgraphs := [node.op_type for node in graph.nodes if node.subgraphs]:
            raise EngineError(f"graph {graph.name}: the work of {subgraphs[0]} cannot be counted beforehand")
        self._known = Shapes(graph, free)
        self._shapes = self._known.shapes

    @cached_property
    def work(self) -> Work:
        constants = self._constants()
        matrices = [node for node in self._graph.nodes if node.op_type in _MATRICES]
        moving = [node for node in matrices if not set(node.outputs) <= constants]
        widths = [self._width(node.outputs[0]) for node in moving]
        return Work(
            flops=sum(self._flops(node) for node in moving),
            weight_numbers=self._weights(constants),
            activation_numbers=sum(self._moved(node, constants) for node in moving),
            stored_bytes=stored_bytes(self._graph),
            bytes_per_number=max(set(widths), key=widths.count, default=4),
        )

    def _constants(self) -> set[str]:
        """Tensors that no input changes: weights, and what a back end computes of them once."""
        known = {tensor.name for tensor in self._graph.initializers} | {""}
        for node in self._graph.nodes:
            # A shape is known although its tensor is not.
            if node.op_type == "Shape" or set(node.inputs) <= known:
                known.update(node.outputs)
        return known

    def _weights(self, constants: set[str]) -> int:
        """Numbers that a run reads of constants: whole ones, but of a table the rows that are looked up."""
        read: dict[str, int] = {}
        for node in self._graph.nodes:
            if set(node.outputs) <= constants:
                continue
            for place, name in enumerate(node.inputs):
                if name not in constants or not name or self._kind(name) not in _FLOATS:
                    continue
                looked_up = node.op_type == "Gather" and place == 0
                numbers = prod(self._shapes[node.outputs[0] if looked_up else name])
                read[name] = max(numbers, read.get(name, 0))
        return sum(read.values())

    def _moved(self, node: Node, constants: set[str]) -> int:
        inputs = (name for name in node.inputs if name and name not in constants)
        return sum(prod(self._shapes[name]) for name in (*inputs, *node.outputs) if name)

    def _flops(self, node: Node) -> int:
        given = [self._shapes[name] for name in node.inputs if name]
        out = self._shapes[node.outputs[0]]
        if node.op_type == "Conv":
            return 2 * prod(out) * prod(given[1][1:])
        if node.op_type == _ATTENTION:
            # (batch, tokens, heads x width): the products of queries and keys, and of their weights and values.
            (batch, queries, width), (_, keys, _), (*_, values) = given[:3]
            return 2 * batch * queries * keys * (width + values)
        inner = given[0][0] if node.op_type == "Gemm" and node.attributes.get("transA") else given[0][-1]
        return 2 * prod(out) * inner

    def _kind(self, name: str) -> str:
        return self._known.types.get(name, "float32")

    def _width(self, name: str) -> int:
        return _FLOATS.get(self._kind(name), 4)


def stored_bytes(graph: Graph) -> int:
    """Bytes of a graph's weights as they are stored, each once."""
    own = sum(tensor.inline_bytes for tensor in graph.initializers)
    return own + sum(end - start for spans in external_spans(graph).values() for start, end in spans)


def external_spans(graph: Graph) -> dict[str, list[tuple[int, int]]]:
    """By file, from where to where a graph's weights lie in it; spans that meet or overlap are joined."""
    found: dict[str, list[tuple[int, int]]] = {}
    for tensor in graph.initializers:
        if tensor.external is not None and tensor.external.length:
            place = tensor.external
            found.setdefault(place.location, []).append((place.offset, place.offset + place.length))
    return {name: joined(spans) for name, spans in found.items()}


def joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, with those that meet or overlap made one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
