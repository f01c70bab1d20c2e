"""The interface every back end implements: an engine opens graphs as sessions, and makes programs of those."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array, GraphSpec, TensorSpec
from unibrain_rt.engines.program import Call, HostProgram, Program
from unibrain_rt.engines.repetition import Repetition
from unibrain_rt.engines.session import Observer, Session


class Engine(ABC):
    """A back end. ``concurrent``: programs that were started run at the same time.

    ``on_device``: buffers lie on a device, and what passes between the calls of its programs does not leave it.
    """

    name: str
    flavour: str | None = None
    """Which of a graph's `GraphSpec.flavours` is opened instead of the plain one, if it has it."""
    concurrent = False
    on_device = False
    passed_over: tuple[object, ...] = ()
    """What ``auto`` tried before it took this one: a `catalogue.Probe` each."""
    _observer: Observer | None = None

    def unready(self, graphs: Sequence[tuple[GraphSpec, int]]) -> str | None:
        """Why opening these graphs, of so large free axes, would take minutes; None where it would not."""
        return None

    def check(self, graph: GraphSpec, free: int = 1) -> None:  # noqa: B027 - most back ends have nothing to look for
        """Open a graph to see whether it runs as fast as it was made to, where a back end can tell.

        Raises:
            EngineError: it does not, or cannot be opened.
        """

    def open(self, graph: GraphSpec, *, free: int = 1, shared: Mapping[str, object] | None = None) -> Session:
        """Load a graph.

        Args:
            graph: what to load.
            free: size of the free axes, where the graph has any.
            shared: buffers of other sessions to bind instead of own ones, by tensor name.

        Raises:
            EngineError: the file cannot be loaded, or its tensors or a buffer do not fit ``graph``.
        """
        graph = graph.flavoured(self.flavour)
        if not graph.path.is_file():
            raise EngineError(f"{graph.path.name}: the graph's file is missing; export the bundle again")
        for name in shared or {}:
            graph.tensor(name)
            if name in graph.roles.fed_back:
                raise EngineError(f"graph {graph.name}: {name} is fed back and cannot be shared")
        try:
            session = self._open_impl(graph, free, shared or {})
        except MemoryError as error:
            raise EngineError(f"graph {graph.name}: does not fit in memory; close other programs") from error
        session.observer = self._observer
        return session

    def observe(self, observer: Observer) -> None:
        """Have every run of the sessions that are opened from now on happen within ``observer(name of the graph)``.

        Such as to time them: a context manager is entered before each run and left after it. Runs that a device goes
        through by itself, in a program, are not seen.
        """
        self._observer = observer

    def program(self, calls: Sequence[Call]) -> Program:
        """Make a program of sessions of this engine; see `Call`. Raises EngineError."""
        return HostProgram(calls)

    def repetition(
        self, session: Session, output: str, *, until: int, at_most: int, initial: Mapping[str, Array]
    ) -> Repetition:
        """Runs of a session of this engine until ``output`` is ``until``; see `Repetition`. Raises EngineError."""
        return Repetition(session, output, until, at_most, initial)

    def allocate(self, spec: TensorSpec, free: int = 1) -> object:
        """A buffer of zeros for a tensor, to be shared by sessions."""
        return np.zeros(spec.sized(free), dtype=spec.dtype)

    def fetch(self, buffer: object) -> Array:
        """What a buffer of ``allocate`` holds, as a copy on the host."""
        return np.array(buffer)

    @abstractmethod
    def describe(self) -> dict[str, str | int]:
        """Name, version and device, for reports."""

    @abstractmethod
    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session: ...
