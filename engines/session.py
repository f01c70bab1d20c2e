"""Sessions: a graph with fixed shapes and fixed buffers, run again and again.

Everything a run needs is bound when a session is opened, so that running allocates nothing. Public methods check their
arguments; the ``_…_impl`` hooks of a back end do the work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array, GraphSpec

Observer = Callable[[str], AbstractContextManager[object]]
"""Given a graph's name, what a run of the graph happens in."""


class Session(ABC):
    """A graph ready to run, again and again, on the same buffers."""

    def __init__(self, graph: GraphSpec, free: int) -> None:
        self.graph = graph
        self.free = free
        self.observer: Observer | None = None

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

    def rewind(self) -> None:  # noqa: B027 - there is nothing to rewind where no buffers swap roles
        """Make the next run like the first: what was fed back is void, and is to be written again."""

    def rest(self) -> None:  # noqa: B027 - a session may as well stay as it is
        """Give back what only a run needs; inputs and outputs stay, and ``run`` works as before."""

    def run(self) -> None:
        """Run once. Outputs named in ``graph.feedback`` become the inputs of the next run, without a copy.

        Raises:
            EngineError: the back end fails.
        """
        if self.observer is None:
            self._run_impl()
            return
        with self.observer(self.graph.name):
            self._run_impl()

    @abstractmethod
    def buffer(self, name: str) -> object:
        """The memory behind a tensor, to be shared with another session of the same engine."""

    @abstractmethod
    def _run_impl(self) -> None: ...

    @abstractmethod
    def _write_impl(self, name: str, value: Array) -> None: ...

    @abstractmethod
    def _read_impl(self, name: str) -> Array: ...
