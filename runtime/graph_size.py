"""How much memory a bundle's decode takes: the weights that each graph loads, buffers, and ridge heads; and what the
manifest tells of a graph's costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import GraphSpec
from unibrain_rt.engines.graph_costs import GraphCosts
from unibrain_rt.errors import BundleError
from unibrain_rt.subject_files import TENSOR_FILE


@dataclass(frozen=True)
class DecodeMemory:
    """Bytes that a decode needs, by estimate. What a back end needs for itself comes on top.

    ``graphs`` are the weights of each graph, as they are stored, and ``held`` the activations that its runs hold at
    once, which back ends keep for the next run. ``buffers_bytes`` are all inputs and outputs. ``heads_bytes`` is the
    largest subject's file: mapped on the host, and where an engine applies the heads on a device, held there, too.
    """

    graphs: dict[str, int]
    held: dict[str, int]
    buffers_bytes: int
    heads_bytes: int

    @property
    def weights_bytes(self) -> int:
        return sum(self.graphs.values())

    @property
    def largest_bytes(self) -> int:
        """Weights of the largest graph."""
        return max(self.graphs.values(), default=0)

    @property
    def held_bytes(self) -> int:
        return sum(self.held.values())

    def needed_bytes(self, *, low_memory: bool = False, heads: bool = True) -> int:
        """With ``heads`` wherever they are applied, which with low memory is the host."""
        loaded = [weights + self.held.get(name, 0) for name, weights in self.graphs.items()]
        graphs = max(loaded, default=0) if low_memory else sum(loaded)
        return graphs + self.buffers_bytes + (self.heads_bytes if heads else 0)


def decode_memory(bundle: Bundle, graphs: Sequence[tuple[GraphSpec, int]]) -> DecodeMemory:
    """What ``graphs``, with the size of their free axes, and the bundle's subjects need.

    Raises:
        BundleError: the bundle is too old to tell.
    """
    names = [f"subjects/{name}/{TENSOR_FILE}" for name in bundle.subjects]
    weights: dict[str, int] = {}
    buffers: dict[str, int] = {}
    held: dict[str, int] = {}
    for graph, free in graphs:
        costs = costs_of(bundle, graph.name)
        weights[graph.name] = costs.stored_bytes
        held[graph.name] = max(costs.sized(free).held_bytes or 0, held.get(graph.name, 0))
        sizes = [
            prod(spec.sized(free)) * np.dtype(spec.dtype).itemsize for spec in (*graph.inputs, *graph.outputs)
        ]
        buffers[graph.name] = max(sum(sizes), buffers.get(graph.name, 0))
    heads = max((bundle.files[name].size_bytes for name in names if name in bundle.files), default=0)
    return DecodeMemory(weights, held, sum(buffers.values()), heads)


def costs_of(bundle: Bundle, graph: str) -> GraphCosts:
    """What the manifest tells of a graph's costs.

    Raises:
        BundleError: there is no such graph, or it was exported before all of its costs were counted.
    """
    costs = bundle.graph(graph).costs
    if costs is None or not costs.complete:
        raise BundleError(
            f"{bundle.folder}: does not tell what its graphs cost, as bundles do from now on; decodes need none of it, "
            "but this does: export the bundle again"
        )
    return costs
