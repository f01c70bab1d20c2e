"""The interface every back end implements: graphs become sessions with fixed shapes and fixed buffers.

An ``Engine`` checks and opens, a ``Session`` runs. Everything a run needs is bound when a session is opened,
so that running allocates nothing. Public methods check their arguments; the ``_…_impl`` hooks of a back end
do the work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.engines.errors import EngineError

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
    """A graph file and its tensors. ``feedback`` maps an output to the input it becomes on the next run."""

    name: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feedback: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> TensorSpec:
        """The input or output called ``name``; EngineError if there is none."""
        for spec in (*self.inputs, *self.outputs):
            if spec.name == name:
                return spec
        raise EngineError(f"graph {self.name} has no tensor {name!r}")


class Session(ABC):
    """A graph ready to run, again and again, on the same buffers."""

    def __init__(self, graph: GraphSpec, free: int) -> None:
        self.graph = graph
        self.free = free

    def write(self, name: str, value: Array | np.generic | float) -> None:
        """Copy ``value`` into an input; it is broadcast and cast to the input's shape and type.

        Raises:
            EngineError: there is no such input, or ``value`` does not fit it.
        """
        spec = self.graph.tensor(name)
        if spec not in self.graph.inputs:
            raise EngineError(f"graph {self.graph.name}: {name} is an output and cannot be written")
        target = spec.sized(self.free)
        array = np.asarray(value)
        if array.shape != target:
            try:
                array = np.broadcast_to(array, target)
            except ValueError:
                problem = f"{name} has shape {target}, but {array.shape} was given"
                raise EngineError(f"graph {self.graph.name}: {problem}") from None
        if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            problem = f"{name} is {spec.dtype}, but {array.dtype} was given"
            raise EngineError(f"graph {self.graph.name}: {problem}")
        self._write_impl(name, array)

    def read(self, name: str) -> Array:
        """An output of the last run, or an input as it stands, as a copy on the host.

        Raises:
            EngineError: there is no such tensor.
        """
        return self._read_impl(self.graph.tensor(name).name)

    @abstractmethod
    def run(self) -> None:
        """Run once. Outputs named in ``graph.feedback`` become the inputs of the next run, without a copy.

        Raises:
            EngineError: the back end fails.
        """

    @abstractmethod
    def buffer(self, name: str) -> object:
        """The memory behind a tensor, to be shared with another session of the same engine."""

    @abstractmethod
    def _write_impl(self, name: str, value: Array) -> None: ...

    @abstractmethod
    def _read_impl(self, name: str) -> Array: ...


class Engine(ABC):
    """A back end."""

    name: str

    def open(self, graph: GraphSpec, *, free: int = 1, shared: Mapping[str, object] | None = None) -> Session:
        """Load a graph.

        Args:
            graph: what to load.
            free: size of the free axes, where the graph has any.
            shared: buffers of other sessions to bind instead of own ones, by tensor name.

        Raises:
            EngineError: the file cannot be loaded, or its tensors or a buffer do not fit ``graph``.
        """
        if not graph.path.is_file():
            raise EngineError(f"{graph.path.name}: the graph's file is missing; export the bundle again")
        for name in shared or {}:
            graph.tensor(name)
            if name in graph.feedback or name in graph.feedback.values():
                raise EngineError(f"graph {graph.name}: {name} is fed back and cannot be shared")
        try:
            return self._open_impl(graph, free, shared or {})
        except MemoryError as error:
            raise EngineError(f"graph {graph.name}: does not fit in memory; close other programs") from error

    @abstractmethod
    def describe(self) -> dict[str, str | int]:
        """Name, version and device, for reports."""

    @abstractmethod
    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session: ...
