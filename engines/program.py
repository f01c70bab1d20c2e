"""Programs: several sessions run one after another, many times each, with nothing computed on the host between."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array, GraphSpec
from unibrain_rt.engines.session import Session

Progress = Callable[[int], None]
"""Called with the number of counted runs just done."""


@dataclass(frozen=True, eq=False)
class Call:
    """``runs`` runs of a session within a program.

    ``tables`` maps an input to rows (runs, *shape): run i reads row i. ``takes`` maps an input to the output of
    another session's earlier call, which it reads from the first run on. ``starts`` does so for an input that is fed
    back: the first run reads it there, all others what their own session gave; the other session's call may also be in
    a program that was started before. ``initial`` is what more of those inputs are in the first run, whenever the
    program is started. ``counted`` runs are those that progress is told of. ``name`` is what the call's time stands
    under in `Program.milliseconds`; by default the graph's name.
    """

    session: Session
    runs: int = 1
    tables: Mapping[str, Array] = field(default_factory=dict)
    takes: Mapping[str, tuple[Session, str]] = field(default_factory=dict)
    starts: Mapping[str, tuple[Session, str]] = field(default_factory=dict)
    initial: Mapping[str, Array] = field(default_factory=dict)
    counted: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.session.graph.name)


class Program(ABC):
    """Calls made one after another. What is written to their sessions before ``start`` is what they work on."""

    def __init__(self, calls: Sequence[Call]) -> None:
        """Raises EngineError: a table does not have a row of the input's shape a run, or what is taken does not fit."""
        self.calls = tuple(
            replace(call, tables=_cast_tables(call), initial=checked_initial(call.session, call.initial))
            for call in calls
        )
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
            for name, value in call.initial.items():
                session._write_impl(name, value)
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
        if name in call.starts:
            _check_fed_back(graph, name)


def checked_initial(session: Session, values: Mapping[str, Array]) -> dict[str, Array]:
    """What fed-back inputs are in a first run, as a back end takes it. Raises EngineError where it does not fit."""
    graph, cast = session.graph, {}
    for name, value in values.items():
        spec = graph.tensor(name)
        _check_fed_back(graph, name)
        if value.shape != spec.sized(session.free):
            problem = f"{name} has shape {spec.sized(session.free)}, but {value.shape} was given"
            raise EngineError(f"graph {graph.name}: {problem}")
        cast[name] = np.ascontiguousarray(value, dtype=spec.dtype)
    return cast


def _check_fed_back(graph: GraphSpec, name: str) -> None:
    if name not in graph.roles.carried:
        raise EngineError(f"graph {graph.name}: {name} is not fed back, and has no first run of its own")
