"""What a graph file is: its tensors, what is fed back, its other forms, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unibrain_rt.engines.buffers import BufferRoles
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_costs import GraphCosts

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy type and shape of a tensor; a text among the sizes names a free axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def sized(self, free: int) -> tuple[int, ...]:
        """The shape with every free axis set to ``free``."""
        return tuple(size if isinstance(size, int) else free for size in self.shape)


@dataclass(frozen=True)
class GraphSpec:
    """A graph file and its tensors.

    ``feedback`` maps an output to the input it becomes on the next run. ``files`` is the SHA-256 of the file and of
    every file of weights that it names, by file name; of its other forms, too. ``fallback`` is a graph of the same
    tensors that computes in fp32, for where this one's numbers leave the range of its type. ``flavours`` are graphs of
    the same tensors and meaning in the operators of one engine, by the engine's `Engine.flavour`; how many nodes of
    each of those operators they have, ``flavour_operators`` tells. ``costs`` is None for graphs that were exported
    before costs were counted, and for what is no part of a model.
    """

    name: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feedback: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    fallback: Path | None = None
    flavours: Mapping[str, Path] = field(default_factory=dict)
    costs: GraphCosts | None = None
    flavour_operators: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def flavoured(self, flavour: str | None) -> GraphSpec:
        """The graph in an engine's flavour, where there is one."""
        path = self.flavours.get(flavour or "")
        if path is None:
            return self
        costs, operators = self.costs, self.flavour_operators.get(flavour or "")
        if costs is not None:
            costs = None if operators is None else replace(costs, operators=operators)
        return replace(self, path=path, flavours={}, costs=costs)

    def in_fp32(self) -> GraphSpec:
        """The graph's fallback, where there is one."""
        if self.fallback is None:
            return self
        costs = None if self.costs is None else replace(self.costs, bytes_per_number=4)
        return replace(self, path=self.fallback, fallback=None, flavours={}, costs=costs)

    @property
    def roles(self) -> BufferRoles:
        """What part the buffer of each tensor plays."""
        inputs, outputs = (tuple(spec.name for spec in specs) for specs in (self.inputs, self.outputs))
        return BufferRoles(inputs, outputs, self.feedback)

    def tensor(self, name: str) -> TensorSpec:
        """The input or output called ``name``; EngineError if there is none."""
        for spec in (*self.inputs, *self.outputs):
            if spec.name == name:
                return spec
        raise EngineError(f"graph {self.name} has no tensor {name!r}")
