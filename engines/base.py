"""The interface every back end implements: graphs become sessions with fixed shapes and fixed buffers.

An ``Engine`` checks and opens, a ``Session`` runs, and a ``Program`` runs several sessions one after another,
many times each, with nothing computed on the host between. Everything a run needs is bound when a session is
opened, so that running allocates nothing. Public methods check their arguments; the ``_…_impl`` hooks of a
back end do the work.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.engines.buffers import BufferRoles
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_costs import GraphCosts

Array = NDArray[Any]
Progress = Callable[[int], None]
"""Called with the number of counted runs just done."""
Observer = Callable[[str], AbstractContextManager[object]]
"""Given a graph's name, what a run of the graph happens in."""


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


@dataclass(frozen=True, eq=False)
class Call:
    """``runs`` runs of a session within a program.

    ``tables`` maps an input to rows (runs, *shape): run i reads row i. ``takes`` maps an input to the output of
    another session's earlier call, which it reads from the first run on. ``starts`` does so for an input that is fed
    back: the first run reads it there, all others what their own session gave; the other session's call may also be in
    a program that was started before. ``counted`` runs are those that progress is told of. ``name`` is what the call's
    time stands under in `Program.milliseconds`; by default the graph's name.
    """

    session: Session
    runs: int = 1
    tables: Mapping[str, Array] = field(default_factory=dict)
    takes: Mapping[str, tuple[Session, str]] = field(default_factory=dict)
    starts: Mapping[str, tuple[Session, str]] = field(default_factory=dict)
    counted: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.session.graph.name)


class Program(ABC):
    """Calls made one after another. What is written to their sessions before ``start`` is what they work on."""

    def __init__(self, calls: Sequence[Call]) -> None:
        """Raises EngineError: a table does not have a row of the input's shape a run, or what is taken does not fit."""
        self.calls = tuple(replace(call, tables=_cast_tables(call)) for call in calls)
        for call in self.calls:
            _check_given(call)
        self.milliseconds: dict[str, float] = {}
        """How long the calls of the last run took, by `Call.name`, on the device's own clock where it has one."""
        self._note([0.0] * len(self.calls))

    @abstractmethod
    def start(self, progress: Progress | None = None) -> None:
        """Begin; returns at once where the back end can. One program at a time may use a session.

        Raises:
            EngineError: the back end fails.
        """

    @abstractmethod
    def finish(self) -> None:
        """Wait for the end; outputs can be read, and ``milliseconds`` holds.

        Raises:
            EngineError: the back end failed.
        """

    def _note(self, spent: Iterable[float]) -> None:
        """Keep what each call took, in their order; calls of one name add up."""
        times: dict[str, float] = {}
        for call, milliseconds in zip(self.calls, spent, strict=True):
            times[call.name] = times.get(call.name, 0.0) + milliseconds
        self.milliseconds = times


class HostProgram(Program):
    """A program that this thread runs, call by call, before ``start`` returns."""

    def start(self, progress: Progress | None = None) -> None:
        spent = []
        for call in self.calls:
            begun = time.perf_counter()
            session = call.session
            for name, (source, output) in {**call.takes, **call.starts}.items():
                session.write(name, source.read(output))
            for place in range(call.runs):
                for name, table in call.tables.items():
                    # Checked and cast when the program was made: after a run, every line here misses its caches.
                    session._write_impl(name, table[place])
                session.run()
                if progress is not None and call.counted:
                    progress(1)
            session.rest()
            spent.append((time.perf_counter() - begun) * 1000)
        self._note(spent)

    def finish(self) -> None:
        """Nothing is left to wait for."""


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


def _cast_tables(call: Call) -> dict[str, Array]:
    cast = {}
    for name, table in call.tables.items():
        spec = call.session.graph.tensor(name)
        wanted = (call.runs, *spec.sized(call.session.free))
        if table.shape != wanted:
            problem = f"the table of {name} is {table.shape}, not {wanted}"
            raise EngineError(f"graph {call.session.graph.name}: {problem}")
        cast[name] = np.ascontiguousarray(table, dtype=spec.dtype)
    return cast


def _check_given(call: Call) -> None:
    """What another session gives is read where it lies: it has to be just what the input is."""
    graph = call.session.graph
    for name, (source, output) in {**call.takes, **call.starts}.items():
        want, have = graph.tensor(name), source.graph.tensor(output)
        if (want.dtype, want.sized(call.session.free)) != (have.dtype, have.sized(source.free)):
            raise EngineError(f"graph {graph.name}: {name} is not of the shape and type of {output}")
        if name in call.starts and name not in graph.roles.carried:
            raise EngineError(f"graph {graph.name}: {name} is not fed back, and has no first run of its own")
